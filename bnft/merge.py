"""Adapter + 16-bit base -> merged 16-bit weights, shard by shard and tensor by tensor.

Memory is bounded by one layer's matrix, not by the model. Every value is the one that PEFT's `merge_and_unload`
gives in the same type. What cannot be merged is refused by its name before a byte is written. Knows nothing about
tokenizers, cards or the Hub: shards of the base are asked for by name.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from bnft.errors import ENVIRONMENT, UserError
from bnft.model_code import INDEX
from bnft.records import read_json
from bnft.tensor_files import DTYPES, TensorFile, TensorWriter
from bnft.whole_files import file_sha256

ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHTS = "model.safetensors"
PREFIX = "base_model.model."
MERGED = "merged_adapter"  # key of config.json: sha256 of the adapter that is in the weights
ALONE = "Publish the adapter alone: --only adapter,card."
LEAST_FREE = 64 * 2**20  # bytes of disk that are left alone
# Settings of an adapter that change nothing about how it is merged, or that are read below. Any other one that is
# set belongs to a kind of adapter whose merge is another sum.
UNDERSTOOD = {"alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "exclude_modules", "inference_mode"}
UNDERSTOOD |= {"init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout"}
UNDERSTOOD |= {"megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r"}
UNDERSTOOD |= {"rank_pattern", "revision", "target_modules", "task_type", "use_rslora"}
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal")  # other initialisations change the base's weights too
SHARED = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_in.weight", "embed_out.weight")


class BaseShards(Protocol):
    """The base model's weights: `names` in order, each on disk between `fetch` and `release`."""

    names: list[str]
    settings: dict

    def fetch(self, name: str) -> Path: ...

    def release(self, name: str) -> None: ...


@dataclass(frozen=True)
class Update:
    """Low-rank change of one tensor: `scale * B @ A`, transposed for an embedding."""

    a: str
    b: str
    scale: float
    transposed: bool = False


@dataclass(frozen=True)
class Adapter:
    """What an adapter does to the tensors of its base, by their names there.

    Attributes:
        updates: low-rank changes.
        replaced: tensors that were trained whole -> their key in the adapter's file.
        sha256: of the adapter's file.
    """

    file: TensorFile
    updates: dict[str, Update]
    replaced: dict[str, str]
    sha256: str


@dataclass
class Merged:
    """What a merge did; `files` have their sha256."""

    dtype: str
    changed: int = 0
    copied: int = 0
    size: int = 0
    files: dict[str, str] = field(default_factory=dict)


def read_adapter(folder: Path) -> Adapter:
    """The plan of an adapter folder.

    Raises:
        UserError: it is of a kind that cannot be merged exactly, with every reason at once.
    """
    settings = read_json(folder / "adapter_config.json")
    problems = [f"{name}: {value!r}" for name, value in settings.items() if name not in UNDERSTOOD and value]
    if settings.get("peft_type") != "LORA":
        problems.append(f"peft_type: {settings.get('peft_type')!r}")
    if settings.get("init_lora_weights") not in PLAIN_STARTS:
        problems.append(f"init_lora_weights: {settings['init_lora_weights']!r}")
    if not isinstance(settings.get("lora_alpha"), int | float):
        problems.append(f"lora_alpha: {settings.get('lora_alpha')!r}")
    if problems:
        raise UserError(
            f"the adapter {folder} cannot be merged: {', '.join(problems)}",
            f"Only LoRA and rank-stabilised LoRA are merged here. {ALONE}",
        )
    file = TensorFile(folder / ADAPTER_WEIGHTS)
    updates: dict[str, Update] = {}
    replaced: dict[str, str] = {}
    for key in file.entries:
        module, _, kind = key.removeprefix(PREFIX).partition(".lora_")
        if kind in ("B.weight", "embedding_B"):
            a = key.replace(".lora_B.", ".lora_A.").replace(".lora_embedding_B", ".lora_embedding_A")
            if a not in file.entries:
                raise UserError(f"the adapter {folder} is damaged: it has {key} without {a}", "Get or make it again.")
            rank = file.entries[a].shape[0]
            updates[f"{module}.weight"] = Update(a, key, _scale(settings, module, rank), kind == "embedding_B")
        elif not kind:
            replaced[module.replace(".base_layer.", ".")] = key
        elif kind not in ("A.weight", "embedding_A"):
            raise UserError(f"the adapter {folder} cannot be merged: {key} is no plain LoRA", ALONE)
    return Adapter(file, updates, replaced, file_sha256(file.path))


