"""Copies of a model's weights that a CPU reads faster, one token at a time, without changing what the model says.

A CPU spends a token's time on reading weights. So linear layers whose weights are whole numbers of float16 are read
as float16 (the products are the same), and of the output head, most of the weights where the vocabulary is large, an
8-bit copy is read to find the few tokens that can be the best: their scores then come from the true weights. The
model itself is left as it is. Knows nothing about tokens, sampling or text.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bnft.adapters import AdapterSwitch, switched_copy

EXTRA_BYTES = 300_000_000  # what all copies together may take
_LEAST_ROWS = 32_768  # a smaller head is read in a millisecond
_PACK, _BLOCK = 131_072, 16_384  # rows packed, and rounded, at a time: bounds the memory needed on the way
_OUTLIERS = 8


def has_fast_kernels() -> bool:
    """Whether this PyTorch has FBGEMM's packed products: x86 with AVX2. They are marked as deprecated."""
    return "fbgemm" in torch.backends.quantized.supported_engines and hasattr(torch, "fbgemm_pack_gemm_matrix_fp16")


@contextmanager
def _packing() -> Iterator[None]:
    """FBGEMM for the time of the block, without the deprecation notes on it."""
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deprecated", category=UserWarning)
            yield
    finally:
        torch.backends.quantized.engine = engine


class HalfLinear(nn.Module):
    """A linear layer that reads float16 weights and computes in float32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias  # other code looks at their type and place
        with _packing():
            self._packed = torch.fbgemm_pack_gemm_matrix_fp16(linear.weight.detach())
            self(torch.zeros(1, linear.in_features))  # the first call gives its note here

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fbgemm_linear_fp16_weight_fp32_activation(x, self._packed, self.bias)


def quick_copy(body: nn.Module, extra_bytes: int, switch: AdapterSwitch | None = None) -> nn.Module | None:
    """The same module on the same weights, with quicker layers where they are exact and as far as the memory goes.

    The copy shares every parameter and buffer; what it has of its own are packed weights. None for a model with an
    adapter that is merged, or of another kind than plain LoRA.
    """
    quick = switched_copy(body, switch or AdapterSwitch())
    if quick is None:
        return None
    linears = [
        (parent, name, child)
        for parent in quick.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear
    ]
    for parent, name, linear in sorted(linears, key=lambda found: found[2].weight.numel(), reverse=True):
        size = 2 * linear.weight.numel()
        if size <= extra_bytes and _fits_half(linear.weight):
            setattr(parent, name, HalfLinear(linear))
            extra_bytes -= size
    return quick


def _fits_half(weight: torch.Tensor) -> bool:
    return weight.dtype == torch.float32 and bool((weight.half().float() == weight).all())


class ScreenedHead:
    """An output head with an 8-bit copy that tells which rows can have a score above a given one.

    Score and estimate of row r differ by the product of what rounding took from the row and the hidden state: at most
    the product of their lengths (Cauchy-Schwarz). The few columns where hidden states are hundreds of times larger
    than elsewhere are kept apart, unrounded: they would make that bound useless.

    Args:
        weight: (rows, columns), float32, with a row a token.
        sample: (n, columns), some hidden states, for finding the large columns; a poor sample costs time only.
    """

    def __init__(self, weight: torch.Tensor, sample: torch.Tensor) -> None:
        self.weight = weight.detach()
        self._outliers = sample.abs().mean(0).topk(_OUTLIERS).indices
        self._columns = self.weight[:, self._outliers].contiguous()
        packs = [self._pack(rows) for rows in self.weight.split(_PACK)]
        self._packed = [packed for packed, _, _ in packs]
        self._lost = torch.cat([lost for _, lost, _ in packs])
        self._longest = max(float(lengths.max()) for _, _, lengths in packs)

    @staticmethod
    def size(weight: torch.Tensor) -> int:
        """Bytes that the copy takes."""
        return weight.shape[0] * (weight.shape[1] + 4 * _OUTLIERS + 16)

    def _pack(self, rows: torch.Tensor) -> tuple[object, torch.Tensor, torch.Tensor]:
        """FBGEMM's copy of the rows without the large columns, what rounding took from each, and their lengths."""
        rounded = torch.empty_like(rows, dtype=torch.int8)
        scales, lost, lengths = torch.empty(3, len(rows))
        for start in range(0, len(rows), _BLOCK):
            part = slice(start, start + _BLOCK)
            block = rows[part].clone()
            block[:, self._outliers] = 0
            scales[part] = (block.abs().amax(1) / 127).clamp_min(1e-12)
            whole = (block / scales[part, None]).round()
            rounded[part] = whole.to(torch.int8)
            lost[part] = (block - whole * scales[part, None]).norm(dim=1)
            lengths[part] = block.norm(dim=1)
        with _packing():
            zeros = torch.zeros(len(rows), dtype=torch.long)
            quantised = torch._make_per_channel_quantized_tensor(rounded, scales.double(), zeros, 0)
            return torch.ops.quantized.linear_prepack(quantised, None), lost, lengths

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """The score of every row, from the true weights; hidden is (columns,)."""
        return nn.functional.linear(hidden, self.weight)

    def scores_of(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden, self.weight[rows])

    def estimate(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of every row a score from the 8-bit copy, and how far the true one can be from it."""
        small = hidden.clone()
        small[self._outliers] = 0
        step = small.abs().max().clamp_min(1e-12) / 63
        # FBGEMM rounds the input to 7 bits: given as two whole numbers of -63..63, with 64 and -63 in places where
        # all rows are zero so that its step is 1, nothing of them is lost, and together they are 14 bits.
        coarse = (small / step).round()
        fine = ((small / step - coarse) * 126).round()
        pair = torch.stack([coarse, fine])
        pair[:, self._outliers[0]] = torch.tensor([64.0, -63.0])
        parts = torch.cat([torch.ops.quantized.linear_dynamic(pair, packed, True) for packed in self._packed], dim=1)
        estimate = torch.addmv(
            torch.add(parts[0], parts[1], alpha=1 / 126) * step, self._columns, hidden[self._outliers]
        )
        rest = (small - (coarse + fine / 126) * step).norm()
        slack = (rest + 1e-6 * hidden.norm()) * self._longest  # the second part: sums in float32
        return estimate, torch.add(slack, self._lost, alpha=float(small.norm()))


def quick_head(weight: torch.Tensor, sample: torch.Tensor) -> ScreenedHead | None:
    """A screened head where that pays: a large vocabulary in float32, within the memory allowed."""
    pays = weight.dtype == torch.float32 and weight.shape[0] >= _LEAST_ROWS
    return ScreenedHead(weight, sample) if pays and ScreenedHead.size(weight) <= EXTRA_BYTES else None
