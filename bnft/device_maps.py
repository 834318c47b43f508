"""Where a model's weights go: to one GPU, layer by layer to all GPUs, or to the host until they are shared out.

Decides from the model's shape alone, before a weight is read. Knows nothing about adapters, data or training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from bnft.errors import UserError
from bnft.memory_plan import CONTEXT, FRAGMENTATION, GIB, Method, ModelFacts, memory_of, read_facts
from bnft.model_code import refuse_code_of
from bnft.models import ModelSource, find_model, hub_errors, resolve_dtype
from bnft.placement import Placement, check_free_memory
from bnft.plan import Gpu
from bnft.settings import RunConfig

# GiB of a GPU that layers are not put on: the adapter, its optimizer and what a pass of one long row takes
WORKING = 2.0


def device_map(source: ModelSource, config: RunConfig) -> dict[str, int | str] | None:
    """The map for `load_model`; None stands for the process' own GPU, or the CPU where there is none.

    Raises:
        UserError: the weights are more than all GPUs hold.
    """
    if config.train.parallel == "fsdp":
        return {"": "cpu"}  # bnft/sharding.py sends each GPU its part
    if config.train.parallel != "layers":
        return None
    names = [f"GPU {index} ({torch.cuda.get_device_name(index)})" for index in range(torch.cuda.device_count())]
    free = [torch.cuda.mem_get_info(index)[0] / GIB for index in range(len(names))]
    return layer_map(empty_model(source, config), config.model.load_in_4bit, dict(zip(names, free, strict=True)))


def layer_map(model: torch.nn.Module, load_in_4bit: bool, free: Mapping[str, float]) -> dict[str, int]:
    """Modules in their order over the GPUs, about equally many bytes on each, no decoder layer on two.

    Args:
        model: without weights, in the type that it is loaded in.
        free: GiB of each GPU, by its name.

    Raises:
        UserError: something would have to go to the CPU or to a disk; says how many GiB.
    """
    from accelerate.utils import CustomDtype, compute_module_sizes, get_balanced_memory, infer_auto_device_map

    kinds = model._no_split_modules
    sizes = {"dtype": CustomDtype.INT4, "special_dtypes": _unquantised(model)} if load_in_4bit else {}
    room = {index: max(0, int((gib - WORKING) * GIB)) for index, gib in enumerate(free.values())}
    weights = compute_module_sizes(model, **sizes)
    balanced = get_balanced_memory(model, dict(room), no_split_module_classes=kinds, **sizes)
    balanced[0] += _kept_free(model, weights)
    placed = infer_auto_device_map(model, balanced, no_split_module_classes=kinds, **sizes)
    outside = sum(weights[name] for name, device in placed.items() if device in ("cpu", "disk"))
    if outside:
        told = ", ".join(f"{name} {gib:.1f} GiB free" for name, gib in free.items())
        raise UserError(
            f"--parallel layers: {outside / GIB:.1f} GiB are missing for {weights[''] / GIB:.1f} GiB of weights "
            f"({told}, of which {WORKING:.0f} GiB each are for the work itself)",
            "Use --model.load_in_4bit true, a smaller --model or more GPUs. Nothing is put on the CPU or a disk.",
        )
    return placed


def _kept_free(model: torch.nn.Module, weights: Mapping[str, int]) -> int:
    """What accelerate keeps free on the first GPU for the largest part to visit it from the CPU, where none is here."""
    head = model.get_output_embeddings()
    later = [head] if head.weight is not model.get_input_embeddings().weight else []
    later += [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
    return max(weights[name] for name, module in model.named_modules() if any(module is one for one in later))


def _unquantised(model: torch.nn.Module) -> dict[str, torch.dtype]:
    """Weights that stay as they are in 4 bit: everything but the matrices between embedding and head."""
    head = model.get_output_embeddings()
    matrices = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    quantised = {id(module.weight) for module in matrices}
    return {name: value.dtype for name, value in model.named_parameters() if id(value) not in quantised}


def empty_model(source: ModelSource, config: RunConfig) -> torch.nn.Module:
    """The model in its compute type, without weights."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    with hub_errors(source.base):
        refuse_code_of(source.base, source.revision)
        settings = AutoConfig.from_pretrained(source.base, revision=source.revision, trust_remote_code=False)
    dtype, _ = resolve_dtype(config.model.dtype)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(settings, dtype=getattr(torch, dtype))
    model.tie_weights()
    return model


def model_facts(config: RunConfig) -> ModelFacts | None:
    """The shape of the run's model, from its config.json alone; None where that does not tell."""
    source = find_model(config.model.name, config.model.revision, announce=quiet)
    if source.is_local:
        file = Path(source.base) / "config.json"
    else:  # transformers would do it, but Unsloth must be imported before that is
        from huggingface_hub import hf_hub_download

        with hub_errors(source.base):
            file = Path(hf_hub_download(source.base, "config.json", revision=source.revision))
    return read_facts(json.loads(file.read_text(encoding="utf-8")))


def training_fits(config: RunConfig) -> Callable[[Gpu], bool]:
    """Whether the run's model, with the longest row that the settings allow, trains on a GPU by itself."""
    return lambda gpu: needed_gib(config, gpu.capability) <= gpu.gib


def needed_gib(config: RunConfig, capability: tuple[int, int]) -> float:
    """Free GiB that the training takes on one GPU, with one row of the greatest length at a time.

    0 where the model's shape does not tell.
    """
    facts = model_facts(config)
    if facts is None:
        return 0.0
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "bfloat16" if capability >= (8, 0) else "float16"
    peak = memory_of(facts, Method.of(config, dtype)).peak(config.model.max_seq_length)
    return (peak + CONTEXT) / (1 - FRAGMENTATION) / GIB


def check_own_gpu(config: RunConfig, placement: Placement) -> None:
    """Refuses a GPU that another program has filled; layers are looked at when they are placed."""
    if not placement.gpus or placement.way not in ("single", "ddp"):
        return
    index = torch.cuda.current_device()
    free, total = (size / GIB for size in torch.cuda.mem_get_info(index))
    needed = needed_gib(config, torch.cuda.get_device_capability(index))
    check_free_memory(f"GPU {index} ({torch.cuda.get_device_name(index)})", free, total, needed)


def quiet(text: str) -> None:
    """For what is said again when the model is loaded."""
