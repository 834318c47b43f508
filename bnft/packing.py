"""Conversations of different lengths in one forward pass: side by side without padding, each seeing only itself.

Everything but the attention works on single tokens, so a pass runs over the rows' tokens one after the other; for the
attention alone the rows are laid under one another and filled up at their ends, where causal attention never looks.
So no kernel beyond PyTorch's own is needed, on a T4 neither, and the numbers are those of the rows by themselves.
Knows nothing about losses, optimizers or where rows come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from bnft.prompts import IGNORED
from bnft.reply_loss import reply_log_likelihoods
from bnft.streaming import causal_part

_ATTENTION = "bnft_packed"


class Packer(Protocol):
    """A way to put rows (dictionaries with `input_ids` and `labels`) into one forward pass."""

    padded: bool

    def inputs(self, rows: Sequence[Mapping], device) -> dict:
        """The model's inputs and the labels, each (rows, tokens), or (1, all tokens) where rows are packed."""

    def open(self, model):
        """A context in which the model takes such inputs, forward and backward."""


class PaddedRows:
    """Rows under one another, filled up to the longest: for models that cannot be packed."""

    padded = True

    def __init__(self, pad_id: int):
        self.pad_id = pad_id

    def inputs(self, rows: Sequence[Mapping], device) -> dict:
        width = max(len(row["input_ids"]) for row in rows)

        def tensor(columns, fill):
            return _sent([[*column, *[fill] * (width - len(column))] for column in columns], device)

        return {
            "input_ids": tensor([row["input_ids"] for row in rows], self.pad_id),
            "labels": tensor([row["labels"] for row in rows], IGNORED),
            "attention_mask": tensor([[1] * len(row["input_ids"]) for row in rows], 0),
        }

    def open(self, model):
        return nullcontext()


class UnslothPackedRows:
    """Packed rows for a model of Unsloth, which finds their borders by its own inputs.

    Its attention then goes over the rows one by one, a dozen kernels each; one call for all of them takes its place.
    """

    padded = False
    _layout: Layout

    def inputs(self, rows: Sequence[Mapping], device) -> dict:
        lengths = [len(row["input_ids"]) for row in rows]
        self._layout = Layout.of(lengths, device)
        return _joined(rows, device) | {"packed_seq_lengths": torch.tensor(lengths, dtype=torch.int32)}

    @contextmanager
    def open(self, model) -> Iterator[None]:
        names = _names_behind(causal_part(model).get_decoder().layers[0].self_attn.forward)
        before = names.get("run_attention")
        if before is None:  # another kind of model: as Unsloth does it
            yield
            return

        def run_attention(*, config, context, Q, K, V):
            if context.seq_info is None or getattr(context, "sliding_window", None):
                return before(config=config, context=context, Q=Q, K=K, V=V)
            return _attention(Q, K, V, self._layout)

        names["run_attention"] = run_attention
        try:
            yield
        finally:
            names["run_attention"] = before


class AttentionPackedRows:
    """Packed rows for models of transformers, through an attention function of this room."""

    padded = False

    def inputs(self, rows: Sequence[Mapping], device) -> dict:
        return _joined(rows, device) | {"layout": Layout.of([len(row["input_ids"]) for row in rows], device)}

    @contextmanager
    def open(self, model) -> Iterator[None]:
        config = causal_part(model).get_decoder().config
        before = config._attn_implementation
        config._attn_implementation = _ATTENTION
        try:
            yield
        finally:
            config._attn_implementation = before


class Layout(NamedTuple):
    """Where the tokens of packed rows stand when the rows lie under one another.

    Attributes:
        rows: how many there are.
        width: length of the longest.
        places: (tokens), place of each token in the flattened (rows x width) table.
    """

    rows: int
    width: int
    places: torch.Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device) -> Layout:
        width = max(lengths)
        places = torch.cat([torch.arange(length) + row * width for row, length in enumerate(lengths)])
        return cls(len(lengths), width, _sent(places, device))

    def spread(self, packed: torch.Tensor) -> torch.Tensor:
        """(1, heads, tokens, size) -> (rows, heads, width, size), zeros where a row has ended."""
        tokens = packed[0].transpose(0, 1)
        table = tokens.new_zeros(self.rows * self.width, *tokens.shape[1:]).index_copy(0, self.places, tokens)
        return table.view(self.rows, self.width, *tokens.shape[1:]).transpose(1, 2)

    def gather(self, table: torch.Tensor) -> torch.Tensor:
        """(rows, width, heads, size) -> (1, tokens, heads, size)."""
        return table.flatten(0, 1).index_select(0, self.places)[None]


def _packed_attention(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, sliding_window=None, layout=None, **kwargs
):
    return _attention(query, key, value, layout, scaling, dropout, sliding_window), None


def _attention(
    query, key, value, layout: Layout, scale: float | None = None, dropout: float = 0.0, window: int | None = None
) -> torch.Tensor:
    """Causal attention of packed rows, (1, heads, tokens, size) each -> (1, tokens, heads, size)."""
    mask = None
    if window and layout.width > window:
        steps = torch.arange(layout.width, device=query.device)
        behind = steps[:, None] - steps
        mask = ((behind >= 0) & (behind < window))[None, None]
    groups = query.shape[1] // key.shape[1]
    if layout.rows > 1:
        query, key, value = (layout.spread(part) for part in (query, key, value))
    grouped = groups > 1 and mask is None and _flash_runs(query)
    if groups > 1 and not grouped:
        key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    output = scaled_dot_product_attention(
        query, key, value, mask, dropout, is_causal=mask is None, scale=scale, enable_gqa=grouped
    ).transpose(1, 2)
    return layout.gather(output) if layout.rows > 1 else output


def _flash_runs(query: torch.Tensor) -> bool:
    """Whether PyTorch takes its FlashAttention kernel, the only fast one that knows grouped heads: not on a T4."""
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and torch.backends.cuda.flash_sdp_enabled()
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _names_behind(method) -> dict:
    """The global names of the module in which a method was written."""
    return getattr(method, "__func__", method).__globals__


AttentionInterface.register(_ATTENTION, _packed_attention)


def _joined(rows: Sequence[Mapping], device) -> dict:
    ids, labels, positions = [], [], []
    for row in rows:
        ids += row["input_ids"]
        labels += [IGNORED, *row["labels"][1:]]  # a row's first token is not to be told from the row before it
        positions += range(len(row["input_ids"]))
    return {name: _sent([part], device) for name, part in
            (("input_ids", ids), ("labels", labels), ("position_ids", positions))}  # fmt: skip


def _sent(values, device) -> torch.Tensor:
    host = torch.as_tensor(values, dtype=torch.long)
    if torch.device(device).type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


@torch.no_grad()
def difference(model, packer: Packer, padded: Packer, rows: Sequence[Mapping]) -> float:
    """How far a reply token's log-likelihood in packed rows is from that in padded ones, on average."""
    rows = [_shortened(row) for row in rows]
    device = next(model.parameters()).device
    model.eval()
    with padded.open(model):
        apart = torch.cat([reply_log_likelihoods(model, **padded.inputs([row], device)) for row in rows])
    with packer.open(model):
        together = reply_log_likelihoods(model, **packer.inputs(rows, device))
    return (apart - together).abs().mean().item()


def _shortened(row: Mapping, tokens: int = 24) -> dict:
    """The row up to its first few reply tokens."""
    first = next(i for i, label in enumerate(row["labels"]) if label != IGNORED)
    return {name: row[name][max(0, first - tokens) : first + tokens] for name in ("input_ids", "labels")}
