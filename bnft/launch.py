"""One process a GPU from plain `python train.py`: each runs the same command line, as a part of one world.

Starting, watching and ending processes is done by torchrun's elastic launcher; what it lacks is here: an interrupted
run may take its time to save a checkpoint, and its exit status reaches the caller. Knows nothing about training.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress

from bnft.config import REPOSITORY, from_environment
from bnft.errors import ENVIRONMENT
from bnft.world import LOST

HOST = "127.0.0.1"
POLL = 0.2  # seconds
OWN = "BNFT_LAUNCHER"  # set in the processes that were started here
HANDLED = (signal.SIGINT, signal.SIGTERM)


def launch_training(arguments: Sequence[str], processes: int) -> int:
    """Runs `train.py` with these arguments in so many processes, one a GPU."""
    return launch([str(REPOSITORY / "train.py"), *arguments], processes)


def launch(command: Sequence[str], processes: int) -> int:
    """Runs a Python command line in so many processes on this machine and returns its exit status.

    Ctrl+C and SIGTERM go on to every process, and the status is then 130 or 143. When a process fails, the others are
    ended; it has told itself what went wrong, unless it was killed.
    """
    from torch.distributed import TCPStore
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes

    # each failure is told once: by the process that failed, or below
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)  # port 0: any that is free
    environments = {rank: _environment(rank, processes, store.port) for rank in range(processes)}
    arguments = dict.fromkeys(range(processes), tuple(command))
    with tempfile.TemporaryDirectory() as logs, _handlers_kept():
        context = start_processes("train", sys.executable, arguments, environments, DefaultLogsSpecs(logs))
        passed = _pass_signals_on(context.pids().values())
        try:
            result = context.wait(period=POLL)
        finally:
            context.close()
    if passed:
        return 128 + passed[0]
    if not result.is_failed():
        return 0
    failures = sorted(result.failures.values(), key=lambda failure: failure.exitcode == LOST)  # else as they were seen
    first = failures[0]
    if first.exitcode > 0:  # it has told why, and the others were ended because of it
        return first.exitcode
    print(
        f"error: process {first.local_rank} of {processes} was ended by {signal.Signals(-first.exitcode).name}, and "
        "so the others were\n  Where nobody did that, the machine's memory may have run out (dmesg tells). Go on with "
        "python train.py --resume RUN.",
        file=sys.stderr,
    )
    return ENVIRONMENT


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun tells a process, apart from what only several hosts need."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_RUN_ID": "bnft",
        "OMP_NUM_THREADS": from_environment("OMP_NUM_THREADS") or str(threads),
        OWN: "1",
    }


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Gives the signals back to whom they belonged: `start_processes` takes them for good."""
    numbers = (*HANDLED, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pass_signals_on(processes: Collection[int]) -> list[int]:
    """Sends Ctrl+C and SIGTERM on to the processes from now on; returns the list in which such signals are noted."""
    passed: list[int] = []

    def handle(number, frame) -> None:
        passed.append(number)
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, number)

    for number in HANDLED:
        signal.signal(number, handle)
    return passed


def follow_launcher() -> None:
    """Ends this process with its launcher, so that nothing writes on into a run that somebody else resumes."""
    if from_environment(OWN):
        end_with_parent()


def end_with_parent() -> None:
    """From now on this process is killed when the one that started it ends, in whatever way."""
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG, prctl(2)
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
