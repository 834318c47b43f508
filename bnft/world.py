"""The processes that train together, one a GPU, and what they tell each other. One process is a world of its own.

Every process runs the same program; the leader alone writes and prints. Knows nothing about models or data.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bnft.config import from_environment
from bnft.errors import Interrupted, UserError, first_line

if TYPE_CHECKING:
    from torch import Tensor

# The others wait while the leader reads and tokenises a corpus. A process that ended is noticed by the launcher at
# once, so that this limit is only for processes that wait for each other in vain.
PATIENCE = timedelta(minutes=60)
LOST = 3  # exit status of a process whose world has broken
BUCKET = 2**25  # numbers in one all-reduce: the flat copy of an adapter's gradients stays small
# What was said last, before an exit above all. Were gloo's thread the last to hold it, it would free a Python tensor,
# and where the interpreter is going by then, abort the process (seen with Python 3.11 on a busy machine).
_said: list[Any] = []


@dataclass(frozen=True)
class World:
    """This process's place among `size`.

    Attributes:
        rank: its number over all hosts.
        local_rank: its number on its host, and its GPU's.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0


class ProcessLost(UserError):
    """Another process of the world has ended, so that what was asked of all can never be answered."""

    def __init__(self, world: World, reason: str):
        super().__init__(
            f"process {world.rank} of {world.size} lost the others: {reason}",
            "What ended them is told above or in their own output. Go on with --resume.",
            exit_code=LOST,
        )


def current_world() -> World:
    """The world that torchrun, `accelerate launch` or bnft/launch.py started this process in."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    given = [from_environment(name) for name in names]
    if not all(given):
        return World()  # a single one of them is left over from something else
    if not all(value.isdecimal() for value in given):
        told = ", ".join(f"{name}={value}" for name, value in zip(names, given, strict=True))
        raise UserError(f"the environment names no process of a world: {told}", "Unset these, or start with torchrun.")
    return World(*map(int, given))


@contextlib.contextmanager
def joined(world: World) -> Iterator[None]:
    """Connects this process to the others and gives it its GPU; lets only what the leader prints be seen.

    Of all the errors in the world the first alone is told: the others have the same reason, or follow from it.
    """
    if world.size == 1:
        yield
        return
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    on_gpu = torch.cuda.is_available()
    if world.local_rank < torch.cuda.device_count():  # bnft/placement.py says what is wrong where it is not
        torch.cuda.set_device(world.local_rank)
    store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
    # gloo beside nccl: a word to the others needs no memory of a GPU that may have none left
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    distributed.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=PATIENCE)
    quiet = contextlib.ExitStack()
    if not world.leads:
        nowhere = open(os.devnull, "w")  # noqa: SIM115 - stays open: libraries' log handlers keep hold of it
        quiet.enter_context(contextlib.redirect_stdout(nowhere))
        quiet.enter_context(contextlib.redirect_stderr(nowhere))
    try:
        with quiet:
            yield
            barrier(world)
    except Interrupted:
        barrier(world)  # a launcher ends all as soon as one has left, and the leader may still be saving
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # by now each leaves by itself
        if not world.leads:
            _be_silent()
        raise
    except BaseException as error:
        if not _tells(error, store, world):
            _be_silent()
        raise  # the group stays: taking it down needs those who may wait for this process, or have ended
    else:
        distributed.destroy_process_group()


def _be_silent() -> None:
    """Until the process ends."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _tells(error: BaseException, store, world: World) -> bool:
    """Whether this process is the one that tells what went wrong."""
    if isinstance(error, ProcessLost) and from_environment("TORCHELASTIC_RUN_ID"):
        return False  # the launcher says which process ended
    try:
        return store.compare_set("bnft/failed", "", str(world.rank)) == str(world.rank).encode()
    except RuntimeError:  # the store ended with the process, or the launcher, that held it
        return True


@contextlib.contextmanager
def _asking(world: World) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of gloo and nccl alike; torch has no narrower class for the former
        if "out of memory" in str(error):
            raise
        raise ProcessLost(world, first_line(error)) from error


def sum_over(tensors: list[Tensor], world: World) -> None:
    """Replaces every tensor, in place, by its sum over all processes, which must pass like tensors in like order."""
    if world.size == 1:
        return
    import torch
    from torch import distributed

    alike = defaultdict(list)
    for tensor in tensors:
        alike[tensor.dtype, tensor.device].append(tensor)
    for group in alike.values():
        for bucket in _buckets(group):
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in bucket])
            _reduce(flat, distributed.ReduceOp.SUM, world)
            parts = flat.split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.detach().copy_(part.view_as(tensor))


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket, size = [], 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def any_over(flag: bool, world: World) -> bool:
    """Whether the flag is set in any process."""
    return bool(largest_over(int(flag), world))


def largest_over(number: int, world: World) -> int:
    """The largest of the processes' numbers."""
    if world.size == 1:
        return number
    import torch
    from torch import distributed

    box = torch.tensor(number)
    _reduce(box, distributed.ReduceOp.MAX, world)
    return int(box.item())


def _reduce(tensor: Tensor, operation, world: World) -> None:
    """Replaces the tensor by what the operation makes of all processes' ones."""
    from torch import distributed

    by_gloo = tensor.device.type == "cpu"
    with _asking(world):
        work = distributed.all_reduce(tensor, operation, async_op=by_gloo)
        if by_gloo:
            _said[:] = [work]
            work.wait()


def broadcast_object(value: Any, world: World) -> Any:
    """The leader's value, in every process; what the others pass does not matter."""
    if world.size == 1:
        return value
    import torch
    from torch import distributed

    box = [value]
    with _asking(world):
        distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def barrier(world: World) -> None:
    """Waits until every process has come here."""
    any_over(False, world)
