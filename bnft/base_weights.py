"""The 16-bit base of an adapter: found, told, and handed out shard by shard.

A base in 4 bit is a copy of 16-bit weights that were thrown away; those are looked for under the name that the
4-bit copy was made from. Knows nothing about adapters' contents.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from bnft.errors import UserError
from bnft.merge import WEIGHTS
from bnft.model_code import INDEX, shards_of
from bnft.models import ModelSource, find_model, hub_errors

FOUR_BIT_ENDINGS = ("-unsloth-bnb-4bit", "-bnb-4bit")  # as in unsloth's names on the Hub
SIDE_FILES = ("config.json", "generation_config.json", "NOTICE", "LICENSE", "LICENSE.txt", "USE_POLICY.md", "Notice")


class LocalBase:
    """A base in a folder; its files are never touched."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        index = folder / INDEX
        self.names = [WEIGHTS]
        if index.is_file():
            self.names = shards_of(index)
        elif not (folder / WEIGHTS).is_file():
            self.names = sorted(path.name for path in folder.glob("*.safetensors"))

    def fetch(self, name: str) -> Path:
        return self.folder / name

    def release(self, name: str) -> None:
        """Nothing: the folder is the user's."""

    def size(self) -> int:
        return sum((self.folder / name).stat().st_size for name in self.names)

    def side_file(self, name: str) -> Path | None:
        path = self.folder / name
        return path if path.is_file() else None


class HubBase:
    """A base on the Hub: into the Hub's cache, or into `scratch`, where one shard is at a time and gone after use."""

    def __init__(self, repo: str, revision: str | None = None, scratch: Path | None = None):
        self.repo, self.revision, self.scratch = repo, revision, scratch
        self.settings = json.loads(self._download("config.json").read_text(encoding="utf-8"))
        index = self.side_file(INDEX)
        self.names = [WEIGHTS]
        if index:
            self.names = shards_of(index)

    def fetch(self, name: str) -> Path:
        self.release(name)  # what a killed program has left
        return self._download(name, self.scratch)

    def release(self, name: str) -> None:
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def size(self) -> int:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        with hub_errors(self.repo):
            sizes = [get_hf_file_metadata(hf_hub_url(self.repo, n, revision=self.revision)).size for n in self.names]
        return sum(size or 0 for size in sizes)

    def side_file(self, name: str) -> Path | None:
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return self._download(name)
        except UserError as error:
            if isinstance(error.__cause__, EntryNotFoundError):
                return None
            raise

    def _download(self, name: str, folder: Path | None = None) -> Path:
        from huggingface_hub import hf_hub_download

        with hub_errors(self.repo):
            return Path(hf_hub_download(self.repo, name, revision=self.revision, local_dir=folder))


def open_base(name: str, revision: str | None = None, scratch: Path | None = None) -> LocalBase | HubBase:
    """The weights of a folder or a Hub id."""
    return LocalBase(Path(name)) if Path(name).is_dir() else HubBase(name, revision, scratch)


def sixteen_bit_base(
    source: ModelSource, asked: str | None, announce: Callable[[str], None], scratch: Path | None = None
) -> tuple[str, LocalBase | HubBase]:
    """Name and weights of the base to merge into.

    Args:
        source: the adapter's base, as `find_model` gives it.
        asked: what the user named with --base; wins.
        scratch: for shards that are downloaded one at a time; without it they come into the Hub's cache.

    Raises:
        UserError: the base is quantised and no 16-bit one is known, or what the user named is no whole model.
    """
    if asked and find_model(asked, announce=announce).adapter:
        raise UserError(f"--base {asked} is an adapter", "Name the 16-bit weights that it was trained on.")
    name = asked or source.base
    base = open_base(name, None if asked else source.revision, scratch)
    if not base.settings.get("quantization_config"):
        return name, base
    if not asked:
        for ending in FOUR_BIT_ENDINGS:
            if name.endswith(ending):
                found = name.removesuffix(ending)
                announce(f"base: {found}, the 16-bit weights behind {name} (--base names another)")
                return found, open_base(found, None, scratch)
    raise UserError(
        f"the base {name} is quantised, and an adapter is never merged into quantised weights",
        "Name the 16-bit weights that it was made from: --base OWNER/NAME or a folder.",
    )
