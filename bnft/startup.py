"""What makes a start of the chat short. Knows nothing about pages or models."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bnft.config import REPOSITORY
from bnft.crisis_classifier import kept_file
from bnft.safety import EXAMPLES, PHRASES


def fit_aside() -> Callable[[], object]:
    """Fits the crisis classifier in a process of its own, where that was never done; what is returned waits for it."""
    if kept_file(EXAMPLES, PHRASES).is_file():
        return lambda: None
    fit = "from bnft.safety import CrisisDetector; CrisisDetector.from_repository()"
    # Should it fail, it is done again in this process, and fails in the open.
    return subprocess.Popen([sys.executable, "-c", fit], cwd=REPOSITORY, stderr=subprocess.DEVNULL).wait


@contextmanager
def collector_paused() -> Iterator[None]:
    """What is imported during a start stays: looking through it again and again takes a tenth of the time."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
