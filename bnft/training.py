"""`LLAMAFineTuner`: conversations -> a trained adapter, on TRL's SFTTrainer.

Builds the labels, the trainer and its stops (time limit, Ctrl+C, resume). Knows nothing about metrics of replies,
the corpus files or the page.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bnft.errors import Interrupted, UserError
from bnft.models import ADAPTER_NOTES, OWN_MODELS, adapter_base, find_model
from bnft.prompts import IGNORED, encode, with_system
from bnft.settings import RunConfig
from bnft.strategies import choose_strategy


@dataclass(frozen=True)
class TrainingResult:
    """What a training run did.

    Attributes:
        history: the trainer's log lines, each with `step` and `loss` or `eval_loss`.
        seconds: wall-clock time of the training loop.
        stopped_by: "" when all steps were done, else "time limit".
        tokens: token counts of the conversations of each split.
    """

    history: list[dict]
    steps: int
    seconds: float
    best_eval_loss: float
    best_step: int
    stopped_by: str = ""
    tokens: dict[str, list[int]] = field(default_factory=dict)


class LLAMAFineTuner:
    """A model with a LoRA adapter: new for a base model, loaded for an adapter or run folder.

    Usable from a notebook:

        tuner = LLAMAFineTuner(model_name="outputs/latest", load_in_4bit=True)
        tuner.train(splits["train"], splits["validation"], "my_run")

    Args:
        model_name: any name that `bnft.models.find_model` knows; overrides `config.model.name`.
        load_in_4bit: quantise the frozen weights to NF4.
        config: all other settings.
    """

    def __init__(
        self,
        model_name: str | None = None,
        load_in_4bit: bool | None = None,
        max_seq_length: int | None = None,
        config: RunConfig | None = None,
    ):
        config = config or RunConfig()
        for name, value in (("name", model_name), ("load_in_4bit", load_in_4bit), ("max_seq_length", max_seq_length)):
            if value is not None:
                config = config.replace(f"model.{name}", value)
        self.config = config
        self.source = find_model(config.model.name, config.model.revision)
        self.strategy, self.strategy_reason = choose_strategy(config.train.strategy)
        trainable = self.strategy.prepare(self.source, config)
        self.model, self.tokenizer = trainable.model, trainable.tokenizer

    def train(
        self,
        train: Sequence,
        validation: Sequence,
        folder: str | Path,
        resume_from: str | Path | None = None,
    ) -> TrainingResult:
        """Trains on conversations (objects with `messages`), keeps the best checkpoint by validation loss.

        Args:
            folder: gets `checkpoints/` and, at the end, `lora_model/`.
            resume_from: a checkpoint folder to go on from.

        Raises:
            UserError: nothing is left to train on, or the loss is not a number any more.
            Interrupted: after Ctrl+C or SIGTERM, with a checkpoint saved.
        """
        folder = Path(folder)
        datasets = {
            "train": self._dataset(train, "train"),
            "validation": self._dataset(self._sample(validation), "validation"),
        }
        stops = _Stops(self.config.train.max_minutes)
        trainer = self._trainer(datasets, folder / "checkpoints", stops.callback())
        started = time.monotonic()
        with stops.listening():
            trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        seconds = time.monotonic() - started
        if stops.exit_code:
            raise Interrupted(
                stops.exit_code,
                f"interrupted at step {trainer.state.global_step}, checkpoint saved.\n"
                f"  Go on with: python train.py --resume {folder}",
            )
        self.model.eval()
        self.save(folder / "lora_model")
        state = trainer.state
        best_step = Path(state.best_model_checkpoint).name.rpartition("-")[2] if state.best_model_checkpoint else "0"
        return TrainingResult(
            history=[line for line in state.log_history if "loss" in line or "eval_loss" in line],
            steps=state.global_step,
            seconds=seconds,
            best_eval_loss=state.best_metric if state.best_metric is not None else math.nan,
            best_step=int(best_step),
            stopped_by=stops.reason,
            tokens={name: [len(row) for row in dataset["input_ids"]] for name, dataset in datasets.items()},
        )

    def save(self, folder: str | Path) -> None:
        """Writes adapter, tokenizer, chat template and the notes that make the folder complete by itself."""
        target = Path(folder)
        scratch = target.with_name(f".{target.name}.part")
        shutil.rmtree(scratch, ignore_errors=True)
        self.model.save_pretrained(scratch, safe_serialization=True)
        self.tokenizer.save_pretrained(scratch)
        notes = {
            "base_model": self._base_name(),
            "licence": self.source.licence,
            "system_prompt": self.config.data.system_prompt,
            "generation": self.config.generation.model_dump(),
        }
        (scratch / ADAPTER_NOTES).write_text(json.dumps(notes, ensure_ascii=False, indent=2), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)

    def _base_name(self) -> str:
        """The base model's name as `find_model` takes it: an own name as it is, a local folder as an absolute path."""
        if self.source.name in OWN_MODELS:
            return self.source.name
        if self.source.adapter:
            return adapter_base(Path(self.source.adapter))
        return str(Path(self.source.base).resolve()) if self.source.is_local else self.source.base

    def _sample(self, validation: Sequence) -> list:
        """The conversations behind each validation loss: the same ones all through the run."""
        count = self.config.train.validation_samples
        if count == "all" or count >= len(validation):
            return list(validation)
        return random.Random(self.config.seed).sample(list(validation), count)

    def _dataset(self, conversations: Sequence, name: str):
        from datasets import Dataset

        prompt, limit = self.config.data.system_prompt, self.config.model.max_seq_length
        rows = [encode(self.tokenizer, with_system(c.messages, prompt), limit) for c in conversations]
        rows = [row for row in rows if any(label != IGNORED for label in row.labels)]
        if name == "validation":
            rows.sort(key=lambda row: len(row.input_ids))  # its order is free, and like lengths pad little
        if not rows:
            raise UserError(
                f"no {name} conversation has a reply within {limit} tokens", "Raise --model.max_seq_length."
            )
        return Dataset.from_dict({"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows]})

    def _trainer(self, datasets: dict, folder: Path, callback):
        import torch
        from trl import SFTConfig

        from bnft.trainer import LengthGroupedTrainer, ReplyLossTrainer

        train = self.config.train
        on_gpu = torch.cuda.is_available()
        dtype = str(next(p.dtype for p in self.model.parameters() if p.is_floating_point())).removeprefix("torch.")
        arguments = SFTConfig(
            output_dir=str(folder),
            per_device_train_batch_size=train.batch_size,
            per_device_eval_batch_size=max(train.batch_size, 4),
            gradient_accumulation_steps=train.accumulation,
            learning_rate=train.learning_rate,
            lr_scheduler_type=train.scheduler,
            warmup_steps=train.warmup_steps,
            weight_decay=train.weight_decay,
            max_grad_norm=train.max_grad_norm,
            optim=train.optimizer,
            num_train_epochs=train.epochs,
            max_steps=train.max_steps or -1,
            eval_strategy="steps",
            eval_steps=train.eval_steps,
            save_strategy="steps",
            save_steps=train.save_steps,
            save_total_limit=train.keep_checkpoints,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            greater_is_better=False,
            logging_steps=1,
            logging_nan_inf_filter=False,  # on, it would log 0 for a loss that is no number
            fp16=on_gpu and dtype == "float16",  # both are set: left alone, TRL turns bf16 on
            bf16=on_gpu and dtype == "bfloat16",
            use_cpu=not on_gpu,
            gradient_checkpointing=train.gradient_checkpointing != "none",
            max_length=self.config.model.max_seq_length,
            seed=self.config.seed,
            data_seed=self.config.seed,
            report_to=train.report_to,
            dataloader_pin_memory=on_gpu,
        )
        trainer = LengthGroupedTrainer if on_gpu else ReplyLossTrainer
        return trainer(
            model=self.model,
            args=arguments,
            train_dataset=datasets["train"],
            eval_dataset=datasets["validation"],
            processing_class=self.tokenizer,
            callbacks=[callback],
        )


class _Stops:
    """Time limit and signals: both let the step in hand end, save a checkpoint and leave the loop."""

    def __init__(self, max_minutes: float | None):
        self.deadline = time.monotonic() + max_minutes * 60 if max_minutes else math.inf
        self.reason = ""
        self.exit_code = 0

    def callback(self):
        from transformers import TrainerCallback

        stops = self

        class StopCallback(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if stops.exit_code:
                    control.should_save = control.should_training_stop = True
                elif time.monotonic() > stops.deadline:
                    stops.reason = "time limit"
                    control.should_evaluate = control.should_save = control.should_training_stop = True

            def on_log(self, args, state, control, logs=None, **kwargs):
                for name in ("loss", "eval_loss"):
                    if not math.isfinite((logs or {}).get(name, 0.0)):
                        raise UserError(
                            f"{name} is {logs[name]} at step {state.global_step}; the last good checkpoint is kept",
                            "Lower --train.learning_rate, or raise --train.warmup_steps.",
                            exit_code=1,
                        )

        return StopCallback()

    def listening(self):
        return _Signals(self)


class _Signals:
    """While training runs, the first Ctrl+C or SIGTERM asks it to stop; a second one stops at once."""

    def __init__(self, stops: _Stops):
        self.stops = stops

    def __enter__(self):
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number, frame):
        if self.stops.exit_code:
            raise KeyboardInterrupt
        self.stops.exit_code = 128 + number
        print("\nstopping after this step; once more stops at once", flush=True)

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)
