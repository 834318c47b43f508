"""Which GPUs a run uses, and how: in one process, spread over several, or with one process on each.

Knows nothing about weights, processes' messages or the trainer; whether a model fits a GPU it is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bnft.config import from_environment
from bnft.errors import UserError
from bnft.plan import Gpu
from bnft.settings import RunConfig
from bnft.world import World

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Placement:
    """How a run uses the machine.

    Attributes:
        way: "single", "layers", "ddp" or "fsdp".
        processes: how many train together; they are there already when a launcher started them.
        gpus: those of this machine that are used, in the order in which PyTorch numbers them.
        reason: why it is this way.
    """

    way: str
    processes: int
    gpus: tuple[Gpu, ...]
    reason: str

    def __str__(self) -> str:
        names = " + ".join(gpu.name for gpu in self.gpus) or "CPU"
        shape = {"single": "one process", "layers": "one process, layers split over the GPUs"}.get(
            self.way, f"{self.processes} processes, {self.way}"
        )
        return f"{shape}, {names} ({self.reason})"


def choose_placement(
    config: RunConfig, gpus: Sequence[Gpu], world: World, fits: Callable[[Gpu], bool], training: bool = True
) -> Placement:
    """The placement that is used, or an error that says why the one asked for cannot be.

    Args:
        gpus: those that PyTorch sees on this machine.
        fits: whether the model trains on such a GPU by itself; asked only where the answer matters.
        training: evaluation alone shares out the rows, and where one GPU is too small, the layers.

    Raises:
        UserError: `train.parallel` and the GPUs, the processes or the rows of a step contradict each other.
    """
    wanted = config.train.parallel
    gpus = tuple(gpus)
    if not training:
        return _for_evaluation(gpus, world, fits)
    if world.size > 1:
        return _in_a_given_world(config, gpus, world, fits)
    if wanted == "single" or (wanted == "auto" and len(gpus) < 2):
        return Placement("single", 1, gpus[:1], "as set" if wanted == "single" else _few(gpus))
    if len(gpus) < 2:
        raise _too_few(wanted, gpus)
    rows = step_rows(config)
    if wanted == "auto":
        if not all(fits(gpu) for gpu in gpus):
            if fits(gpus[0]):
                return Placement("single", 1, gpus[:1], f"the model fits {gpus[0].name}, but not every GPU")
            return Placement("layers", 1, gpus, "the model fits no single GPU")
        if rows == 1:
            return Placement("single", 1, gpus[:1], "an optimizer step has one row only")
        count = min(len(gpus), rows)
        return Placement("ddp", count, gpus[:count], "the model fits one GPU, and each takes its share of the rows")
    if wanted == "layers":
        return Placement("layers", 1, gpus, "as set")
    _check_rows(rows, len(gpus))
    return Placement(wanted, len(gpus), gpus, "as set")


def _for_evaluation(gpus: tuple[Gpu, ...], world: World, fits) -> Placement:
    if world.size > 1:
        _check_own_gpu(gpus, world)
        return Placement("ddp", world.size, gpus[: world.size], "evaluation, each process its share of the rows")
    if len(gpus) > 1 and all(fits(gpu) for gpu in gpus):
        return Placement("ddp", len(gpus), gpus, "evaluation, each GPU its share of the rows")
    if len(gpus) < 2 or fits(gpus[0]):
        return Placement("single", 1, gpus[:1], "evaluation")
    return Placement("layers", 1, gpus, "evaluation; the model fits no single GPU")


def _in_a_given_world(config, gpus, world: World, fits) -> Placement:
    wanted = config.train.parallel
    if wanted in ("single", "layers"):
        raise UserError(
            f"--parallel {wanted} is one process, and {world.size} were started",
            f"Start it with plain python train.py --parallel {wanted}.",
        )
    _check_rows(step_rows(config), world.size)
    if not gpus:
        return Placement("ddp" if wanted == "auto" else wanted, world.size, (), "processes as they were started")
    _check_own_gpu(gpus, world)
    way, reason = wanted, "as set"
    if wanted == "auto":
        way = "ddp" if fits(gpus[world.local_rank]) else "fsdp"
        reason = f"processes as they were started; the model fits {'one' if way == 'ddp' else 'no single'} GPU"
    return Placement(way, world.size, gpus[: world.size], reason)


def _check_own_gpu(gpus: tuple[Gpu, ...], world: World) -> None:
    if gpus and world.local_rank >= len(gpus):
        raise UserError(
            f"process {world.local_rank} of this machine has no GPU: {len(gpus)} found{_hidden()}",
            f"Start at most {len(gpus)} processes on this machine.",
        )


def step_rows(config: RunConfig) -> int:
    """Conversations of one optimizer step, over all processes."""
    return config.train.batch_size * config.train.accumulation


def _check_rows(rows: int, processes: int) -> None:
    if processes > rows:
        raise UserError(
            f"{processes} processes cannot share {rows} rows: an optimizer step has train.batch_size x "
            f"train.accumulation = {rows} of them, whatever the number of GPUs",
            f"Use at most {rows} GPUs ({VISIBLE} chooses them), or raise --train.accumulation.",
        )


def _few(gpus: tuple[Gpu, ...]) -> str:
    return "one GPU" if gpus else "no GPU"


def _hidden() -> str:
    """What to say of the variable that hides GPUs, where it is set."""
    visible = from_environment(VISIBLE, None)
    return "" if visible is None else f"; {VISIBLE}={visible!r} lets no others be seen"


def _too_few(wanted: str, gpus: tuple[Gpu, ...]) -> UserError:
    hint = "Use --parallel auto or single."
    if _hidden():
        hint = f"Unset {VISIBLE}, or name two GPUs in it; or use --parallel auto or single."
    return UserError(f"--parallel {wanted} needs at least two GPUs, {len(gpus)} found{_hidden()}", hint)


def check_free_memory(gpu: str, free: float, total: float, needed: float) -> None:
    """Refuses a GPU that is large enough but filled by somebody else.

    Args:
        gpu: its number and name.
        free, total, needed: GiB.

    Raises:
        UserError: naming the GPU, what is free on it and what the run needs.
    """
    if free < needed <= total:
        raise UserError(
            f"{gpu} has {free:.1f} of its {total:.1f} GiB free, this run needs {needed:.1f} GiB there",
            f"Another program holds the rest, nvidia-smi lists it: end it, or choose other GPUs with {VISIBLE}.",
        )
