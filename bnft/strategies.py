"""How a model is made trainable: one interface, one class a back end.

A strategy loads the model and puts the adapter on it; the training loop is the same for all. Knows nothing about
data, metrics or the run directory.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bnft.config import cache_dir, default_environment
from bnft.device_maps import device_map
from bnft.errors import UserError, first_line
from bnft.model_code import refuse_code_of
from bnft.models import ModelSource, hub_errors, load_model, load_tokenizer, resolve_dtype
from bnft.settings import LoraSettings, RunConfig
from bnft.world import current_world

if TYPE_CHECKING:
    from bnft.packing import Packer

_INSTEAD = "pip install -r requirements-gpu.txt on a machine with a GPU, or use --strategy peft: the same adapter."


@dataclass(frozen=True)
class Trainable:
    """A model with an adapter to train, and its tokenizer."""

    model: object
    tokenizer: object


class FineTuningStrategy(ABC):
    """A back end for LoRA fine-tuning."""

    name: str
    checkpoints_itself = False  # whether it sets gradient checkpointing up, and the trainer must not
    rewrites_libraries = False  # whether its import changes what other code of this process does

    @abstractmethod
    def packer(self) -> Packer:
        """How the model takes rows that share a pass without padding."""

    @abstractmethod
    def prepare(self, source: ModelSource, config: RunConfig) -> Trainable:
        """Loads the model of `source`; puts a new adapter on it, or makes the one it came with trainable."""


class PeftStrategy(FineTuningStrategy):
    """transformers and PEFT as they are: runs everywhere, on a CPU too."""

    name = "peft"

    def packer(self) -> Packer:
        from bnft.packing import AttentionPackedRows

        return AttentionPackedRows()

    def prepare(self, source: ModelSource, config: RunConfig) -> Trainable:
        import torch
        from peft import LoraConfig, TaskType, get_peft_model

        model = load_model(source, config.model, device_map(source, config))
        if source.adapter:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_("lora_" in name)
        else:
            torch.manual_seed(config.seed)
            model.requires_grad_(False)
            try:
                model = get_peft_model(
                    model,
                    LoraConfig(**_adapter_of(config.lora), task_type=TaskType.CAUSAL_LM),
                    # fp16's gradient scaler refuses bfloat16 gradients, which a bfloat16 checkpoint would give
                    autocast_adapter_dtype=True,
                )
            except ValueError as error:
                wanted = list(config.lora.target_modules)
                raise UserError(
                    f"no adapter fits lora.target_modules {wanted} on {source.name!r}: {error}",
                    "Name layers that this model has.",
                ) from error
        # Gradient checkpointing drops the graph of a frozen embedding unless its output asks for gradients.
        if config.train.gradient_checkpointing != "none":
            model.enable_input_require_grads()
        if config.train.parallel == "fsdp":
            from bnft.sharding import shard

            shard(model, current_world())
        return Trainable(model, load_tokenizer(source))


def _adapter_of(lora: LoraSettings) -> dict:
    """The adapter in PEFT's words, which Unsloth takes too."""
    return {
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "bias": lora.bias,
        "target_modules": list(lora.target_modules),
        "use_rslora": lora.use_rslora,
    }


class UnslothStrategy(FineTuningStrategy):
    """Unsloth's kernels for one GPU a process: faster, and with less memory.

    Its import rewrites classes of transformers, PEFT and TRL for the whole process, so it happens here alone and before
    those are used; what comes after training runs in a process of its own.
    """

    name = "unsloth"
    checkpoints_itself = True
    rewrites_libraries = True

    def __init__(self):
        _unsloth()

    def packer(self) -> Packer:
        from bnft.packing import UnslothPackedRows

        return UnslothPackedRows()

    def prepare(self, source: ModelSource, config: RunConfig) -> Trainable:
        import torch

        if config.train.parallel == "fsdp":
            raise UserError("--parallel fsdp shares out weights that Unsloth keeps whole", "Use --strategy peft.")
        fast = _unsloth().FastLanguageModel
        dtype, _ = resolve_dtype(config.model.dtype)
        how = config.train.gradient_checkpointing
        checkpointing = {"unsloth": "unsloth", "torch": True, "none": False}[how]
        with hub_errors(source.adapter or source.base):
            refuse_code_of(source.base, source.revision)
            model, _ = fast.from_pretrained(
                model_name=source.adapter or source.base,
                revision=None if source.adapter else source.revision,
                max_seq_length=config.model.max_seq_length,
                dtype=getattr(torch, dtype),
                load_in_4bit=config.model.load_in_4bit,
                device_map=device_map(source, config) or {"": torch.cuda.current_device()},
                use_exact_model_name=True,  # the weights that were asked for, not a look-alike of Unsloth's
                use_gradient_checkpointing=checkpointing,
                random_state=config.seed,
                trust_remote_code=False,
            )
        if not source.adapter:
            model = fast.get_peft_model(
                model,
                **_adapter_of(config.lora),
                use_gradient_checkpointing=checkpointing,
                random_state=config.seed,
            )
        fast.for_training(model, use_gradient_checkpointing=checkpointing)
        return Trainable(model, load_tokenizer(source))


def _unsloth():
    default_environment("UNSLOTH_COMPILE_LOCATION", str(cache_dir() / "unsloth"))
    import unsloth

    return unsloth


def why_not_unsloth() -> str:
    """What Unsloth lacks here, or ""; does not import it."""
    import torch

    if not torch.cuda.is_available():
        return "Unsloth needs a CUDA GPU, and there is none"
    if not importlib.util.find_spec("unsloth"):
        return "Unsloth is not installed"
    return ""


def check_strategy(name: str) -> None:
    """Refuses early what `choose_strategy` would refuse.

    Raises:
        UserError: the back end asked for is not there.
    """
    if name == "unsloth" and (reason := why_not_unsloth()):
        raise UserError(f"--strategy unsloth cannot be used: {reason}", _INSTEAD)


def choose_strategy(name: str) -> tuple[FineTuningStrategy, str]:
    """The strategy and the reason for it. Under `auto` Unsloth is taken where it imports and a GPU is there.

    Raises:
        UserError: the back end asked for is not there, or does not import.
    """
    check_strategy(name)
    if name == "peft":
        return PeftStrategy(), "as set"
    if reason := why_not_unsloth():
        return PeftStrategy(), reason
    try:
        return UnslothStrategy(), "as set" if name == "unsloth" else "it is installed, and a GPU is here"
    except (ImportError, RuntimeError, NotImplementedError) as error:  # all seen from its import on unsuited machines
        reason = f"Unsloth does not import: {first_line(error)}"
    if name == "unsloth":
        raise UserError(f"--strategy unsloth cannot be used: {reason}", _INSTEAD)
    return PeftStrategy(), reason
