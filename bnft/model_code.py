"""What in a model's files could make a library run code or leave the model's folder; refused before any is loaded.

`trust_remote_code=False` covers the Python files of a model, not all that its settings can ask for. Knows nothing
about how a model is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bnft.errors import UserError

INDEX = "model.safetensors.index.json"
GET_ANOTHER = "Take the model from somebody whom you trust, with plain safetensors weights."
# Layers of Megatron are looked up in a module whose name the adapter gives.
_OF_AN_ADAPTER = ("megatron_config",)


def refuse_code_of(model: str, revision: str | None) -> None:
    """Looks into the settings and the list of weights of a folder or Hub id.

    Raises:
        UserError: the settings name kernels, which are programs that transformers would fetch and run, or the list
            names something else than safetensors files beside it.
    """
    from transformers import PreTrainedConfig
    from transformers.utils import cached_file

    settings, _ = PreTrainedConfig.get_config_dict(model, revision=revision)
    for name, value in _settings_of(settings):
        if name.endswith(("_implementation", "_implementation_internal")) and "/" in json.dumps(value):
            raise UserError(f"config.json of {model} asks for a program from elsewhere, {name}: {value!r}", GET_ANOTHER)
    index = cached_file(model, INDEX, revision=revision, _raise_exceptions_for_missing_entries=False)
    if index:
        shards_of(Path(index))


def refuse_code_of_adapter(settings: dict, folder: Path) -> None:
    """Takes LoRA alone: other kinds of adapters load tokenizers, other adapters and modules by name.

    Raises:
        UserError: it is another kind.
    """
    found = [name for name in _OF_AN_ADAPTER if settings.get(name)]
    if settings.get("peft_type") != "LORA" or found:
        what = found[0] if found else f"peft_type {settings.get('peft_type')!r}"
        raise UserError(f"the adapter {folder} is no plain LoRA adapter: {what}", "Train a LoRA adapter.")


def shards_of(index: Path) -> list[str]:
    """The weight files that an index names.

    Raises:
        UserError: the index is damaged, or a name is no safetensors file of the same folder.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        odd = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"cannot read {index}: {error}", "The folder is damaged: get the model again.") from error
    if odd or not names:
        named = f"{odd[0]!r}, which is no safetensors file beside it" if odd else "no file"
        raise UserError(f"{index} names {named}", GET_ANOTHER)
    return names


def _settings_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Every name and value of nested settings."""
    if isinstance(value, dict):
        yield from value.items()
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _settings_of(inner)
