"""Replies on ZeroGPU, the hardware of a Space to which a GPU is lent for the seconds of one call.

The library `spaces` makes the main process believe in a GPU: weights are put "on" it at the start, and every call of a
decorated function is made in a process forked from this one, to which the weights are really moved; only there may
CUDA be touched. What is yielded there comes back through a queue. Anywhere else nothing here has any effect.
Knows nothing about prompts, people or pages.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib.util import find_spec

from bnft.config import from_environment
from bnft.line import LineFull
from bnft.streaming import Engine, Piece, Sampling

START_SECONDS, SECONDS_A_TOKEN = 20, 0.06  # of 8B in 16 bit on an H200: 16 GB to move, then half of this a token
# The titles with which `spaces` tells that something broke; with all others there is no GPU or quota left just now.
BROKEN = ("ZeroGPU worker error", "ZeroGPU illegal duration")


def is_zero_gpu() -> bool:
    """Whether this process runs on ZeroGPU, told as `spaces` tells it."""
    return from_environment("SPACES_ZERO_GPU").lower() in ("1", "t", "true") and find_spec("spaces") is not None


def first_device() -> str | None:
    """Where weights are loaded to; None where that is for the model's loader to choose.

    On ZeroGPU the belief in a GPU begins here, in this thread alone: the loader's own threads would not share it.
    """
    if not is_zero_gpu():
        return None
    import spaces  # noqa: F401

    return "cpu"


class LentEngine:
    """Streams replies of one model, each from a GPU that is lent for it; made before the page is launched.

    Attributes:
        seats: replies at a time. Whoever waits for a GPU holds a thread and cannot be stopped, so it is few: the others
            wait in the page's line, which they can leave.
    """

    seats = 4
    note = "a GPU is lent for each reply"

    def __init__(self, model, tokenizer, end_ids: Sequence[int]) -> None:
        import spaces

        model.to("cuda")

        def write(prompt_ids: list[int], sampling: Sampling, base: bool) -> Iterator[Piece]:
            yield from Engine(model, tokenizer, end_ids).stream(prompt_ids, sampling, base=base)

        self._write = spaces.GPU(duration=seconds_for)(write)

    def stream(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        stop: threading.Event | None = None,
        base: bool = False,
    ) -> Iterator[Piece]:
        """As `Engine.stream`.

        An event does not reach the other process, but closing the generator does: it ends there within one token's
        time, and the GPU is given back. A stop that comes while a GPU is waited for takes effect when that is over.

        Raises:
            LineFull: there is no GPU, or the visitor's quota is used up.
            RuntimeError: the other process failed, or the GPU was taken back before the reply was over.
        """
        stop = stop or threading.Event()
        if stop.is_set():
            yield Piece("", 0, "stopped")
            return
        with _lending_errors(), closing(self._write(list(prompt_ids), sampling, base)) as pieces:
            for piece in pieces:
                if stop.is_set() and not piece.finish_reason:
                    yield replace(piece, finish_reason="stopped")
                    return
                yield piece

    def close(self) -> None:
        """Nothing to end: the library ends its processes with this one."""


def seconds_for(prompt_ids: Sequence[int], sampling: Sampling, base: bool) -> int:
    """The longest that a reply may take; who asks for less waits less, and keeps more of a day's quota."""
    return START_SECONDS + math.ceil(sampling.max_new_tokens * SECONDS_A_TOKEN)


@contextmanager
def _lending_errors() -> Iterator[None]:
    """Errors of the lending as the chat knows them."""
    import gradio as gr
    import httpx

    try:
        yield
    except gr.Error as error:
        if error.title in BROKEN:
            raise RuntimeError(f"{error.title}: {error.message}") from error
        raise LineFull from error
    except httpx.HTTPError as error:
        raise RuntimeError(f"no answer from ZeroGPU: {error}") from error
