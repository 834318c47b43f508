"""Settings: the typed sections of a run, read from a recipe and from flags, each with where it came from.

The only reader of the environment, and the only place where a default number stands. A field's description is what
`--help` shows. Knows nothing about models, data or GPUs: what those decide reaches it through `RunConfig.replace`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bnft.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPES = REPOSITORY / "recipes"


def cache_dir() -> Path:
    """Where converted models are kept: `BNFT_CACHE`, or `bnft` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("BNFT_CACHE") or Path(base) / "bnft").expanduser()


def default_environment(name: str, value: str) -> None:
    """Sets an environment variable that a library reads at its import, unless the user has set it."""
    os.environ.setdefault(name, value)


def from_environment(name: str) -> str:
    """A value that only the environment gives, or ""."""
    return os.environ.get(name, "")


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
    parallel: Literal["auto", "single", "layers", "ddp", "fsdp"] = Field("auto", description="placement over GPUs")
    batch_size: int = Field(2, ge=1, description="conversations in one forward pass")
    accumulation: int = Field(8, ge=1, description="forward passes before one optimizer step")
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
        "all", description="conversations of the validation split behind each validation loss, drawn by the seed"
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
        "all", description="test rows whose replies are generated and scored"
    )
    batch_size: int = Field(16, ge=1, description="rows in one generation batch")
    bootstrap: int = Field(1000, ge=100, description="resamples behind the 95 % intervals")


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
        _assign(tree, dotted, value)
        return RunConfig.model_validate(tree)


def iterate_fields(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yields (dotted name, description, default) of every field, in order."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from iterate_fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.description or "", field.default


DEFAULTS = {name: default for name, _, default in iterate_fields()}
FIELD_NAMES = tuple(DEFAULTS)


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def resolve(recipe: str, flags: dict[str, Any]) -> tuple[RunConfig, dict[str, str]]:
    """Recipe, then flags over it.

    Args:
        recipe: name of a recipe of this repository, or path of a YAML file.
        flags: dotted field name to value (text is converted).

    Returns:
        The settings, and for every dotted field where its value came from.

    Raises:
        UserError: with every unknown key and every bad value at once.
    """
    tree = _read_recipe(recipe)
    sources = dict.fromkeys(FIELD_NAMES, "default")
    unknown = []
    given = dict(_flatten(tree))
    merged: dict[str, Any] = {}
    for name, value in given.items():
        if name in sources:
            sources[name] = f"recipe {Path(recipe).stem}"
            _assign(merged, name, value)
        else:
            unknown.append((name, f"recipe {recipe}"))
    for name, value in flags.items():
        if name in sources:
            sources[name] = f"flag --{name}"
            _assign(merged, name, _from_flag(name, value))
        else:
            unknown.append((name, "flag"))
    problems = [f"unknown setting {name!r} ({where}){_nearest(name)}" for name, where in unknown]
    try:
        config = RunConfig.model_validate(merged)
    except ValidationError as error:
        problems += [_describe(item) for item in error.errors()]
    if problems:
        raise UserError("\n  ".join(problems), "Every setting with its meaning: python train.py --help")
    return config, sources


def _from_flag(name: str, value: Any) -> Any:
    """A flag's text as the field takes it: "none" where None is allowed, "a,b" for a list; pydantic does the rest."""
    default = DEFAULTS[name]
    if default is None and value in ("none", "null"):
        return None
    if isinstance(default, tuple) and isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return value


def _read_recipe(recipe: str) -> dict:
    path = RECIPES / f"{recipe}.yaml"
    if not path.exists():
        path = Path(recipe).expanduser()
    if not path.is_file():
        raise UserError(
            f"no recipe {recipe!r}{_nearest(recipe, recipe_names())}",
            f"Take one of {', '.join(recipe_names())}, or the path of a YAML file.",
        )
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} is no valid YAML: {error}", "Compare it with recipes/laptop.yaml.") from error
    if not isinstance(tree, dict):
        raise UserError(f"recipe {path} holds no settings", "Compare it with recipes/laptop.yaml.")
    return tree


def _flatten(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if value is None and name in RunConfig.model_fields:
            continue  # a section without settings, as "train:" alone
        if isinstance(value, dict) and name in RunConfig.model_fields:
            yield from _flatten(value, f"{name}.")
        else:
            yield name, value


def _assign(tree: dict, dotted: str, value: Any) -> None:
    *sections, name = dotted.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[name] = value


def _nearest(name: str, known: tuple[str, ...] | list[str] = FIELD_NAMES) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:  # "rank" is nearer to "lora.r" by its last part than as a whole
        tails = {field.rsplit(".", 1)[-1]: field for field in known}
        close = [tails[tail] for tail in difflib.get_close_matches(name.rsplit(".", 1)[-1], tails, n=1)]
    return f"; nearest: {close[0]!r}" if close else ""


def _describe(item: dict) -> str:
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return message
    # pydantic's location goes on into the members of a union, a field's name does not
    parts = [str(part) for part in item["loc"]]
    name = next((".".join(parts[:n]) for n in (1, 2) if ".".join(parts[:n]) in FIELD_NAMES), ".".join(parts))
    return f"{name}: got {item['input']!r}: {message[0].lower()}{message[1:]}"


def to_yaml(config: RunConfig, sources: dict[str, str]) -> str:
    """The settings as a recipe file that can be used again, each line with its source as a comment."""
    lines = []
    section = None
    for name in FIELD_NAMES:
        head, _, tail = name.rpartition(".")
        if head and head != section:
            lines.append(f"{head}:")
            section = head
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part)
        value = list(value) if isinstance(value, tuple) else value
        # Only double quotes hold line breaks, U+0085 and their like on one line.
        style = None if "".join(value if isinstance(value, list) else str(value)).isprintable() else '"'
        text = yaml.safe_dump(
            value, allow_unicode=True, default_flow_style=True, default_style=style, width=float("inf")
        )
        text = text.removesuffix("\n").removesuffix("\n...")
        lines.append(f"{'  ' if head else ''}{tail}: {text}  # {sources[name]}")
    return "\n".join(lines) + "\n"
