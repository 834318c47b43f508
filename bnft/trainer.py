"""TRL's SFTTrainer with this project's order of rows, and its loss where TRL's kernel cannot run.

Knows nothing about settings files, stops or saving.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler
from trl import SFTTrainer

from bnft.reply_loss import reply_log_likelihoods

GROUPED_BATCHES = 16  # so many batches are sorted by length together; more pads less, and shuffles less


class LengthGroupedSampler(Sampler):
    """Rows in a shuffled order in which neighbours are of like length, so that little of a batch is padding.

    The order depends on seed and epoch alone, so that a resumed run goes on with the very rows it would have seen.
    transformers' sampler of that name draws from the global generator, which a resumed run has in another state.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self.seed}-{self.epoch}")
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        size = self.batch_size
        for start in range(0, len(order), size * GROUPED_BATCHES):
            group = sorted(order[start : start + size * GROUPED_BATCHES], key=lambda i: self.lengths[i], reverse=True)
            batches = [group[i : i + size] for i in range(0, len(group), size)]
            rest = [batches.pop()] if len(batches[-1]) < size else []  # a short batch may only come last
            rng.shuffle(batches)
            for batch in (*batches, *rest):
                yield from batch


class LengthGroupedTrainer(SFTTrainer):
    """For GPUs: the loss is TRL's."""

    def _get_train_sampler(self, train_dataset=None):
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        lengths = [len(ids) for ids in dataset["input_ids"]]
        return LengthGroupedSampler(lengths, self.args.per_device_train_batch_size, self.args.seed)


class ReplyLossTrainer(LengthGroupedTrainer):
    """For CPUs: TRL's loss is a Triton kernel, which a CPU build of PyTorch does not have."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = {name: value for name, value in inputs.items() if name != "seq_lengths"}
        log_likelihoods = reply_log_likelihoods(self.accelerator.unwrap_model(model), **inputs)
        count = len(log_likelihoods) if num_items_in_batch is None else num_items_in_batch
        loss = -log_likelihoods.sum() / count
        return (loss, {}) if return_outputs else loss
