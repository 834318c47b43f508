"""4-bit weights unpacked to 16 bit once, for a GPU with room: what a step for many rows else does for every token.

The numbers stay the 4-bit ones, so the model says the same. Knows nothing about tokens or replies.
"""

from __future__ import annotations

import torch
from torch import nn


def packed_layers(body: nn.Module) -> list[nn.Module]:
    """Layers with 4-bit weights (bitsandbytes)."""
    return [module for module in body.modules() if _is_packed(module)]


def unpacked_bytes(body: nn.Module) -> int:
    """What the weights of those layers take in 16 bit."""
    return sum(2 * layer.in_features * layer.out_features for layer in packed_layers(body))


@torch.no_grad()
def unpack(body: nn.Module) -> None:
    """Puts plain layers in the places of packed ones; `body` is a copy, the packed layers stay with their model."""
    for parent in list(body.modules()):
        for name, child in list(parent.named_children()):
            if _is_packed(child):
                setattr(parent, name, _unpacked(child))


def _is_packed(module: nn.Module) -> bool:
    return type(module).__name__ == "Linear4bit" and type(module).__module__.startswith("bitsandbytes.")


def _unpacked(layer: nn.Module) -> nn.Linear:
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(layer.compute_dtype)
    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.data.to(layer.compute_dtype), requires_grad=False)
    return plain
