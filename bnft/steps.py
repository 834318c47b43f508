"""Which rows an optimizer step takes, which process of several takes which of them, and in how many passes.

The trainer follows it and the plan counts it. Knows lengths alone, nothing about texts, tensors or models.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator, Sequence


class StepSampler:
    """The rows of each optimizer step, shuffled by seed and epoch alone, so that a resumed run goes on with its own."""

    def __init__(self, rows: int, size: int, seed: int):
        self.rows, self.size, self.seed, self.epoch = rows, size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.rows / self.size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self.rows))
        random.Random(f"{self.seed}-{self.epoch}").shuffle(order)
        for start in range(0, self.rows, self.size):
            yield order[start : start + self.size]


def shares(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Indices of rows in `count` parts with about equally many tokens: the longest row first, to the smallest part.

    Longest processing time first, R. L. Graham, "Bounds on Multiprocessing Timing Anomalies", 1969.
    """
    parts: list[list[int]] = [[] for _ in range(count)]
    sizes = [(0, part) for part in range(count)]
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        size, part = heapq.heappop(sizes)
        parts[part].append(row)
        heapq.heappush(sizes, (size + lengths[row], part))
    return parts


def micro_batches(lengths: Sequence[int], tokens: float, rows: int, padded: bool) -> list[list[int]]:
    """Indices of rows in as few passes as the bounds allow; a longer row gets a pass of its own.

    Args:
        tokens: most tokens of a pass, filling included.
        rows: most rows of a pass.
    """
    if padded:
        parts: list[list[int]] = []
        for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            width = lengths[parts[-1][0]] if parts else 0
            if parts and len(parts[-1]) < rows and width * (len(parts[-1]) + 1) <= tokens:
                parts[-1].append(row)
            else:
                parts.append([row])
        return parts
    least = max(1, math.ceil(len(lengths) / rows), math.ceil(sum(lengths) / tokens) if lengths else 0)
    for count in range(least, len(lengths)):
        parts = shares(lengths, count)
        if all(len(part) <= rows and (len(part) == 1 or sum(lengths[i] for i in part) <= tokens) for part in parts):
            return parts
    return [[row] for row in range(len(lengths))]
