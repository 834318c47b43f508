"""What a GPU has room for beside the weights: layers that keep what the backward pass needs, and rows of replies.

Gradient checkpointing computes every layer a second time. A pass that leaves room need not: its last layers keep what
they computed, the more of them the fewer tokens it has. Knows nothing about models, GPUs' names or the training loop.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bnft.memory_plan import Memory, Method, ModelFacts, memory_of, usable

# Of what the allocator can give out: what a layer keeps is a formula, 3 % below what was measured, and passes that are
# all of other sizes leave gaps. At 0.95 memory ran out once in twelve steps.
FILLED = 0.9
FOR_REPLIES = 0.82  # of what the weights leave free; measured like a T4: 120 rows of 448 positions, 176 of 320


@dataclass(frozen=True)
class Room:
    """Args:
    memory: of the GPU, every layer computed again.
    whole: the same, nothing computed again.
    layers: of the model.
    size: bytes that the allocator can give out.
    """

    memory: Memory
    whole: Memory
    layers: int
    size: int

    def keeping(self, layers: int) -> Memory:
        """With so many last layers that are not computed again.

        Their activations are all there when the backward pass begins. They are gone when it comes to the others, of
        which one at a time is computed again: that takes no more than the first moment does with a single kept layer.
        """
        if not layers:
            return self.memory
        share = layers / self.layers

        def between(name: str) -> int:
            again, kept = getattr(self.memory, name), getattr(self.whole, name)
            return round(again + (kept - again) * share)

        return replace(self.whole, kept=between("kept"), kept_table=between("kept_table"))

    def kept_layers(self, shape: tuple[int, int, int]) -> int:
        """How many may keep theirs in a pass of such a shape, as `shape_of` tells it."""
        room = FILLED * self.size
        return bisect_right(range(1, self.layers + 1), room, key=lambda kept: self.keeping(kept).peak(*shape))

    def smaller(self, shape: tuple[int, int, int]) -> Room:
        """With room for three quarters of the layers, at most, that a pass of this shape has just kept in vain."""
        too_many = self.kept_layers(shape) * 3 // 4 + 1
        return replace(self, size=int((self.keeping(too_many).peak(*shape) - 1) / FILLED))

    def peak(self, shape: tuple[int, int, int]) -> int:
        return self.keeping(self.kept_layers(shape)).peak(*shape)

    def computed_again(self, shapes: Sequence[tuple[int, int, int]]) -> float:
        """Share of the layers' work in all these passes that gradient checkpointing does twice."""
        tokens = sum(shape[0] for shape in shapes)
        return 1 - sum(shape[0] * self.kept_layers(shape) for shape in shapes) / self.layers / tokens


def shape_of(lengths: Sequence[int], packed: bool) -> tuple[int, int, int]:
    """(tokens, longest, rows) of a pass, filling included."""
    longest = max(lengths)
    return (sum(lengths) if packed else longest * len(lengths), longest, len(lengths))


def reply_rows(facts: ModelFacts, method: Method, free: int, positions: int) -> int:
    """How many replies, prompt and all of so many positions, can be written at a time on one GPU."""
    row = positions * 2 * facts.layers * facts.key_value_heads * facts.head_size * method.element
    return max(1, int(FOR_REPLIES * (usable(free) - memory_of(facts, method).weights) / row))
