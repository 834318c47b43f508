"""Memory that comes back: glibc's settings for programs that work in large blocks, or in many threads.

Knows nothing about models.
"""

from __future__ import annotations

import ctypes
import sys

# Option numbers of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEEP_UP_TO = 1 << 30
_ARENAS = 2


def keep_freed_memory() -> bool:
    """Tells glibc to reuse freed blocks of up to 1 GiB; elsewhere does nothing. Returns whether it took effect.

    It hands each freed block of over 32 MiB back to the system and gets it anew page by page. Generating 24 tokens for
    24 rows of the embedded model cost 1.3 million page faults so, and none with the memory kept
    (benchmarks/README.md).
    """
    return _told({_M_MMAP_THRESHOLD: _KEEP_UP_TO, _M_TRIM_THRESHOLD: _KEEP_UP_TO})


def share_freed_memory() -> bool:
    """Tells glibc that all threads take memory from two pools, not each eight for a core with its own leftovers.

    To be called before threads begin. Returns whether it took effect.
    """
    return _told({_M_ARENA_MAX: _ARENAS})


def _told(options: dict[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is None:
        return False
    return all(mallopt(option, value) for option, value in options.items())
