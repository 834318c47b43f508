"""A frozen model shared out over GPUs, each of which holds a part of every layer (FSDP2); the adapter stays whole.

What is trained is small and lies on every GPU, as with one process a GPU, so that gradients, optimizer, checkpoints and
saving are those of data parallelism. For models that fit no single GPU. Every process must make the same number of
passes, since each pass asks all of them for their parts of the layers. Knows nothing about training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from bitsandbytes.nn import Linear4bit
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from bnft.errors import UserError
from bnft.prompts import IGNORED
from bnft.streaming import causal_part
from bnft.world import World, largest_over


def shard(model: nn.Module, world: World) -> None:
    """Shares the decoder's layers out, one after the other, so that no GPU ever holds more than one whole layer.

    Embedding, head and norms stay whole, as does all that is trained.

    Args:
        model: with its adapter, its weights on the host (or on the one GPU, which must then hold them).

    Raises:
        UserError: there are no other processes.
    """
    if world.size == 1:
        raise UserError(
            "--parallel fsdp shares a model out over several processes, and this is the only one",
            "Start it with torchrun --nproc-per-node N train.py --parallel fsdp.",
        )
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    mesh = init_device_mesh(device.type, (world.size,))
    causal = causal_part(model)
    decoder = causal.get_decoder()
    for layer in decoder.layers:
        layer.to(device)
        for module in layer.modules():
            if isinstance(module, Linear4bit):
                _as_floats(module)
        # norms and biases stay whole as well: their parts would not be worth a word between processes
        whole = {parameter for parameter in layer.parameters() if parameter.requires_grad or parameter.dim() < 2}
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    model.to(device)
    causal.hf_device_map = {"": device}  # accelerate would refuse to train 4-bit weights that it believes elsewhere
    # The root has no weights of its own: it lets a layer's parts come while the one before it is computed.
    fully_shard(decoder, mesh=mesh, reshard_after_forward=True, ignored_params=set(decoder.parameters()))


def even_out(passes: Sequence[Sequence[Mapping]], world: World) -> list[Sequence[Mapping]]:
    """The passes over this process' rows, and passes without a reply token until all processes have equally many."""
    blank = {"input_ids": [0, 0], "labels": [IGNORED, IGNORED]}
    return [*passes, *[[blank]] * (largest_over(len(passes), world) - len(passes))]


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(module, FSDPModule) for module in model.modules())


def _as_floats(module: Linear4bit) -> None:
    """Packed 4-bit weights under a floating type's name, which is all that FSDP takes; the bits stay as they are.

    The scales are kept at the module, where bitsandbytes looks for them when a weight comes back without.
    """
    weight, dtype = module.weight, module.compute_dtype or torch.float32
    module.quant_state = weight.quant_state
    module.quant_storage = weight.quant_storage = dtype
    weight.data = weight.data.view(torch.uint8).flatten().view(dtype).unsqueeze(1)
