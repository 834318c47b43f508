"""What a run will do, before it does it: recipe, machine, steps. Knows nothing about weights or the trainer."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass

from bnft.errors import UserError
from bnft.settings import RunConfig

GPU_NEEDED_GIB = 14.0  # what the 8B recipe needs; a T4 offers 14.74


@dataclass(frozen=True)
class Gpu:
    name: str
    gib: float
    capability: tuple[int, int]


def find_gpus() -> list[Gpu]:
    """The CUDA GPUs that PyTorch sees."""
    import torch

    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        found.append(Gpu(properties.name, properties.total_memory / 2**30, (properties.major, properties.minor)))
    return found


def choose_recipe(gpus: list[Gpu]) -> tuple[str, str]:
    """The recipe for this machine, and the reason."""
    large = [gpu for gpu in gpus if gpu.gib >= GPU_NEEDED_GIB]
    if large:
        return "llama31-8b-qlora", f"{large[0].name} with {large[0].gib:.1f} GiB"
    if gpus:
        return "laptop", f"{gpus[0].name} has {gpus[0].gib:.1f} GiB, the 8B model needs {GPU_NEEDED_GIB:.0f}"
    return "laptop", "no CUDA GPU here"


def check_placement(config: RunConfig, gpus: list[Gpu]) -> str:
    """The placement that is used, or an error that says why the one asked for cannot be.

    Raises:
        UserError: `train.parallel` asks for GPUs that are not here, or for a way that is not built yet.
    """
    wanted = config.train.parallel
    if wanted in ("layers", "ddp", "fsdp"):
        if len(gpus) < 2:
            raise UserError(
                f"--parallel {wanted} needs at least two GPUs, {len(gpus)} found", "Use --parallel auto or single."
            )
        raise UserError(f"--parallel {wanted} is not in this version yet", "Use --parallel single.")
    return "one GPU" if gpus else "CPU"


def check_tracker(config: RunConfig, installed: Callable[[str], object] = importlib.util.find_spec) -> None:
    """Refuses an experiment tracker whose package is missing, before any work is done."""
    tracker = config.train.report_to
    if tracker != "none" and not installed(tracker):
        raise UserError(f"--report-to {tracker} needs a package that is not installed", f"pip install {tracker}")


def optimizer_steps(config: RunConfig, conversations: int) -> int:
    """How many optimizer steps the training takes."""
    if config.train.max_steps:
        return config.train.max_steps
    rows = config.train.batch_size * config.train.accumulation
    return max(1, math.ceil(math.ceil(conversations / rows) * config.train.epochs))


def describe(config: RunConfig, gpus: list[Gpu], report: dict, folder: str) -> str:
    """The plan as text: what will be read, trained, evaluated and written."""
    splits = report["splits"]
    conversations = {name: splits[name]["conversations"] for name in splits}
    steps = optimizer_steps(config, conversations["train"])
    rows = config.train.batch_size * config.train.accumulation
    bits = "4-bit" if config.model.load_in_4bit else config.model.dtype
    samples = config.eval.samples
    lines = [
        ("model", f"{config.model.name} ({bits}), LoRA r={config.lora.r} on {', '.join(config.lora.target_modules)}"),
        ("machine", f"{check_placement(config, gpus)}, {', '.join(gpu.name for gpu in gpus) or 'no GPU'}"),
        ("data", f"{report['source']}: " + ", ".join(f"{n} {name}" for name, n in conversations.items())),
        (
            "training",
            f"{steps} steps of {rows} conversations ({config.train.batch_size} x {config.train.accumulation}), "
            f"{steps * rows / conversations['train']:.2f} epochs, learning rate {config.train.learning_rate:g} "
            f"{config.train.scheduler}",
        ),
        ("checkpoints", f"every {config.train.save_steps} steps, {config.train.keep_checkpoints} kept"),
        ("evaluation", f"base and tuned: likelihood of the whole test split, replies to {samples} rows of it"),
        ("writes", folder),
    ]
    return "\n".join(f"  {name:<12}{text}" for name, text in lines)
