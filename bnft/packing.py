"""Conversations of different lengths in one forward pass: side by side without padding, each seeing only itself.

Everything but the attention works on single tokens, so a pass runs over the rows' tokens one after the other. The
attention takes PyTorch's FlashAttention for rows of different lengths where there is one (16 bit, from Ampere on), and
its memory-efficient attention on other GPUs, such as a T4. On CPUs the rows are laid under one another for it and
filled up at their ends, where causal attention never looks. So no kernel beyond PyTorch's own is needed, and the
numbers are those of the rows by themselves.
Knows nothing about losses, optimizers or where rows come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from inspect import signature, unwrap
from typing import NamedTuple, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from bnft.prompts import IGNORED
from bnft.reply_loss import reply_log_likelihoods, sent
from bnft.streaming import causal_part

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before torch 2.10
    varlen_attn = None

_ATTENTION = "bnft_packed"
_FLASH_SIZE = 256  # of a head, at most
_ALIGNED = 8  # numbers: what both fast kernels want a head's size to be a multiple of
_CAUSAL = 1  # its custom_mask_type


class Packer(Protocol):
    """A way to put rows (dictionaries with `input_ids` and `labels`) into one forward pass."""

    padded: bool

    def inputs(self, rows: Sequence[Mapping], device) -> dict:
        """The model's inputs on the device, and the labels on the host, where the loss looks for its tokens.

        Each is (rows, tokens), or (1, all tokens) where rows are packed.
        """

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
            return torch.tensor([[*column, *[fill] * (width - len(column))] for column in columns])

        return {
            "input_ids": sent(tensor([row["input_ids"] for row in rows], self.pad_id), device),
            "labels": tensor([row["labels"] for row in rows], IGNORED),
            "attention_mask": sent(tensor([[1] * len(row["input_ids"]) for row in rows], 0), device),
        }

    def open(self, model):
        return nullcontext()


class UnslothPackedRows:
    """Packed rows for a model of Unsloth, which finds their borders by its own inputs.

    Its attention then goes over the rows one by one, a dozen kernels each; one call for all of them takes its place.
    """

    padded = False

    def inputs(self, rows: Sequence[Mapping], device) -> dict:
        lengths = [len(row["input_ids"]) for row in rows]
        self._layouts = {torch.device(device): Layout.of(lengths, device)}
        return _joined(rows, device) | {"packed_seq_lengths": torch.tensor(lengths, dtype=torch.int32)}

    @contextmanager
    def open(self, model) -> Iterator[None]:
        names = _names_behind(causal_part(model).get_decoder().layers[0].self_attn)
        before = names.get("run_attention")
        if before is None:  # another kind of model: as Unsloth does it
            yield
            return

        def run_attention(*, config, context, Q, K, V):
            if context.seq_info is None or getattr(context, "sliding_window", None):
                return before(config=config, context=context, Q=Q, K=K, V=V)
            return _attention(Q, K, V, self._layout_on(Q.device))

        names["run_attention"] = run_attention
        try:
            yield
        finally:
            names["run_attention"] = before

    def _layout_on(self, device: torch.device) -> Layout:
        """Where layers are split over GPUs, each GPU has its own."""
        if device not in self._layouts:
            self._layouts[device] = next(iter(self._layouts.values())).to(device)
        return self._layouts[device]


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
    """Where the tokens of packed rows stand, one after the other and when the rows lie under one another.

    Attributes:
        rows: how many there are.
        width: length of the longest.
        borders: (rows + 1), int32, where each row begins among the packed tokens, and where the last one ends.
        places: (tokens), place of each token in the flattened (rows x width) table.
    """

    rows: int
    width: int
    borders: torch.Tensor
    places: torch.Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device) -> Layout:
        width = max(lengths)
        borders = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
        places = torch.cat([torch.arange(length) + row * width for row, length in enumerate(lengths)])
        return cls(len(lengths), width, sent(borders, device), sent(places, device))

    def to(self, device) -> Layout:
        return self._replace(borders=self.borders.to(device), places=self.places.to(device))

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
    windowed = bool(window and layout.width > window)
    kernel = "table" if dropout else attention_kernel(query.device, query.dtype, query.shape[-1], windowed)
    if kernel == "flash":
        packed = (part[0].transpose(0, 1) for part in (query, key, value))
        seen = (window - 1 if window else -1, 0)
        borders = (layout.borders, layout.borders, layout.width, layout.width)
        return varlen_attn(*packed, *borders, scale=scale, window_size=seen, **_grouped())[None]
    if kernel == "table" and layout.rows > 1:
        query, key, value = (layout.spread(part) for part in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # PyTorch's other fast kernels know no grouped heads
        key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    if kernel == "efficient":
        return _efficient_attention(*(part.transpose(1, 2) for part in (query, key, value)), layout, scale)
    mask = None
    if windowed:
        steps = torch.arange(layout.width, device=query.device)
        behind = steps[:, None] - steps
        mask = ((behind >= 0) & (behind < window))[None, None]
    output = scaled_dot_product_attention(
        query, key, value, mask, dropout, is_causal=mask is None, scale=scale
    ).transpose(1, 2)
    return layout.gather(output) if layout.rows > 1 else output


def _efficient_attention(query, key, value, layout: Layout, scale: float | None) -> torch.Tensor:
    """The kernel that PyTorch's own nested tensors call; (1, tokens, heads, size) each, and back."""
    return torch.ops.aten._efficient_attention_forward(
        query,
        key,
        value,
        None,
        layout.borders,
        layout.borders,
        layout.width,
        layout.width,
        0.0,
        _CAUSAL,
        torch.is_grad_enabled(),
        scale=scale,
    )[0]


