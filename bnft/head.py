"""The output head's product with hidden states: on a CPU in slices, and the way round that is fast there.

With few tokens, `weight @ hidden.T` in slices that stay in the processor's cache takes half the time of
`hidden @ weight.T` (benchmarks/head.py). Knows nothing about what the scores are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

SLICE = 2048  # rows of the head in one product on a CPU: 5 MiB of Gemma's
_LARGE = 32_768  # rows; below, the difference is not worth a step


def products(weight: torch.Tensor, hidden: torch.Tensor, out: torch.Tensor) -> Iterator[torch.Tensor]:
    """Writes `weight @ hidden.T`, (rows, tokens), into `out`, and yields it part by part, (some rows, tokens)."""
    size = SLICE if hidden.is_cpu else len(weight)
    for rows, part in zip(weight.split(size), out.split(size), strict=True):
        yield torch.mm(rows, hidden.T, out=part)


@contextmanager
def head_replaced(model, compute: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[torch.nn.Module]:
    """While open, the model's head, which is given, computes what `compute` makes of the hidden states."""
    head = model.get_output_embeddings()
    forward = head.forward
    head.forward = compute
    try:
        yield head
    finally:
        head.forward = forward


@contextmanager
def sliced_head(model) -> Iterator[None]:
    """While open, a large head without bias on a CPU computes its logits by `products`."""
    head = model.get_output_embeddings()
    plain = type(head) is torch.nn.Linear and head.bias is None
    if not (plain and head.weight.is_cpu and len(head.weight) >= _LARGE):
        yield
        return

    own = head.forward

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        tokens = hidden.flatten(0, -2)
        if len(tokens) == 1:  # weights are read once either way
            return own(hidden)
        scores = tokens.new_empty(len(head.weight), len(tokens))
        for _ in products(head.weight, tokens, scores):
            pass
        return scores.T.contiguous().view(*hidden.shape[:-1], -1)

    with head_replaced(model, logits):
        yield
