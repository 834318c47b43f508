"""TRL's SFTTrainer with optimizer steps of this project's own making.

One batch of the loader is one optimizer step's conversations, on every process the same ones in the same order. Each
process takes its share, in as few passes as its memory allows, and the gradients are summed over the processes once.
So rows, order and result do not depend on the number of GPUs or on their memory; a pass that does not fit is halved.
Knows nothing about settings files, stops or saving.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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
from bnft.world import World, any_over, sum_over


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
        halved: where memory ran out: the step, and the tokens of a pass before and after; the same where layers that
            kept their activations are computed again from there on.
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
        self.halved: list[dict] = []
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

    def _kept_layers(self, lengths: Sequence[int]) -> int:
        return self.room.kept_layers(shape_of(lengths, packed=not self.packer.padded)) if self.room else 0

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
        """Sum of `work` over the rows' passes; where memory runs out, all over again with passes half as large.

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
            total = self._sum_of_passes(passes, work, bar=not together)
            if not any_over(total is None, world):
                return total
            self.model.zero_grad(set_to_none=True)
            largest = max((sum(lengths[i] for i in part) for part in parts), default=0)
            single = total is None and max(map(len, parts)) == 1
            if together and self._keeps_less(parts, lengths, largest):
                continue
            if any_over(single, world):
                raise UserError(
                    f"out of memory at step {self.state.global_step + 1}, with one conversation of {max(lengths)} "
                    "tokens at a time",
                    "Lower --model.max_seq_length, or use --model.load_in_4bit true, a smaller model or --lora.r.",
                    exit_code=1,
                )
            self._halve(largest)

    def _keeps_less(self, parts: Sequence[Sequence[int]], lengths: Sequence[int], largest: int) -> bool:
        """Whether layers of these passes kept what some of them compute again from here on, which makes room."""
        if not any(self._kept_layers([lengths[i] for i in part]) for part in parts):
            return False
        self.room = self.room.smaller()
        self._note(largest, largest, "fewer layers keep what the backward pass needs from here on")
        return True

    def _halve(self, largest: int) -> None:
        self.pass_tokens = largest // 2
        told = f"passes of at most {self.pass_tokens} tokens from here on, {largest} before"
        self._note(largest, self.pass_tokens, told)

    def _note(self, before: int, after: int, told: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        step = self.state.global_step + 1
        self.halved.append({"step": step, "tokens_before": before, "tokens": after})
        if self.world.leads:
            tqdm.write(f"out of memory at step {step}: {told}; the rows of a step stay the same")

    def _sum_of_passes(self, passes: Sequence[Sequence[dict]], work, bar: bool):
        """None when memory ran out; its tensors are gone by then, since no traceback holds them any more."""
        shown = bar and self.world.leads and not self.args.disable_tqdm
        try:
            total = 0.0
            for part in tqdm(passes, desc="validation", unit="pass", leave=False, disable=not shown):
                total = total + work(part)
            return total
        except torch.OutOfMemoryError:
            if self.sharded:  # the others wait in the middle of this pass for its part of a layer
                raise
            return None


@contextmanager
def _keeping(model, layers: int) -> Iterator[None]:
    """So many of a model's last layers keep what the backward pass needs, instead of computing it again."""
    kept = list(causal_part(model).get_decoder().layers)[-layers:] if layers else []
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
