"""A LoRA adapter that can be on for one row of a batch and off for the next, on a copy of the model that shares it all.

PEFT switches an adapter for the whole model, layer by layer; here one value is looked at in every layer instead.
Knows nothing about tokens, caches or devices.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


class AdapterSwitch:
    """Where the adapters of one copy look.

    Attributes:
        on: True or False for all rows, or a tensor (rows, 1, 1) of ones and zeros in the model's number format.
    """

    def __init__(self) -> None:
        self.on: bool | torch.Tensor = True


class AdaptedLinear(nn.Module):
    """A layer with a plain LoRA adapter on it, which is off where its switch says so.

    The adapter is added to each output, not merged into the weights: rounded to float16 or 4 bit they would not be
    the same.
    """

    def __init__(self, own: nn.Module, base: nn.Module, switch: AdapterSwitch, dtype: torch.dtype) -> None:
        super().__init__()
        (name,) = own.active_adapters
        self.base = base
        self._switch = switch
        self._down = own.lora_A[name].weight.detach().to(dtype)
        self._up = (own.lora_B[name].weight.detach() * own.scaling[name]).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, on = self.base(x), self._switch.on
        if on is False:
            return y
        low = nn.functional.linear(x, self._down)
        return y.add_(nn.functional.linear(low if on is True else low * on, self._up))


def switched_copy(body: nn.Module, switch: AdapterSwitch) -> nn.Module | None:
    """The same module on the same weights, with its adapters on `switch`; None where they are not plain LoRA.

    All layers without parts are shared, and so is every tensor; what holds them is new and may be changed.
    """
    adapted = {path: module for path, module in body.named_modules() if is_adapted(module)}
    if not all(_is_plain_lora(module) for module in adapted.values()):
        return None
    leaves = [module for module in body.modules() if not next(module.children(), None)]
    shared = {id(part): part for part in (*leaves, *body.parameters(), *body.buffers())}
    made = copy.deepcopy(body, shared)
    dtype = next(parameter.dtype for parameter in body.parameters() if parameter.is_floating_point())
    for path, own in adapted.items():
        made.set_submodule(path, AdaptedLinear(own, made.get_submodule(path).base_layer, switch, dtype))
    return made


def is_adapted(module: nn.Module) -> bool:
    return hasattr(module, "base_layer")


def is_off(model: nn.Module) -> bool:
    """Whether PEFT has the model's adapter off at this moment."""
    return any(is_adapted(module) and module.disable_adapters for module in model.modules())


def _is_plain_lora(module: nn.Module) -> bool:
    kind = type(module)
    if kind.__name__ not in ("Linear", "Linear4bit") or not kind.__module__.startswith("peft.tuners.lora."):
        return False
    if module.merged or len(module.active_adapters) != 1:
        return False
    (name,) = module.active_adapters
    return name in module.lora_A and name not in module.lora_variant and not module.lora_bias[name]
