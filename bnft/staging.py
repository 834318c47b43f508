"""Folders that are complete by themselves: adapter, merged weights and base, as plain transformers and PEFT load them.

Copies, links and writes files; the weights themselves come from `merge`. Knows nothing about cards or the Hub's API.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from bnft.base_weights import SIDE_FILES, HubBase, LocalBase
from bnft.errors import UserError
from bnft.licences import Licence
from bnft.merge import ADAPTER_WEIGHTS
from bnft.model_code import INDEX
from bnft.models import ADAPTER_NOTES
from bnft.records import read_json
from bnft.settings import RunConfig
from bnft.whole_files import write_atomically, write_json

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "tokenizer.model",
)
PLOTS = ("loss.png", "base_against_tuned.png")


def clear(folder: Path, keep: Container[str] = ()) -> None:
    """Takes away what an earlier publication, or one that was killed, has left; all of a folder is uploaded."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name not in keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def generation_defaults(
    base: LocalBase | HubBase, config: RunConfig, end_ids: list[int], pad_id: int
) -> dict[str, Any]:
    """What `generate` does when nothing is asked for: the run's decoding, ending where this template's replies end."""
    path = base.side_file("generation_config.json")
    settings = read_json(path) if path else {}
    chosen = config.generation
    return settings | {
        "do_sample": True,
        "temperature": chosen.temperature,
        "top_p": chosen.top_p,
        "repetition_penalty": chosen.repetition_penalty,
        "max_new_tokens": chosen.max_new_tokens,
        "eos_token_id": end_ids,
        "pad_token_id": pad_id,
    }


def stage_common(folder: Path, run: Path, generation: dict[str, Any], notes: dict[str, Any], licence: Licence) -> None:
    """What adapter and merged model share: all but weights and card."""
    copy_files(run / "lora_model", folder, TOKENIZER)
    write_json(folder / "generation_config.json", generation)
    write_json(folder / ADAPTER_NOTES, notes)
    copy_files(run, folder, ("metrics.json",))
    (folder / "plots").mkdir(exist_ok=True)
    copy_files(run / "plots", folder / "plots", PLOTS)
    _write_notice(folder, licence)


def stage_adapter(folder: Path, lora: Path, base: str) -> None:
    """The adapter with its base named as it is on the Hub; PEFT writes the folder of this machine there."""
    copy_files(lora, folder, (ADAPTER_WEIGHTS,))
    settings = read_json(lora / "adapter_config.json")
    settings |= {"base_model_name_or_path": base, "revision": None}
    write_json(folder / "adapter_config.json", settings)


def stage_base(folder: Path, base: LocalBase, lora: Path, licence: Licence) -> None:
    """The base as it is, with the tokenizer that the adapter was trained with; weights are linked, not copied."""
    clear(folder)
    for name in (*base.names, INDEX, *SIDE_FILES):
        if base.side_file(name):
            _link(base.folder / name, folder / name)
    copy_files(lora, folder, TOKENIZER)
    _write_notice(folder, licence)


def copy_files(source: Path, folder: Path, names: Iterable[str]) -> None:
    for name in names:
        path = source / name
        if not path.is_file():
            continue
        if not path.resolve().is_relative_to(source.resolve()):  # it could be any file of its owner's
            raise UserError(f"{path} is a link to {path.resolve()}", "Put there what is to be published.")
        shutil.copyfile(path, folder / name)
        os.chmod(folder / name, 0o644)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(source, target)


def _write_notice(folder: Path, licence: Licence) -> None:
    if licence.notice:
        write_atomically(folder / "NOTICE", licence.notice + "\n")  # never into a file that is linked to the base's
