"""How fast this machine's processor multiplies matrices: measured in half a second, since no table knows every laptop.

Knows nothing about models or plans.
"""

from __future__ import annotations

import time

SECONDS = 0.25  # of each direction


def product_rate(tokens: int, inputs: int, outputs: int) -> float:
    """Floating-point operations a second of (tokens, inputs) x (inputs, outputs) and back, in float32."""
    import torch

    there, back = torch.randn(outputs, inputs), torch.randn(inputs, outputs)
    seconds = sum(_median_seconds(torch.randn(tokens, weight.shape[1]), weight) for weight in (there, back))
    return 2 * 2 * tokens * inputs * outputs / seconds


def _median_seconds(values, weight) -> float:
    """Of one product; the median, since others work on the machine as well."""
    from torch.nn.functional import linear

    linear(values, weight)  # the first one starts the threads
    taken, end = [], time.perf_counter() + SECONDS
    while not taken or time.perf_counter() < end:
        started = time.perf_counter()
        linear(values, weight)
        taken.append(time.perf_counter() - started)
    return sorted(taken)[len(taken) // 2]