def attention_kernel(device: torch.device, dtype: torch.dtype, size: int, windowed: bool = False) -> str:
    """What attends over packed rows here: "flash", "efficient" (a T4 has no other), or "table".

    Args:
        size: of a head.
        windowed: whether a row is longer than what a token looks back at; the efficient kernel then gives other values.
    """
    if device.type != "cuda" or size % _ALIGNED:
        return "table"
    ours = varlen_attn is not None and dtype in (torch.float16, torch.bfloat16) and size <= _FLASH_SIZE
    if ours and torch.backends.cuda.flash_sdp_enabled() and torch.cuda.get_device_capability(device) >= (8, 0):
        return "flash"
    return "efficient" if torch.backends.cuda.mem_efficient_sdp_enabled() and not windowed else "table"


@cache
def _grouped() -> dict[str, bool]:
    """How `varlen_attn` is told that query heads share keys; torch 2.11 took that as it came, 2.13 wants to be told."""
    return {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}


def _names_behind(attention) -> dict:
    """The global names of the module in which an attention's forward pass was written.

    Its class' forward pass: that of the object itself is accelerate's where layers are split over GPUs.
    """
    return unwrap(type(attention).forward).__globals__


AttentionInterface.register(_ATTENTION, _packed_attention)


def _joined(rows: Sequence[Mapping], device) -> dict:
    ids, labels, positions = [], [], []
    for row in rows:
        ids += row["input_ids"]
        labels += [IGNORED, *row["labels"][1:]]  # a row's first token is not to be told from the row before it
        positions += range(len(row["input_ids"]))
    ids, positions = (sent(torch.tensor([part]), device) for part in (ids, positions))
    return {"input_ids": ids, "labels": torch.tensor([labels]), "position_ids": positions}


def difference(model, packer: Packer, padded: Packer, rows: Sequence[Mapping]) -> float:
    """How far a reply token's log-likelihood in packed rows is from that in padded ones, on average."""
    rows = [_shortened(row) for row in rows]
    apart = torch.cat([_values(model, padded, [row]) for row in rows])
    return (apart - _values(model, packer, rows)).abs().mean().item()


def influence(model, packer: Packer, rows: Sequence[Mapping]) -> float:
    """How far the last row's log-likelihoods move when other tokens stand in the rows before it, on average.

    Same shapes, same kernels: unlike `difference` this is nothing at all where each row sees only itself.
    """
    rows = [_shortened(row) for row in rows]
    others = [row | {"input_ids": row["input_ids"][::-1]} for row in rows[:-1]]
    own = sum(label != IGNORED for label in rows[-1]["labels"][1:])
    before, after = (_values(model, packer, [*first, rows[-1]])[-own:] for first in (rows[:-1], others))
    return (before - after).abs().mean().item()


@torch.no_grad()
def _values(model, packer: Packer, rows: Sequence[Mapping]) -> torch.Tensor:
    model.eval()
    with packer.open(model):
        return reply_log_likelihoods(model, **packer.inputs(rows, next(model.parameters()).device))


def _shortened(row: Mapping, tokens: int = 24) -> dict:
    """The row up to its first few reply tokens."""
    first = next(i for i, label in enumerate(row["labels"]) if label != IGNORED)
    return {name: row[name][max(0, first - tokens) : first + tokens] for name in ("input_ids", "labels")}
