"""A run's passes, made to fit its GPUs: how large they are, and what of them is computed again for the backward pass.

Knows lengths, settings, bytes and operations, nothing about files or weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, islice

from bnft.memory_plan import Memory, Method, ModelFacts, memories, memory_of, token_budget, usable
from bnft.placement import Placement, step_rows
from bnft.room import FILLED, Room, shape_of
from bnft.settings import RunConfig
from bnft.speed_plan import seconds_of_passes, sustained
from bnft.steps import StepSampler, micro_batches, shares

TRIED = 64  # optimizer steps that passes of several sizes are tried on
MOST_PASSES = 12  # that the largest one is divided into


@dataclass(frozen=True)
class Fit:
    """How GPUs' memory is used.

    Attributes:
        method: without gradient checkpointing where there is room for that.
        parts: for each optimizer step each process' conversations, by their lengths.
        memory: of each GPU.
        pass_rows: the most conversations of a pass.
        pass_tokens: the most tokens of a pass; None where the settings alone bound it.
        packing: whether conversations share a pass without padding.
        room: where each process has the whole model on a GPU of its own, too small for whole steps of which nothing is
            computed again.
    """

    method: Method
    parts: list[list[list[int]]]
    memory: list[Memory]
    pass_rows: int
    packing: bool
    pass_tokens: int | None = None
    room: Room | None = None

    @cached_property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Of each pass, as `shape_of` tells them."""
        found = []
        for lengths in (part for step in self.parts for part in step):
            passes = micro_batches(lengths, self.pass_tokens or math.inf, self.pass_rows, padded=not self.packing)
            found += [shape_of([lengths[i] for i in own], self.packing) for own in passes]
        return found

    @property
    def peaks(self) -> tuple[int, ...]:
        """Bytes of each GPU."""
        if self.room:
            return (max(map(self.room.peak, self.shapes)),) * len(self.memory)
        return tuple(max(memory.peak(*shape) for shape in self.shapes) for memory in self.memory)

    @property
    def again(self) -> float:
        """Share of the layers' work that is done a second time for the backward pass."""
        if self.method.checkpointing == "none":
            return 0.0
        return self.room.computed_again(self.shapes) if self.room else 1.0


def fit_passes(
    config: RunConfig,
    facts: ModelFacts,
    method: Method,
    placement: Placement,
    lengths: Sequence[int],
    steps: int,
    free: Sequence[int],
) -> Fit:
    """Passes as large as GPUs take them; smaller ones where that is quicker, since less is computed again in them.

    Args:
        lengths: tokens of each conversation.
        free: bytes of each GPU.
    """
    way, packing = placement.way, config.train.packing
    parts = list(islice(_steps(config, lengths, placement.processes), steps))
    if not (free and config.train.fit_batch):
        memory = memories(facts, method, way, max(1, len(free)))
        return Fit(method, parts, memory, config.train.batch_size, packing)
    own = [part for step in parts for part in step if part]
    most, rows = max(map(sum, own)), max(map(len, own))
    widest = most if packing else max(max(part) * len(part) for part in own)
    unchecked = replace(method, checkpointing="none")
    if way != "fsdp" and _has_room_for_all(facts, method, way, free, widest, max(lengths), rows):
        method = unchecked
    memory = memories(facts, method, way, len(free))
    budgets = [token_budget(part, size, max(lengths), rows, most) for part, size in zip(memory, free, strict=True)]
    room = None
    if way in ("single", "ddp") and method != unchecked:
        room = Room(memory[0], memory_of(facts, unchecked), facts.layers, usable(min(free)))
    fit = Fit(method, parts, memory, step_rows(config), packing, min(budgets), room)
    return _quickest(fit, facts, sustained(placement.gpus[0].name, placement.gpus[0].capability)[0], max(lengths))


def _quickest(fit: Fit, facts: ModelFacts, rate: float, longest: int) -> Fit:
    """With passes of the size that takes the least time by the plan's own formula, the largest first."""
    if not fit.room or not fit.pass_tokens:
        return fit
    few = replace(fit, parts=fit.parts[:TRIED])
    sizes = dict.fromkeys(max(longest, fit.pass_tokens // number) for number in range(1, MOST_PASSES + 1))
    tried = [replace(few, pass_tokens=size) for size in sizes]

    def seconds(fit: Fit) -> float:
        return seconds_of_passes(facts, rate, len(fit.shapes), sum(shape[0] for shape in fit.shapes), fit.again)

    return replace(fit, pass_tokens=min(tried, key=seconds).pass_tokens)


def _has_room_for_all(
    facts: ModelFacts, method: Method, way: str, free: Sequence[int], tokens: int, longest: int, rows: int
) -> bool:
    """Whether the GPUs' free bytes take a pass of so many tokens without computing anything again."""
    parts = memories(facts, replace(method, checkpointing="none"), way, len(free))
    peaks = (part.peak(tokens, longest, rows) for part in parts)
    return all(peak <= FILLED * usable(size) for peak, size in zip(peaks, free, strict=True))


def step_tokens(config: RunConfig, lengths: Sequence[int], steps: int) -> list[int]:
    """Tokens of the first optimizer steps of the run."""
    return [sum(sum(part) for part in step) for step in islice(_steps(config, lengths, 1), steps)]


def _steps(config: RunConfig, lengths: Sequence[int], processes: int) -> Iterator[list[list[int]]]:
    """For each optimizer step each process' conversations, by their lengths: as the trainer takes them."""
    sampler = StepSampler(len(lengths), step_rows(config), config.seed)
    for epoch in count():
        sampler.set_epoch(epoch)
        for step in sampler:
            taken = [lengths[i] for i in step]
            yield [[taken[i] for i in part] for part in shares(taken, processes)]
