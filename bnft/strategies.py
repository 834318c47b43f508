"""How a model is made trainable: one interface, one class a back end.

A strategy loads the model and puts the adapter on it; the training loop is the same for all. Knows nothing about
data, metrics or the run directory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from bnft.errors import UserError
from bnft.models import ModelSource, load_model, load_tokenizer
from bnft.settings import RunConfig


@dataclass(frozen=True)
class Trainable:
    """A model with an adapter to train, and its tokenizer."""

    model: object
    tokenizer: object


class FineTuningStrategy(ABC):
    """A back end for LoRA fine-tuning."""

    name: str

    @abstractmethod
    def prepare(self, source: ModelSource, config: RunConfig) -> Trainable:
        """Loads the model of `source`; puts a new adapter on it, or makes the one it came with trainable."""


class PeftStrategy(FineTuningStrategy):
    """transformers and PEFT as they are: runs everywhere, on a CPU too."""

    name = "peft"

    def prepare(self, source: ModelSource, config: RunConfig) -> Trainable:
        import torch
        from peft import LoraConfig, TaskType, get_peft_model

        model = load_model(source, config.model)
        if source.adapter:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_("lora_" in name)
        else:
            lora = config.lora
            torch.manual_seed(config.seed)
            model.requires_grad_(False)
            try:
                model = get_peft_model(
                    model,
                    LoraConfig(
                        r=lora.r,
                        lora_alpha=lora.alpha,
                        lora_dropout=lora.dropout,
                        bias=lora.bias,
                        target_modules=list(lora.target_modules),
                        use_rslora=lora.use_rslora,
                        task_type=TaskType.CAUSAL_LM,
                    ),
                    # fp16's gradient scaler refuses bfloat16 gradients, which a bfloat16 checkpoint would give
                    autocast_adapter_dtype=True,
                )
            except ValueError as error:
                raise UserError(
                    f"no adapter fits lora.target_modules {list(lora.target_modules)} on {source.name!r}: {error}",
                    "Name layers that this model has.",
                ) from error
        # Gradient checkpointing drops the graph of a frozen embedding unless its output asks for gradients.
        if config.train.gradient_checkpointing != "none":
            model.enable_input_require_grads()
        return Trainable(model, load_tokenizer(source))


def choose_strategy(name: str) -> tuple[FineTuningStrategy, str]:
    """The strategy and the reason for it.

    Raises:
        UserError: the back end asked for is not there.
    """
    if name == "unsloth":
        raise UserError(
            "--strategy unsloth is not in this version yet", "Use --strategy peft; it trains the same adapter."
        )
    return PeftStrategy(), "as set" if name == "peft" else "runs on every machine"
