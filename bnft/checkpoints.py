"""Checkpoints of a run: which is the newest whole one, and whether it belongs to the run that wants to go on from it.

A checkpoint is whole when its manifest, written last, agrees with its files. Knows nothing about how they are made.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from bnft.errors import UserError, first_line
from bnft.manifest import MANIFEST, damage_of, read_facts, seal
from bnft.settings import RunConfig
from bnft.token_cache import texts_hash
from bnft.world import World, barrier

# What the numbers in a checkpoint mean nothing without.
SETTINGS = ("model.name", "model.revision", "model.load_in_4bit", "model.max_seq_length", "data.system_prompt", "seed")
SETTINGS += ("lora.r", "lora.alpha", "lora.bias", "lora.target_modules", "lora.use_rslora")
SHAPE = ("model_type", "vocab_size", "hidden_size", "intermediate_size")
SHAPE += ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
# What PEFT tells about an adapter that no manifest was written for.
ADAPTER_SETTINGS = {"lora.r": "r", "lora.alpha": "lora_alpha", "lora.bias": "bias", "lora.use_rslora": "use_rslora"}


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; one that was being written when the run died, or was damaged, is passed over."""
    for checkpoint in sorted(_checkpoints(folder), key=_step, reverse=True):
        fault = fault_of(checkpoint)
        if not fault:
            return checkpoint
        print(f"passing over {checkpoint}: it is not whole, {fault}")
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """By the trainer's names alone: a copy that somebody keeps as checkpoint-50-good is no matter of the run."""
    return [path for path in folder.glob("checkpoint-*") if re.fullmatch("checkpoint-[0-9]+", path.name)]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _discard_old(newest: Path, best: str | None, keep: int) -> None:
    """Leaves the newest `keep`, and the best. They count by their steps: clocks go back, and copies lose their dates.

    A later step than the newest's is of a life of this run that was given up, since none of it was whole.
    """
    found = sorted(_checkpoints(newest.parent), key=_step)
    later = [path for path in found if _step(path) > _step(newest)]
    kept = {newest, newest.with_name(Path(best or newest).name)} & set(found)
    earlier = [path for path in found if path not in later and path not in kept]
    for stale in [*later, *earlier[: max(0, len(earlier) + len(kept) - keep)]]:
        shutil.rmtree(stale, ignore_errors=True)


def fault_of(checkpoint: Path) -> str:
    """What is wrong with a checkpoint's files, "" where nothing is."""
    return damage_of(checkpoint) if (checkpoint / MANIFEST).exists() else _fault_without_manifest(checkpoint)


def _fault_without_manifest(checkpoint: Path) -> str:
    """Names the first file, in the order of writing, that is missing or cut."""
    for name in (
        "adapter_model.safetensors",
        "adapter_config.json",
        "optimizer.pt",
        "scheduler.pt",
        "trainer_state.json",
    ):
        if not _has_its_end(checkpoint / name):
            return f"{name} is missing or cut"
    return ""


def _has_its_end(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                file.keys()
        else:  # torch saves zip files, whose directory stands at the end
            return zipfile.is_zipfile(path)
    except (OSError, ValueError, SafetensorError):
        return False
    return True


def facts_of(config: RunConfig, model, train: Sequence) -> dict[str, Any]:
    """What a checkpoint depends on: settings, the shape of the model, and the conversations it learns from."""
    facts = {name: reduce(getattr, name.split("."), config) for name in SETTINGS}
    facts["lora.target_modules"] = sorted(facts["lora.target_modules"])
    facts["conversations a step"] = config.train.batch_size * config.train.accumulation
    shape = model.config.get_text_config()
    facts |= {f"the model's {name}": getattr(shape, name, None) for name in SHAPE}
    return facts | {"the training conversations": texts_hash(train)[:16]}


def seal_unsealed(checkpoint: Path, facts: dict[str, Any]) -> None:
    """Writes the manifest that a kill left out: training goes on from here, and later changes are to be seen."""
    if not (checkpoint / MANIFEST).exists():
        seal(checkpoint, facts)


def check_belongs(checkpoint: Path, facts: dict[str, Any]) -> None:
    """Refuses a checkpoint that was made of something else than `facts`. The number of GPUs is none of them.

    Raises:
        UserError: naming every difference.
    """
    if (checkpoint / MANIFEST).exists():
        made_of = read_facts(checkpoint)
    else:
        adapter = json.loads((checkpoint / "adapter_config.json").read_text(encoding="utf-8"))
        made_of = {name: adapter[key] for name, key in ADAPTER_SETTINGS.items() if key in adapter}
    different = [name for name, value in made_of.items() if name in facts and facts[name] != value]
    if different:
        told = "; ".join(f"{name} is {made_of[name]!r} there and {facts[name]!r} here" for name in different)
        raise UserError(
            f"the checkpoint {checkpoint} is of another run: {told}",
            "Take it out of this run's folder, or put config.yaml and splits/ back as they were.",
        )


@contextmanager
def only_numbers_of(checkpoint: Path | None) -> Iterator[None]:
    """Around the trainer's reading of a checkpoint: a file that asks for code to be run is refused, and none is run.

    transformers reads the states of optimizer, schedule and random numbers with `weights_only`.
    """
    try:
        yield
    except UnpicklingError as error:
        raise UserError(
            f"the checkpoint {checkpoint} holds more than numbers: {first_line(error)}",
            "Whoever made it could run any program here by it. Take it out of the run's folder.",
        ) from error


def _take_for_best(state, folder: Path) -> None:
    """The checkpoint that is gone on from is the best so far; none is, where its validation loss is not known."""
    losses = [
        line["eval_loss"] for line in state.log_history if line["step"] == state.global_step and "eval_loss" in line
    ]
    state.best_metric = losses[-1] if losses else None
    state.best_global_step = state.global_step if losses else None
    state.best_model_checkpoint = str(folder / f"checkpoint-{state.global_step}") if losses else None


def checkpoint_keeper(facts: dict[str, Any], world: World, keep: int):
    """A callback for the trainer: seals each checkpoint, leaves `keep`, and after a resumption finds the best again."""
    from transformers import TrainerCallback

    class Keeper(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            barrier(world)  # every process writes the state of its random numbers
            if world.leads:
                checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                (checkpoint / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
                seal(checkpoint, facts)
                _discard_old(checkpoint, state.best_model_checkpoint, keep)

        def on_train_begin(self, args, state, control, **kwargs):
            if not state.best_global_step:
                return
            best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            fault = fault_of(best)
            if fault:
                print(
                    f"the best checkpoint so far, {best}, cannot be used ({fault}): the best from this one on is taken"
                )
                _take_for_best(state, Path(args.output_dir))
            else:
                state.best_model_checkpoint = str(best)  # the folder may have been moved since

    return Keeper()
