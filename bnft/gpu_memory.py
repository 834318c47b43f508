"""How much of a GPU's memory is free, and work in batches that shrink where it was less than it seemed.

Knows nothing about what the work is.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import nn

from bnft.errors import UserError, first_line
from bnft.rows import bytes_per_row
from bnft.streaming import causal_part

Item = TypeVar("Item")
ENOUGH_TOKENS = 32_768  # keep any GPU busy; a larger batch only pads more
USED = 0.6  # share of the free memory that batches are planned for: the libraries and what lies in pieces take the rest


def free_bytes(device: torch.device) -> int:
    """What may still be allocated on a GPU, within this process' share of it."""
    free, total = torch.cuda.mem_get_info(device)
    reserved, allocated = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
    # torch 2.6 can set a share and not tell it; without one it is the whole
    share = getattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)(device)
    return min(free + reserved, int(share * total)) - allocated


def release_gpu() -> None:
    """Gives back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def read_bytes(model: nn.Module) -> int:
    """What a token takes while it is read, without its keys and values.

    Estimated: inputs and outputs of the widest layers, gate and up at the same time, and PEFT's copies in float32.
    """
    sizes = [
        (module.in_features, module.out_features)
        for module in model.get_decoder().modules()
        if hasattr(module, "in_features")
    ]
    return 4 * 4 * max((sum(pair) for pair in sizes), default=1)


def batch_costs(model: nn.Module, rows: int) -> tuple[Callable[[int, int], int], int]:
    """What a row of so many tokens read, and so many written, costs, and what a batch may cost: bytes on a GPU.

    Args:
        rows: a batch on a CPU, where memory is no matter.
    """
    causal = causal_part(model)
    devices = {parameter.device for parameter in causal.parameters() if parameter.is_cuda}
    if not devices:
        return lambda read, written: 1, rows
    reading, keeping = read_bytes(causal), bytes_per_row(causal.get_decoder(), 1)
    most = int(USED * len(devices) * min(free_bytes(device) for device in devices))
    most = min(most, ENOUGH_TOKENS * (reading + keeping))
    return lambda read, written: read * reading + (read + written) * keeping, most


def forget(error: BaseException) -> None:
    """Gives back what work that ran out of memory holds."""
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # what was launched may still be writing there
        torch.cuda.empty_cache()


def in_batches(
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], None],
    cost: Callable[[Item], int],
    most: int,
    announce: Callable[[str], None] = print,
) -> None:
    """Does the work for all items, in batches that cost at most `most`, and half of it each time the GPU is full.

    Args:
        items: the dearest first; what a batch costs is the number of its items times the cost of the first.
        work: done again, for half of them, where it ran out of memory; it must leave nothing behind then.

    Raises:
        UserError: one item alone has no room.
    """
    start = 0
    while start < len(items):
        batch = items[start : start + max(1, most // cost(items[start]))]
        try:
            work(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise too_long(error) from error
            forget(error)
            most = len(batch) // 2 * cost(batch[0])
            announce(f"the GPU's memory is full with {len(batch)} rows at a time; going on with {len(batch) // 2}")
        else:
            start += len(batch)


def too_long(error: BaseException) -> UserError:
    return UserError(
        f"one row alone has no room on the GPU: {first_line(error)}",
        "Lower --generation.max_new_tokens, close other programs on the GPU, or use --model.load_in_4bit true.",
        exit_code=1,
    )
