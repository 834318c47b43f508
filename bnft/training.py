"""`LLAMAFineTuner`: conversations -> a trained adapter, on TRL's SFTTrainer.

Builds the labels, the trainer and its stops (time limit, Ctrl+C, resume). Knows nothing about metrics of replies,
the corpus files or the page.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bnft.checkpoints import check_belongs, checkpoint_keeper, facts_of, only_numbers_of, seal_unsealed
from bnft.errors import Interrupted
from bnft.manifest import seal
from bnft.models import ADAPTER_NOTES, OWN_MODELS, adapter_base, find_model
from bnft.plan import RunPlan
from bnft.room import Room
from bnft.settings import RunConfig
from bnft.stops import Stops
from bnft.strategies import choose_strategy
from bnft.token_cache import tokenised
from bnft.world import World, current_world

# By bytes of a weight. How far a packed token's log-likelihood may follow the tokens of the rows before it: the same
# kernels over the same shapes, so it should not move at all, and follows by 0.5 where a model looks across the borders.
INFLUENCE = {4: 1e-4, 2: 0.01, 1: 0.01}
# And how far it may be from that in padded rows, over which another kernel may run: the order of sums alone moves it by
# 0.07 in a random bfloat16 model of 32 layers.
PACKING_TOLERANCE = {4: 1e-4, 2: 0.3, 1: 0.3}


@dataclass(frozen=True)
class TrainingResult:
    """What a training run did.

    Attributes:
        history: the trainer's log lines, each with `step` and `loss` or `eval_loss`.
        seconds: wall-clock time of the training loop.
        stopped_by: "" when all steps were done, else "time limit".
        ran_out: where memory ran out, as `StepTrainer.ran_out`.
        packed: whether rows shared a pass without padding.
        tokens: token counts of the conversations of each split.
        step_ends: when each step ended, by the monotonic clock.
    """

    history: list[dict]
    steps: int
    seconds: float
    best_eval_loss: float | None
    best_step: int
    stopped_by: str = ""
    ran_out: list[dict] = field(default_factory=list)
    packed: bool = True
    tokens: dict[str, list[int]] = field(default_factory=dict)
    step_ends: list[float] = field(default_factory=list)


class LLAMAFineTuner:
    """A model with a LoRA adapter: new for a base model, loaded for an adapter or run folder.

    Usable from a notebook:

        tuner = LLAMAFineTuner(model_name="outputs/latest", load_in_4bit=True)
        tuner.train(splits["train"], splits["validation"], "my_run")

    Args:
        model_name: any name that `bnft.models.find_model` knows; overrides `config.model.name`.
        load_in_4bit: quantise the frozen weights to NF4.
        config: all other settings.
        world: the processes that train together.

    Attributes:
        pass_tokens: the most tokens of a forward pass on a GPU; no bound unless it is set.
        room: where a GPU's passes need not compute every layer again; none unless it is set.
    """

    def __init__(
        self,
        model_name: str | None = None,
        load_in_4bit: bool | None = None,
        max_seq_length: int | None = None,
        config: RunConfig | None = None,
        world: World | None = None,
    ):
        config = config or RunConfig()
        for name, value in (("name", model_name), ("load_in_4bit", load_in_4bit), ("max_seq_length", max_seq_length)):
            if value is not None:
                config = config.replace(f"model.{name}", value)
        self.config = config
        self.world = world or current_world()
        self.pass_tokens = math.inf
        self.room: Room | None = None
        self.strategy, self.strategy_reason = choose_strategy(config.train.strategy)  # first: Unsloth's import is
        self.source = find_model(config.model.name, config.model.revision)
        trainable = self.strategy.prepare(self.source, config)
        self.model, self.tokenizer = trainable.model, trainable.tokenizer

    def follow(self, plan: RunPlan | None) -> None:
        """Makes its passes as the plan has them, where there is one."""
        if plan:
            self.pass_tokens, self.room = plan.pass_tokens or math.inf, plan.room

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
            UserError: nothing is left to train on, the checkpoint is of another run, or the loss is no number any more.
            Interrupted: after Ctrl+C or SIGTERM, with a checkpoint saved.
        """
        folder = Path(folder)
        datasets = {
            "train": self._tokenised(train, "train"),
            "validation": self._tokenised(self._sample(validation), "validation"),
        }
        facts = facts_of(self.config, self.model, train)
        if resume_from:
            check_belongs(Path(resume_from), facts)
            if self.world.leads:
                seal_unsealed(Path(resume_from), facts)
        stops = Stops(self.config.train.max_minutes, self.world)
        keeper = checkpoint_keeper(facts, self.world, self.config.train.keep_checkpoints)
        trainer = self._trainer(datasets, folder / "checkpoints", [stops.callback(), keeper])
        started = time.monotonic()
        with stops.listening(), only_numbers_of(resume_from):
            trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        seconds = time.monotonic() - started
        if stops.exit_code:
            raise Interrupted(
                stops.exit_code,
                f"interrupted at step {trainer.state.global_step}, checkpoint saved.\n"
                f"  Go on with: python train.py --resume {folder}",
            )
        self.model.eval()
        if self.world.leads:
            self.save(folder / "lora_model")
        state = trainer.state
        best_step = Path(state.best_model_checkpoint).name.rpartition("-")[2] if state.best_model_checkpoint else "0"
        return TrainingResult(
            history=[_finite(line) for line in state.log_history if "loss" in line or "eval_loss" in line],
            steps=state.global_step,
            seconds=seconds,
            best_eval_loss=state.best_metric,
            best_step=int(best_step),
            stopped_by=stops.reason,
            ran_out=trainer.ran_out,
            packed=not trainer.packer.padded,
            tokens={name: list(dataset["length"]) for name, dataset in datasets.items()},
            step_ends=stops.step_ends,
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
        seal(scratch, {})
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

    def _tokenised(self, conversations: Sequence, name: str):
        prompt, limit = self.config.data.system_prompt, self.config.model.max_seq_length
        return tokenised(conversations, self.tokenizer, prompt, limit, name)

    def _trainer(self, datasets: dict, folder: Path, callbacks: list):
        from bnft.trainer import StepTrainer

        train = self.config.train
        step_rows = train.batch_size * train.accumulation
        pass_rows, pass_tokens = self._largest_pass()
        return StepTrainer(
            packer=self._packer(datasets["validation"]),
            step_rows=step_rows,
            pass_rows=pass_rows,
            pass_tokens=pass_tokens,
            world=self.world,
            room=self.room,
            model=self.model,
            args=self._arguments(folder, step_rows),
            train_dataset=datasets["train"],
            eval_dataset=datasets["validation"],
            processing_class=self.tokenizer,
            callbacks=callbacks,
        )

    def _largest_pass(self) -> tuple[int, float]:
        """Rows and tokens that a pass may have."""
        import torch

        train = self.config.train
        if not (torch.cuda.is_available() and train.fit_batch):
            return train.batch_size, math.inf
        return train.batch_size * train.accumulation, self.pass_tokens

    def _packer(self, rows):
        """The strategy's way of packing, or padding where that was asked for, or where packing changes the numbers."""
        from bnft.packing import PaddedRows, difference, influence

        padded = PaddedRows(self.tokenizer.pad_token_id)
        if not self.config.train.packing:
            return padded
        packer = self.strategy.packer()
        some, size = [rows[0], rows[len(rows) - 1]], next(iter(self.model.parameters())).element_size()
        felt, error = influence(self.model, packer, some), difference(self.model, packer, padded, some)
        if felt <= INFLUENCE[size] and error <= PACKING_TOLERANCE[size]:
            return packer
        print(
            f"rows are padded, not packed: packed, this model's log-likelihoods are off by {error:.2g} a token, of "
            f"which other rows make {felt:.2g}"
        )
        return padded

    def _arguments(self, folder: Path, step_rows: int):
        import torch
        from trl import SFTConfig

        train = self.config.train
        on_gpu = torch.cuda.is_available()
        dtype = str(next(p.dtype for p in self.model.parameters() if p.is_floating_point())).removeprefix("torch.")
        arguments = SFTConfig(
            output_dir=str(folder),
            per_device_train_batch_size=step_rows,
            gradient_accumulation_steps=1,  # said, since Unsloth has another default
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
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            greater_is_better=False,
            logging_steps=1,
            logging_nan_inf_filter=False,  # on, it would log 0 for a loss that is no number
            fp16=on_gpu and dtype == "float16",  # both are set: left alone, TRL turns bf16 on
            bf16=on_gpu and dtype == "bfloat16",
            use_cpu=not on_gpu,
            gradient_checkpointing=train.gradient_checkpointing != "none" and not self.strategy.checkpoints_itself,
            dataset_kwargs={"skip_prepare_dataset": True},
            seed=self.config.seed,
            data_seed=self.config.seed,
            report_to=train.report_to,
        )
        if arguments.n_gpu > 1:
            arguments._n_gpu = 1  # a second GPU that this process sees is another process', or holds other layers
        return arguments


def _finite(line: dict) -> dict:
    """A log line that JSON can hold: fp16's scaler looks for its factor in a few first steps, of infinite gradients."""
    return {name: value for name, value in line.items() if not isinstance(value, float) or math.isfinite(value)}