def _scale(settings: dict, module: str, rank: int) -> float:
    from peft.utils.other import get_pattern_key

    patterns = settings.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), module), settings["lora_alpha"])
    return alpha / rank**0.5 if settings.get("use_rslora") else alpha / rank


def merge(
    adapter: Adapter,
    base: BaseShards,
    folder: Path,
    dtype: str = "",
    finished: Callable[[Path], None] = lambda path: None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Merged:
    """Writes config.json and the merged shards, named as the base's, into the existing `folder`.

    Args:
        dtype: "bfloat16" or "float16"; by default the base's own 16-bit type, bfloat16 for a 32-bit base.
        finished: told each shard as soon as it is whole; may move or delete it, which keeps the disk need small.

    Raises:
        UserError: the base is quantised, has this adapter in it already or does not fit it, or the disk is too small.
    """
    _refuse(adapter, base.settings)
    left = {**adapter.updates, **adapter.replaced}
    index: dict[str, str] = {}
    result = Merged(dtype)
    for number, name in enumerate(base.names):
        try:
            source = TensorFile(base.fetch(name))
            result.dtype = result.dtype or _sixteen_bit(source)
            target = DTYPES[{"bfloat16": "BF16", "float16": "F16"}[result.dtype]]
            _merge_shard(adapter, source, folder / name, target, result, left)
            index |= dict.fromkeys(source.entries, name)
        finally:
            base.release(name)
        result.size += (folder / name).stat().st_size
        progress("merge: shards", number + 1, len(base.names))
        if number + 1 == len(base.names) and left:
            (folder / name).unlink()
            raise _does_not_fit(sorted(left))
        finished(folder / name)
    if base.names != [WEIGHTS]:
        _write_json(folder / INDEX, {"metadata": {"total_size": result.size}, "weight_map": index}, result)
    settings = base.settings | {"dtype": result.dtype, MERGED: adapter.sha256}
    settings.pop("torch_dtype", None)  # the older name of dtype
    _write_json(folder / "config.json", settings, result)
    return result


def _write_json(path: Path, value: dict, result: Merged) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    result.files[path.name] = file_sha256(path)


def _merge_shard(
    adapter: Adapter, source: TensorFile, path: Path, target: torch.dtype, result: Merged, left: dict
) -> None:
    for name in source.entries:
        _check(adapter, source, name)
        left.pop(name, None)
    plan = {n: (target if e.is_float else DTYPES[e.dtype], e.shape) for n, e in source.entries.items()}
    _check_disk(path.parent, sum(e.elements * plan[n][0].itemsize for n, e in source.entries.items()))
    scratch = path.with_name(f".{path.name}.part")
    try:
        with TensorWriter(scratch, plan) as writer:
            for name in source.entries:
                for values in _merged_pieces(adapter, source, name, plan[name][0]):
                    writer.write(values)
                if name in adapter.updates or name in adapter.replaced:
                    result.changed += 1
                else:
                    result.copied += 1
        scratch.rename(path)
        result.files[path.name] = writer.checksum.hexdigest()
    finally:
        scratch.unlink(missing_ok=True)


def _merged_pieces(adapter: Adapter, source: TensorFile, name: str, target: torch.dtype) -> Iterator[torch.Tensor]:
    """The rows of one merged tensor, as many at a time as `TensorFile.pieces` says."""
    update = adapter.updates.get(name)
    factors = None
    if update:
        # PEFT trains and merges in float32, whatever type the factors are stored in
        factors = adapter.file.read(update.a).float(), adapter.file.read(update.b).float()
    for start, stop in source.pieces(name):
        if name in adapter.replaced:
            values = adapter.file.read(adapter.replaced[name], start, stop).to(target)
        else:
            values = source.read(name, start, stop)
            if source.entries[name].is_float:
                values = values.to(target)
        if factors:
            a, b = factors
            change = (b @ a[:, start:stop]).T if update.transposed else b[start:stop] @ a
            change *= update.scale
            # PEFT rounds an embedding's change before it adds it, a matrix's only after.
            values += change.to(target) if update.transposed else change
        # The least and the largest are found without a second piece in memory, and one that is no number is both.
        if (factors or name in adapter.replaced) and not torch.stack(values.aminmax()).isfinite().all():
            raise UserError(
                f"with the adapter merged into it, {name} holds values that are no finite {target} numbers",
                "The adapter is damaged, or its training went astray: look at its losses, and train it again.",
            )
        yield values


def _check(adapter: Adapter, source: TensorFile, name: str) -> None:
    entry, update = source.entries[name], adapter.updates.get(name)
    if entry.dtype not in DTYPES or entry.dtype in ("I8", "U8"):
        raise UserError(
            f"{name} of the base is stored as {entry.dtype}: an adapter is never merged into quantised weights",
            "Name the base's 16-bit weights with --base.",
        )
    if update:
        a, b = adapter.file.entries[update.a].shape, adapter.file.entries[update.b].shape
        shape = (a[1], b[0]) if update.transposed else (b[0], a[1])
    elif name in adapter.replaced:
        shape = adapter.file.entries[adapter.replaced[name]].shape
    else:
        return
    if shape != entry.shape:
        raise UserError(
            f"the adapter is not for this base: {name} is {list(entry.shape)} there, the adapter's is {list(shape)}",
            "Name the base that it was trained on with --base.",
        )


def _does_not_fit(names: list[str]) -> UserError:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return UserError(
        f"the adapter is not for this base, which has no {', '.join(names[:3])}{more}",
        "Name the base that it was trained on with --base.",
    )


def _refuse(adapter: Adapter, settings: dict) -> None:
    if settings.get("quantization_config"):
        raise UserError(
            f"the base is quantised ({settings['quantization_config'].get('quant_method', 'unknown')}): an adapter is "
            "never merged into quantised weights",
            "Name the base's 16-bit weights with --base.",
        )
    if settings.get(MERGED) == adapter.sha256:
        raise UserError("this adapter is merged into that base already", "Name the base without it with --base.")
    # Input and output embeddings that share one tensor cannot take a change that was trained for one of them.
    tied = settings.get("tie_word_embeddings", settings.get("text_config", {}).get("tie_word_embeddings", False))
    named = [name for name in (*adapter.updates, *adapter.replaced) if name.endswith(SHARED)]
    if tied and named:
        raise UserError(
            f"the adapter changes {', '.join(named)}, which the base uses as embedding and as head at once",
            f"Merging would change both. {ALONE}",
        )


def _sixteen_bit(source: TensorFile) -> str:
    """The 16-bit type that most bytes of a file have; bfloat16, whose range is float32's, where there is none."""
    sizes = {"F16": 0, "BF16": 0}
    for entry in source.entries.values():
        if entry.dtype in sizes:
            sizes[entry.dtype] += entry.elements
    return "float16" if sizes["F16"] > sizes["BF16"] else "bfloat16"


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + LEAST_FREE:
        raise UserError(
            f"the merged weights need {needed / 2**30:.2f} GiB more in {folder}, {free / 2**30:.2f} are free",
            "Free some space, or give --low-disk, which keeps one shard at a time.",
            exit_code=ENVIRONMENT,
        )
