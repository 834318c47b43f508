"""The typed sections of a run's settings: every default number and every name, with the text that `--help` shows.

Knows nothing about files, flags or the environment: bnft/config.py fills the sections from those.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())


class ModelConfig(Section):
    name: str = Field("embedded", description="embedded, smoke, a model or run folder, a GGUF file, or a Hub id")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub id")
    load_in_4bit: bool = Field(False, description="quantise the frozen weights to NF4 (QLoRA)")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="compute type; auto: by the GPU's compute capability, float32 on a CPU"
    )
    max_seq_length: int = Field(2020, ge=64, le=131072, description="tokens of a conversation, longer ones are cut")


class DataConfig(Section):
    path: str = Field("bundled", description="bundled, a file or folder, or a Hub dataset id")
    system_prompt: str = Field(
        "You are a sympathetic and helpful assistant. You answer people's questions in Bengali language.",
        min_length=1,
        description="the system text of every conversation, in training, evaluation and chat",
    )
    test_fraction: float = Field(0.1, gt=0, lt=0.5, description="share of rows held out for the final numbers")
    validation_fraction: float = Field(0.1, gt=0, lt=0.5, description="share of rows that choose the best checkpoint")
    min_bengali_ratio: float = Field(
        0.5, ge=0, le=1, description="answers with a smaller share of Bengali letters are dropped"
    )
    max_chars: int = Field(8000, ge=1, description="rows with a longer question or answer are dropped")
    near_duplicate_similarity: float = Field(
        0.85, gt=0, le=1, description="Jaccard similarity of character 5-grams from which two texts count as the same"
    )


class LoraSettings(Section):
    r: int = Field(16, ge=1, le=1024, description="rank of the update matrices")
    alpha: int = Field(16, ge=1, description="the update is scaled by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    bias: Literal["none", "all", "lora_only"] = Field("none", description="which biases are trained")
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        description="the layers that get an adapter",
    )
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(r) instead")


class TrainConfig(Section):
    strategy: Literal["auto", "unsloth", "peft"] = Field("auto", description="the fine-tuning back end")
    parallel: Literal["auto", "single", "layers", "ddp", "fsdp"] = Field(
        "auto", description="GPUs: one, layers split over all, a process on each (ddp), weights shared out (fsdp)"
    )
    batch_size: int = Field(2, ge=1, description="conversations in one forward pass")
    accumulation: int = Field(8, ge=1, description="forward passes before one optimizer step")
    fit_batch: bool = Field(
        True,
        description="on a GPU, fewer and larger passes for the same optimizer step, and nothing computed again, as far "
        "as its memory goes",
    )
    packing: bool = Field(True, description="conversations share a pass without padding, each seeing only itself")
    learning_rate: float = Field(2e-4, gt=0, lt=1, description="peak learning rate")
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "cosine", description="how the learning rate falls"
    )
    warmup_steps: int = Field(100, ge=0, description="steps over which the learning rate rises")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    optimizer: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw_8bit", description="adamw_8bit keeps its state in a quarter of the memory"
    )
    gradient_checkpointing: Literal["unsloth", "torch", "none"] = Field(
        "torch", description="recompute activations: slower, much less memory"
    )
    epochs: float = Field(0.5, gt=0, description="passes over the training split")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps; overrides epochs")
    max_minutes: float | None = Field(None, gt=0, description="stop training after this time and keep the best")
    eval_steps: int = Field(50, ge=1, description="validation loss every so many steps")
    validation_samples: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        "all", description="validation conversations behind each validation loss, drawn by the seed: a number or all"
    )
    save_steps: int = Field(100, ge=1, description="checkpoint every so many steps, a multiple of eval_steps")
    keep_checkpoints: int = Field(3, ge=1, description="checkpoints kept, the best among them")
    report_to: Literal["none", "wandb", "tensorboard", "trackio"] = Field("none", description="experiment tracker")

    @model_validator(mode="after")
    def _saves_when_evaluated(self) -> TrainConfig:
        if self.save_steps % self.eval_steps:
            raise ValueError(
                f"train.save_steps {self.save_steps} is no multiple of train.eval_steps {self.eval_steps}, so the "
                "best checkpoint could not be found: change one of them"
            )
        return self


class EvalConfig(Section):
    samples: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        "all", description="test rows whose replies are generated and scored, a number or all"
    )
    batch_size: int = Field(16, ge=1, description="rows in one generation batch on a CPU; a GPU takes as many as fit")
    bootstrap: int = Field(1000, ge=100, description="resamples behind the 95 % intervals")
    judge: str | None = Field(
        None, description="URL of an OpenAI-compatible server whose model judges base against tuned; no person does"
    )
    judge_model: str | None = Field(None, min_length=1, description="its name there; none: the first the server lists")
    judge_samples: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        100, description="of the rows with replies, how many (or all) the judge is asked about, each in both orders"
    )

    @field_validator("judge")
    @classmethod
    def _is_an_address_without_secrets(cls, judge: str | None) -> str | None:
        # The address is written into the run's records; the value itself is never repeated here.
        no_url = "eval.judge is no URL: give it like http://127.0.0.1:8000/v1"
        try:
            parts = urlsplit(judge or "http://none")
            port = parts.port
        except ValueError:  # a port or an IPv6 address that is none; the error repeats it
            raise ValueError(no_url) from None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError(no_url)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "eval.judge holds more than an address: keys go into the environment (BNFT_JUDGE_KEY), for settings "
                "are written into the run's records"
            )
        return judge


class GenerationConfig(Section):
    max_new_tokens: int = Field(512, ge=8, le=8192, description="longest reply, in tokens")
    temperature: float = Field(0.7, gt=0, le=2, description="chat sampling temperature")
    top_p: float = Field(0.9, gt=0, le=1, description="chat nucleus sampling mass")
    repetition_penalty: float = Field(
        1.0, ge=1, le=2, description="above 1 makes words rarer that the reply used already"
    )


class RunConfig(Section):
    """Everything that decides a run. Sections and fields as in the recipe files."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    lora: LoraSettings = LoraSettings()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    generation: GenerationConfig = GenerationConfig()
    seed: int = Field(3407, ge=0, lt=2**32, description="seed of the split, the shuffling, the adapter and sampling")

    def replace(self, dotted: str, value: Any) -> RunConfig:
        """A copy with one field changed, for example `replace("train.batch_size", 4)`."""
        tree = self.model_dump()
        assign(tree, dotted, value)
        return RunConfig.model_validate(tree)


def iterate_fields(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yields (dotted name, description with the choices, default) of every field, in order."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from iterate_fields(field.annotation, f"{prefix}{name}.")
        else:
            choices = f" ({'|'.join(get_args(field.annotation))})" if get_origin(field.annotation) is Literal else ""
            yield f"{prefix}{name}", f"{field.description}{choices}", field.default


DEFAULTS = {name: default for name, _, default in iterate_fields()}
FIELD_NAMES = tuple(DEFAULTS)


def assign(tree: dict, dotted: str, value: Any) -> None:
    """Sets the value of a dotted name in nested dictionaries."""
    *sections, name = dotted.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[name] = value
