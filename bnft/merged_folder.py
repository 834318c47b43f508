"""The merged weights of a run, in a folder with a record beside it: of what they were made, and their checksums.

Made once and taken again while adapter, base and every byte are the same. Knows nothing about cards or the Hub.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bnft.base_weights import HubBase, LocalBase
from bnft.errors import UserError
from bnft.merge import ADAPTER_WEIGHTS, merge, read_adapter
from bnft.progress import StageBar
from bnft.records import read_json
from bnft.staging import clear
from bnft.whole_files import file_sha256, write_json


class MergedFolder:
    """The folder `merged` and its record.

    Args:
        folder: holds both.
        lora: the adapter's folder.
    """

    def __init__(self, folder: Path, lora: Path, announce: Callable[[str], None]):
        self.folder, self.lora, self.announce = folder / "merged", lora, announce
        self._path = folder / "merged.json"

    def record(self) -> dict[str, Any]:
        """What the merge did, from this call or an earlier one; {} where that is not known."""
        try:
            record = read_json(self._path)
        except UserError:
            return {}
        return record if isinstance(record.get("files"), dict) else {}

    def make(self, name: str, base: LocalBase | HubBase) -> None:
        """Merges into the base of that name, unless that was done before."""
        key, record = {"adapter": read_adapter(self.lora).sha256, "base": name}, self.record()
        if record.get("key") == key:
            damaged = [file for file, sha256 in record["files"].items() if self._checksum(file) != sha256]
            if not damaged:
                self.announce("the merged weights are as they were: not made again")
                return
            self.announce(f"the merged weights are not whole ({', '.join(damaged)}): they are made again")
        self.make_anew(name, base)

    def make_anew(
        self, name: str, base: LocalBase | HubBase, finished: Callable[[Path], None] = lambda p: None
    ) -> None:
        """Merges in any case; `finished` as in `merge`."""
        adapter = read_adapter(self.lora)
        clear(self.folder)
        self.announce(f"merging into {name}, {base.size() / 2**30:.2f} GiB")
        with StageBar() as bar:
            made = merge(adapter, base, self.folder, finished=finished, progress=bar.show)
        write_json(self._path, {"key": {"adapter": adapter.sha256, "base": name}, **asdict(made)})

    def check_belongs(self) -> None:
        """Raises `UserError` where what was merged before is not the run's adapter."""
        if self.record().get("key", {}).get("adapter") != file_sha256(self.lora / ADAPTER_WEIGHTS):
            raise UserError(
                "the card of the merged model tells what merging did, and this adapter was not merged yet",
                "Publish the weights first: --only merged",
            )

    def compare(self, measure: Callable[[str, str], dict[str, Any]]) -> None:
        """Notes once what `measure` says of the adapter's and the merged folder."""
        record = self.record()
        if "comparison" not in record:
            write_json(self._path, record | {"comparison": measure(str(self.lora), str(self.folder))})

    def _checksum(self, file: str) -> str | None:
        path = self.folder / file
        return file_sha256(path) if path.is_file() else None
