"""Rows of bnft/rows.py for replies that nobody waits for: prompts are read many at a time, and the best token is taken.

A step is recorded when its size first occurs. The first time is the step itself, so that nothing is done in vain.
Knows nothing about who sits where, when a reply ends, or how many rows a GPU has room for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from bnft.adapters import AdapterSwitch
from bnft.rows import Rows

_MOST_LENGTHS, _LENGTH_STEP = 16, 64  # lengths of the cache that are recorded: reading half of it costs half


class GreedySampler:
    """The best token of each row; nothing is sorted, which for hundreds of rows takes longer than the model.

    Args:
        penalty: above 1 makes tokens less likely that the reply holds already.
    """

    def __init__(self, rows: int, vocabulary: int, context: int, device: torch.device, penalty: float) -> None:
        self._penalty = penalty
        self.state: tuple[torch.Tensor, ...] = ()
        if penalty != 1:
            self.state = (torch.zeros(rows, vocabulary, dtype=torch.bool, device=device),)

    def open(self, rows: torch.Tensor) -> None:
        """Begins replies."""
        for seen in self.state:
            seen.index_fill_(0, rows, False)

    def choose(self, scores: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Tokens (n, 1) for the first n rows; scores are (n, vocabulary), float32."""
        for seen in self.state:
            weakened = torch.where(scores > 0, scores / self._penalty, scores * self._penalty)
            scores = torch.where(seen[: len(scores)], weakened, scores)
        chosen = scores.argmax(-1, keepdim=True)
        for seen in self.state:
            seen[: len(scores)].scatter_(1, chosen, True)
        return chosen


class BatchRows(Rows):
    """Seats 0 to `seats` - 1, each for one reply after the other.

    Args:
        adapter: whether the adapter is on, for all rows.
        penalty: the repetition penalty of all rows.
    """

    def __init__(
        self,
        body: nn.Module,
        head: nn.Module,
        switch: AdapterSwitch,
        cap: float | None,
        seats: int,
        context: int,
        adapter: bool = True,
        penalty: float = 1.0,
    ) -> None:
        self._adapter = switch.on = adapter
        # The row in which a chat's prompts are read is a seat here.
        super().__init__(body, head, switch, cap, seats - 1, context, partial(GreedySampler, penalty=penalty))
        self.seats = seats
        if self._stream:  # what was made so far was made on another
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def seat(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> None:
        """Replies to the prompts begin in the rows; each prompt's last token is left to the first step."""
        width = max(len(prompt) for prompt in prompts) - 1
        width = min(-(-width // 16) * 16, self.context)  # attention kernels like round numbers
        with torch.cuda.stream(self._stream):
            numbers = self._sent(rows)
            for part in self._parts():
                part.index_fill_(0, numbers, 0)  # a broken number left by an earlier reply would reach this one
            self._sampler.open(numbers)
            self._ids[numbers, 0] = self._sent([prompt[-1] for prompt in prompts])
            self._positions[numbers, 0] = self._sent([len(prompt) - 1 for prompt in prompts])
            if width:
                # What fills a shorter prompt stands behind it, and the reply writes over it.
                ids = [[*prompt[:-1], *[0] * (width + 1 - len(prompt))] for prompt in prompts]
                self._forward(self._sent(ids), self._steps[:width][None], numbers, None)

    def settle(self) -> None:
        """Waits for the device, so that the rows may be given up."""
        if self._stream:
            self._stream.synchronize()

    def _adapters(self, rows: slice | torch.Tensor) -> bool:
        return self._adapter

    def _run(self, work: Callable[[int, int], None], size: int, reach: int) -> None:
        length = next(n for n in self._lengths() if n >= min(reach, self.context))
        key = (work.__name__, size, length)
        if not self._stream:
            work(size, length)
        elif key in self._graphs:
            self._graphs[key].replay()
        else:
            self._graphs[key] = self._recorded(work, size, length)

    def _counts(self) -> list[int]:
        counts = [1]
        while counts[-1] < self.seats:
            counts.append(min(2 * counts[-1], self.seats))
        return counts

    def _lengths(self) -> list[int]:
        step = max(_LENGTH_STEP, self.context // _MOST_LENGTHS // 64 * 64)
        return [*range(step, self.context, step), self.context]
