"""TRL's SFTTrainer with optimizer steps of this project's own making.

One batch of the loader is one optimizer step's conversations, on every process the same ones in the same order. Each
process takes its share, in as few passes as it may, and the gradients are summed over the processes once.
So rows, order and result do not depend on the number of GPUs or on their memory; where it runs out, less is kept for
the backward pass, then passes are halved. Knows nothing about settings files, stops or saving.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from trl import SFTTrainer

from bnft.errors import UserError
from bnft.packing import Packer
from bnft.prompts import IGNORED
from bnft.reply_loss import reply_log_likelihoods
from bnft.room import Room, shape_of
from bnft.sharding import even_out, is_sharded
from bnft.steps import StepSampler, micro_batches, shares
from bnft.streaming import causal_part
from bnft.world import World, largest_over, sum_over


class _StepLoader(DataLoader):
    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


class _Unwrapped(torch.nn.Module):
    """The model as it is: gradients are summed here, so nothing has to stand between it and the processes."""

    def __init__(self, model):
        super().__init__()
        self.module = model

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


class StepTrainer(SFTTrainer):
    """Args:
        packer: how rows share a pass.
        step_rows: conversations of one optimizer step, over all processes.
        pass_rows, pass_tokens: bounds of one pass.
        room: where some layers need not be computed again for the backward pass.
        world: the processes that train together.

    Attributes:
        ran_out: where memory ran out: the step, and before and after it the tokens of a pass, or the layers that keep
            what the backward pass needs.
    """

    def __init__(
        self,
        *,
        packer: Packer,
        step_rows: int,
        pass_rows: int,
        pass_tokens: float,
        world: World,
        room: Room | None = None,
        **kwargs,
    ):
        self.packer, self.step_rows, self.world = packer, step_rows, world
        self.pass_rows, self.pass_tokens, self.room = pass_rows, pass_tokens, room
        self.sharded = is_sharded(kwargs["model"])
        self.ran_out: list[dict] = []
        trained = [(parameter, parameter.data) for parameter in kwargs["model"].parameters() if parameter.requires_grad]
        super().__init__(data_collator=_as_rows, **kwargs)
        for parameter, values in trained:  # TRL makes them bfloat16 over 4-bit weights: fp16's scaler refuses that
            parameter.data = values.float()

    def _run_epoch(self, **kwargs) -> None:
        # transformers would take one step more with a run that is resumed after its last one
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**kwargs)

    def get_train_dataloader(self) -> DataLoader:
        sampler = StepSampler(len(self.train_dataset), self.step_rows, self.args.seed)
        return _StepLoader(self.train_dataset, batch_sampler=sampler, collate_fn=_as_rows)

    def _wrap_model(self, model, training=True, dataloader=None):
        return _Unwrapped(model) if training else model

    def _get_num_items_in_batch(self, batch_samples, device):
        return None  # every process knows all rows of a step

    def floating_point_ops(self, inputs) -> float:
        return 0.0  # transformers' count takes padded tensors

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """The step's gradients; returns a loss whose mean over the processes is the mean over the step's tokens."""
        rows = inputs["rows"]
        own = [rows[i] for i in shares([len(row["input_ids"]) for row in rows], self.world.size)[self.world.rank]]
        scored = sum(map(_scored, rows))
        self.model.train()
        with self.packer.open(self.model):
            loss = self._with_room(own, lambda part: self._backward(part, scored), together=True)
        gradients = []
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        sum_over(gradients, self.world)
        return torch.as_tensor(loss * self.world.size, device=self.args.device)

    def _backward(self, rows: Sequence[dict], scored: int) -> torch.Tensor:
        with _keeping(self.model, self._kept_layers([len(row["input_ids"]) for row in rows])):
            with self.accelerator.autocast():
                loss = -reply_log_likelihoods(self.model, **self._inputs(rows)).sum() / scored
            self.accelerator.backward(loss)
        return loss.detach()

    def _shape(self, lengths: Sequence[int]) -> tuple[int, int, int]:
        return shape_of(lengths, packed=not self.packer.padded)

    def _kept_layers(self, lengths: Sequence[int]) -> int:
        return self.room.kept_layers(self._shape(lengths)) if self.room else 0

    def _inputs(self, rows: Sequence[dict]) -> dict:
        return self.packer.inputs(rows, self.args.device)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Mean loss over all reply tokens of the validation rows, whatever passes they are read in."""
        started = time.monotonic()
        dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        rows = [dataset[i] for i in range(self.world.rank, len(dataset), self.world.size)]
        self.model.eval()

        def negative_log_likelihood(part: Sequence[dict]) -> torch.Tensor:
            with self.accelerator.autocast():
                return -reply_log_likelihoods(self.model, **self._inputs(part)).sum().double()

        with torch.no_grad(), self.packer.open(self.model):
            total = self._with_room(rows, negative_log_likelihood, together=False)
        sums = torch.tensor([float(total), sum(map(_scored, rows))], dtype=torch.float64, device=self.args.device)
        sum_over([sums], self.world)
        metrics = {
            f"{metric_key_prefix}_loss": (sums[0] / sums[1]).item(),
            f"{metric_key_prefix}_runtime": round(time.monotonic() - started, 2),
        }
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _with_room(self, rows: Sequence[dict], work, together: bool):
        """Sum of `work` over the rows' passes; where memory runs out, all over again with less kept, or smaller passes.

        Args:
            together: processes do this at the same time, and all begin again where one has to.
        """
        world = self.world if together or self.sharded else World()
        while True:
            lengths = [len(row["input_ids"]) for row in rows]
            parts = micro_batches(lengths, self.pass_tokens, self.pass_rows, self.packer.padded)
            passes = [[rows[i] for i in part] for part in parts]
            if self.sharded:
                passes = even_out(passes, self.world)
            total, full = self._sum_of_passes(passes, work, bar=not together)
            own = _state(full, self._kept_layers(full) if full and together else 0)
            worst = largest_over(own, world)  # one question to all: they take the same way from here
            if worst == _FITS:
                return total
            self.model.zero_grad(set_to_none=True)
            if worst == _ONE_ROW:
                raise UserError(
                    f"out of memory at step {self.state.global_step + 1}, with one conversation of "
                    f"{max(full or lengths, default=0)} tokens at a time",
                    "Lower --model.max_seq_length, or use --model.load_in_4bit true, a smaller model or --lora.r.",
                    exit_code=1,
                )
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if worst == _ROWS and lengths:
                largest = max(sum(lengths[i] for i in part) for part in parts)
                self.pass_tokens = largest // 2
                told = f"passes of at most {self.pass_tokens} tokens from here on, {largest} before"
                self._note({"tokens_before": largest, "tokens": self.pass_tokens}, told)
            elif own == _LAYERS:
                kept, self.room = self._kept_layers(full), self.room.smaller(self._shape(full))
                fewer = {"layers_kept_before": kept, "layers_kept": self._kept_layers(full)}
                self._note(fewer | {"tokens": sum(full)}, "fewer layers keep what the backward pass needs from here on")

    def _note(self, what: dict, told: str) -> None:
        step = self.state.global_step + 1
        self.ran_out.append({"step": step} | what)
        if self.world.leads:
            tqdm.write(f"out of memory at step {step}: {told}; the rows of a step stay the same")

    def _sum_of_passes(self, passes: Sequence[Sequence[dict]], work, bar: bool) -> tuple[Any, list[int]]:
        """The sum, and []; or None, and the lengths of the rows for which memory ran out.

        Its tensors are gone by then, since no traceback holds them any more.
        """
        shown, part = bar and self.world.leads and not self.args.disable_tqdm, []
        try:
            total = 0.0
            for part in tqdm(passes, desc="validation", unit="pass", leave=False, disable=not shown):
                total = total + work(part)
            return total, []
        except torch.OutOfMemoryError:
            if self.sharded:  # the others wait in the middle of this pass for its part of a layer
                raise
            return None, [len(row["input_ids"]) for row in part]


# How a step's passes went in a process, from good to bad: all fit; memory ran out although layers could keep less; it
# ran out with nothing kept; with nothing kept and one row alone.
_FITS, _LAYERS, _ROWS, _ONE_ROW = range(4)


def _state(full: Sequence[int], kept: int) -> int:
    if not full:
        return _FITS
    return _LAYERS if kept else _ROWS if len(full) > 1 else _ONE_ROW


@contextmanager
def _keeping(model, layers: int) -> Iterator[None]:
    """So many of a model's last layers keep what the backward pass needs, instead of computing it again."""
    kept = list(getattr(causal_part(model).get_decoder(), "layers", ()))[-layers:] if layers else []
    before = [layer.gradient_checkpointing for layer in kept]
    for layer in kept:
        layer.gradient_checkpointing = False
    try:
        yield
    finally:
        for layer, again in zip(kept, before, strict=True):
            layer.gradient_checkpointing = again


def _as_rows(rows: Sequence[dict]) -> dict:
    return {"rows": list(rows)}


def _scored(row: dict) -> int:
    return sum(label != IGNORED for label in row["labels"][1:])
