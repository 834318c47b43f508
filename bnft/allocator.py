"""Keeps freed memory in the process: on a CPU a model works in large blocks that come and go.

glibc hands each freed block of over 32 MiB back to the system and gets it anew page by page. Generating 24 tokens for
24 rows of the embedded model cost 1.3 million page faults so, and none with the memory kept (benchmarks/README.md).
Knows nothing about models.
"""

from __future__ import annotations

import ctypes
import sys

# Option numbers of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_UP_TO = 1 << 30


def keep_freed_memory() -> bool:
    """Tells glibc to reuse freed blocks of up to 1 GiB; elsewhere does nothing. Returns whether it took effect."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEEP_UP_TO) and mallopt(_M_TRIM_THRESHOLD, _KEEP_UP_TO))
