"""A larger GPU that acts like a Tesla T4: its memory, and no attention kernels that it lacks; use float16 with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

T4_GIB = 14.74


@contextlib.contextmanager
def like_a_t4(really: bool = True) -> Iterator[None]:
    """For all GPUs of this process; where there is none, or `really` is false, nothing changes."""
    import torch

    if not (really and torch.cuda.is_available()):
        yield
        return
    torch.cuda.empty_cache()
    kernels = (torch.backends.cuda.enable_flash_sdp, torch.backends.cuda.enable_cudnn_sdp)
    gpus = range(torch.cuda.device_count())
    for gpu in gpus:
        total = torch.cuda.get_device_properties(gpu).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(T4_GIB / total, gpu)
    for enable in kernels:
        enable(False)
    try:
        yield
    finally:
        for enable in kernels:
            enable(True)
        for gpu in gpus:
            torch.cuda.set_per_process_memory_fraction(1.0, gpu)
