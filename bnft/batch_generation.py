"""Greedy replies to many prompts on one GPU: as many rows at a time as have room, a finished one's place taken at once.

Prompts come longest first, in groups of like length: shorter ones get more rows. Where memory runs out after all, the
replies in hand are begun again with fewer rows. Knows nothing about text, files or processes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch

from bnft.adapters import AdapterSwitch, is_adapted, is_off, switched_copy
from bnft.batch_rows import BatchRows
from bnft.gpu_memory import forget, free_bytes, read_bytes, too_long
from bnft.gpu_weights import packed_layers, unpack, unpacked_bytes
from bnft.rows import Flight, bytes_per_row
from bnft.streaming import causal_part, score_cap

MOST_ROWS = 256  # beyond, a step's arithmetic takes longer than the reading of the weights, and little is won
_IN_PIECES = 0.08  # share of the free memory that lies in pieces too small to be used
_STEP_MEMORY = 1 << 30  # a step's scores, a layer unpacked, recordings, the libraries' own
_PROMPT_TOKENS = 2048  # read in one pass; fewer would take a GPU less time than their launch
_REFILL = 8  # an eighth of the seats is free before prompts are read: one takes as long as a few together
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Job:
    """What is asked for.

    Attributes:
        prompts: token ids.
        limit: the most tokens of a reply.
        penalty: the repetition penalty.
        ready: told each reply once, as soon as it is whole: the prompt's number, the tokens without the end token,
            whether there was one, and the reply's share of the time, divided among those written at the same time.
    """

    prompts: Sequence[Sequence[int]]
    end_ids: frozenset[int]
    limit: int
    penalty: float
    ready: Callable[[int, list[int], bool, float], None]

    def positions(self, number: int) -> int:
        """What the prompt and its reply may take, as a multiple of 64."""
        return -(-(len(self.prompts[number]) + self.limit) // 64) * 64


def has_rows(model) -> bool:
    """Whether the model can write by rows here: all of it on one GPU, a plain adapter, attention as in bnft/rows.py."""
    causal = causal_part(model)
    devices = {parameter.device for parameter in causal.parameters()}
    if len(devices) != 1 or next(iter(devices)).type != "cuda" or is_adapted(causal.get_output_embeddings()):
        return False
    if set(getattr(causal.config.get_text_config(), "layer_types", None) or ()) - _KNOWN_LAYERS:
        return False
    body = causal.get_decoder()
    if any(getattr(module.forward, "__module__", "").startswith("unsloth") for module in body.modules()):
        return False  # its layers have a cache and an attention of their own
    return switched_copy(body, AdapterSwitch()) is not None


class BatchWriter:
    """Writes the replies of one model, whose adapter is on or off as it is now.

    Args:
        model: as `has_rows` wants it; on a CPU the same steps run.
        seats: the most rows at a time.
        memory: bytes for rows; what is free where none are given.
        packed: leave 4-bit weights packed where there is room for a 16-bit copy, too.
    """

    def __init__(
        self,
        model,
        seats: int = MOST_ROWS,
        memory: int | None = None,
        packed: bool = False,
        announce: Callable[[str], None] = print,
    ) -> None:
        self._causal = causal_part(model)
        self._seats, self._memory, self._packed, self._announce = seats, memory, packed, announce
        self._adapter = not is_off(model)
        self._switch = AdapterSwitch()
        self._switch.on = self._adapter
        self._body: torch.nn.Module | None = None
        self._per_position = bytes_per_row(self._causal.get_decoder(), 1)

    @torch.inference_mode()
    def write(self, job: Job) -> None:
        """All replies.

        Raises:
            UserError: one row alone has no room.
        """
        waiting = deque(sorted(range(len(job.prompts)), key=lambda number: len(job.prompts[number]), reverse=True))
        while waiting:
            memory, context = self._room(len(job.prompts[waiting[0]])), job.positions(waiting[0])
            most, group = self._seats_in(memory, context), _Group(job)
            while waiting and self._seats_in(memory, job.positions(waiting[0])) < 2 * most:
                group.waiting.append(waiting.popleft())
            seats = min(most, len(group.waiting))
            try:
                group.write(self._rows(job, seats, context))
            except torch.OutOfMemoryError as error:
                if seats == 1 and self._is_packed:
                    raise too_long(error) from error
                forget(error)
                self._shrink(seats, context)
                waiting.extendleft(reversed(group.unfinished()))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        self._body = None

    @property
    def _is_packed(self) -> bool:
        """Whether there is no 16-bit copy to give up."""
        return self._packed or not packed_layers(self._causal.get_decoder())

    def _room(self, prompt: int) -> int:
        """Bytes for rows, where prompts have at most so many tokens."""
        if self._memory is not None:
            return self._memory
        if self._causal.device.type != "cuda":
            return self._seats * self._per_position << 30
        reading = max(_PROMPT_TOKENS, prompt) * read_bytes(self._causal)
        return int((1 - _IN_PIECES) * free_bytes(self._causal.device)) - _STEP_MEMORY - reading

    def _seats_in(self, memory: int, context: int) -> int:
        """How many rows of so many positions fit; from 8 on a multiple of 8."""
        seats = max(1, min(self._seats, memory // (context * self._per_position)))
        return seats if seats < 8 else seats // 8 * 8

    def _rows(self, job: Job, seats: int, context: int) -> BatchRows:
        if self._body is None:
            body = switched_copy(self._causal.get_decoder(), self._switch)
            copied = unpacked_bytes(body)
            if not self._packed and copied and self._causal.device.type == "cuda":
                room = (1 - _IN_PIECES) * free_bytes(self._causal.device) - 2 * _STEP_MEMORY
                self._packed = copied + seats * context * self._per_position > room
            if copied and not self._packed:
                unpack(body)
            self._body = body
            weights = ", 4-bit weights " + ("left packed" if self._packed else "unpacked to 16 bit") if copied else ""
            self._announce(f"replies: {seats} rows at a time of up to {context} tokens{weights}")
        head, cap = self._causal.get_output_embeddings(), score_cap(self._causal)
        return BatchRows(self._body, head, self._switch, cap, seats, context, self._adapter, job.penalty)

    def _shrink(self, seats: int, context: int) -> None:
        """After memory ran out with so many rows."""
        told = f"the GPU's memory is full with {seats} rows at a time"
        if self._is_packed:
            self._memory = seats // 2 * context * self._per_position
            self._announce(f"{told}; going on with {seats // 2}")
        else:
            self._packed, self._body = True, None
            self._announce(f"{told}; going on with packed weights")


@dataclass
class _Seat:
    """A reply that is being written.

    Attributes:
        asked: tokens that the device was told to compute; more than there are tokens, while some are on their way.
    """

    number: int
    length: int
    since: float
    asked: int = 0
    tokens: list[int] = field(default_factory=list)
    over: bool = False


class _Group:
    """Replies in rows of the same size, whose prompts wait in falling order of length."""

    def __init__(self, job: Job) -> None:
        self.waiting: deque[int] = deque()
        self._job = job
        self._seated: list[_Seat] = []  # the reply in each row, from row 0 on
        self._now, self._share = time.monotonic(), 0.0

    def unfinished(self) -> list[int]:
        """Numbers of the prompts without a whole reply, longest first."""
        return [seat.number for seat in self._seated if not seat.over] + list(self.waiting)

    def write(self, rows: BatchRows) -> None:
        flight: tuple[Flight, list[tuple[int, _Seat]]] | None = None
        while self.waiting or flight or not all(seat.over for seat in self._seated):
            self._fill(rows)
            ahead = self._step(rows)
            if flight:  # told while the device computes the next tokens
                self._tell(*flight)
            flight = ahead
        rows.settle()

    def _fill(self, rows: BatchRows) -> None:
        """The next prompts take the places of finished replies; where none waits, the rows in use close up."""
        if not self.waiting:
            self._close_up(rows)
            return
        free = [row for row, seat in enumerate(self._seated) if seat.over] + [*range(len(self._seated), rows.seats)]
        if len(free) < rows.seats // _REFILL:
            return
        while self.waiting and free:
            prompts = self._job.prompts
            count = min(len(free), max(1, _PROMPT_TOKENS // len(prompts[self.waiting[0]])))
            numbers = list(islice(self.waiting, count))
            places, free = free[: len(numbers)], free[len(numbers) :]
            rows.seat([prompts[number] for number in numbers], places)
            for number, row in zip(numbers, places, strict=True):
                self.waiting.popleft()
                self._seated[row : row + 1] = [_Seat(number, len(prompts[number]), self._share)]

    def _close_up(self, rows: BatchRows) -> None:
        for row in reversed(range(len(self._seated))):
            if self._seated[row].over:
                last = self._seated.pop()
                if row < len(self._seated):
                    rows.move(len(self._seated), row)
                    self._seated[row] = last

    def _step(self, rows: BatchRows) -> tuple[Flight, list[tuple[int, _Seat]]] | None:
        limit = self._job.limit
        asked = [(row, seat) for row, seat in enumerate(self._seated) if not seat.over and seat.asked < limit]
        if not asked:
            return None
        flight = rows.step(len(self._seated), max(seat.length + seat.asked for _, seat in asked))
        for _, seat in asked:
            seat.asked += 1
        return flight, asked

    def _tell(self, flight: Flight, asked: list[tuple[int, _Seat]]) -> None:
        tokens = flight.tokens()
        before, self._now = self._now, time.monotonic()
        self._share += (self._now - before) / len(asked)
        for row, seat in asked:
            if seat.over:
                continue
            ended = tokens[row] in self._job.end_ids
            if not ended:
                seat.tokens.append(tokens[row])
            seat.over = ended or len(seat.tokens) == self._job.limit
            if seat.over:
                self._job.ready(seat.number, seat.tokens, ended, self._share - seat.since)
