"""What a page can serve, found and described: the newest run, a model by name, its notes and its numbers.

Knows nothing about the page or about replies.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bnft.errors import UserError
from bnft.models import ADAPTER_NOTES, ModelSource, adapter_base, find_model, hub_errors
from bnft.records import read_json
from bnft.settings import DataConfig, GenerationConfig

TRAIN_COMMAND = "python train.py"
EMBEDDED_NAME = "Gemma 3 270M"
# Of a Hub repository: weights that hold no code, settings, tokenizer, template, notes and numbers.
_NEEDED = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "NOTICE")


@dataclass(frozen=True)
class Served:
    """What is known about a model before it is loaded.

    Attributes:
        name: for people.
        base: the base model's name where an adapter is on it, else "".
        metrics: the run's numbers, or None.
        trained: False for a base model of this program, which knows no empathetic talk yet.
    """

    name: str
    base: str = ""
    licence: str = ""
    metrics: dict | None = None
    trained: bool = True
    system_prompt: str = DataConfig().system_prompt
    generation: GenerationConfig = field(default_factory=GenerationConfig)


def newest_run(output_dir: Path) -> str | None:
    """The folder of the newest finished run: what `latest` points at, else the youngest one with an adapter."""
    latest = output_dir / "latest"
    if (latest / "lora_model" / "adapter_config.json").is_file():
        return str(latest.resolve())
    found = [path.parent.parent for path in output_dir.glob("*/lora_model/adapter_config.json")]
    youngest = max(found, key=lambda run: (run / "lora_model").stat().st_mtime, default=None)
    return str(youngest) if youngest else None


def open_model(name: str) -> ModelSource:
    """The model of that name; one of the Hub as a folder of its cache, so that an adapter there is known as one.

    Raises:
        UserError: there is no such model, or it may not be read with the token of the environment.
    """
    source = find_model(name)
    if source.is_local:
        return source
    from huggingface_hub import snapshot_download

    with hub_errors(name):
        folder = snapshot_download(name, revision=source.revision, allow_patterns=list(_NEEDED))
    found = find_model(folder)
    return replace(found, name=name, licence=found.licence or source.licence)


def describe(source: ModelSource) -> Served:
    """Notes, licence and numbers of a model; the defaults where it carries none.

    Raises:
        UserError: the notes or the numbers beside the model are damaged.
    """
    folder = Path(source.adapter or source.base)
    notes_file = folder / ADAPTER_NOTES
    notes = read_json(notes_file) if notes_file.is_file() else {}
    metrics_file = (folder.parent if folder.name == "lora_model" else folder) / "metrics.json"
    base = _public(adapter_base(folder)) if source.adapter and folder.is_dir() else ""
    name = folder.parent.name if folder.name == "lora_model" else _public(source.name)
    return Served(
        name=name,
        base=base,
        licence=source.licence or str(notes.get("licence", "")),
        metrics=read_json(metrics_file) if metrics_file.is_file() else None,
        trained=bool(source.adapter) or source.name not in ("embedded", "smoke"),
        system_prompt=str(notes.get("system_prompt") or DataConfig().system_prompt),
        generation=_generation(notes.get("generation"), folder),
    )


def _generation(values: Any, folder: Path) -> GenerationConfig:
    try:
        return GenerationConfig(**(values or {}))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{folder / ADAPTER_NOTES} has bad generation settings: {error}", "Mend or delete it."
        ) from error


def _public(name: str) -> str:
    """A model's name as visitors may read it: no folder of the server."""
    if name == "embedded":
        return EMBEDDED_NAME
    return Path(name).name if Path(name).exists() else name
