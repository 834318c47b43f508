"""Replies from a given model: many at a time, by rows where all of it is on one GPU (bnft/batch_generation.py).

Knows nothing about where the model came from, what the prompts say, or what the replies are for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bnft.text import drop_torn_tail


@dataclass(frozen=True)
class Generated:
    """One reply.

    Attributes:
        tokens: length in tokens, without the end token.
        ended: the model ended the reply by itself, before the token limit.
        seconds: the time of what was written together, shared out by row.
    """

    text: str
    tokens: int
    ended: bool
    seconds: float

    @property
    def finish_reason(self) -> str:
        return "stop" if self.ended else "length"


def generate_all(
    model,
    tokenizer,
    prompts: Sequence[Sequence[int]],
    end_ids: Sequence[int],
    max_new_tokens: int,
    batch_size: int = 16,
    repetition_penalty: float = 1.0,
    ready: Callable[[int, Generated], None] = lambda number, reply: None,
) -> list[Generated]:
    """Greedy replies in the order of the prompts; rows of like length are written together, so that little is padded.

    Args:
        prompts: token ids of each prompt.
        end_ids: the tokens at which a reply ends.
        batch_size: rows at a time on a CPU; on a GPU there are as many as have room.
        repetition_penalty: above 1 makes tokens less likely that the reply holds already; the prompt's stay free, for
            a reply that may not take up the person's own words drifts off the point.
        ready: told each reply with its prompt's number, as soon as it is whole.
    """
    from bnft.batch_generation import BatchWriter, Job, has_rows

    replies: list[Generated | None] = [None] * len(prompts)

    def tell(number: int, ids: list[int], ended: bool, seconds: float) -> None:
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        replies[number] = Generated(text if ended else drop_torn_tail(text), len(ids), ended, seconds)
        ready(number, replies[number])

    if prompts:
        job = Job(prompts, frozenset(end_ids), max_new_tokens, repetition_penalty, tell)
        if has_rows(model):
            BatchWriter(model).write(job)
        else:
            _write_padded(model, tokenizer.pad_token_id, job, batch_size)
    return replies


def _write_padded(model, pad: int, job, batch_size: int) -> None:
    """Batches of `model.generate`: on a CPU, or with a model that lies on several GPUs."""
    from transformers import GenerationConfig

    from bnft.gpu_memory import batch_costs, in_batches

    settings = GenerationConfig(
        do_sample=False, max_new_tokens=job.limit, eos_token_id=sorted(job.end_ids), pad_token_id=pad
    )

    def write(numbers: Sequence[int]) -> None:
        started = time.monotonic()
        new = _batch(model, [job.prompts[number] for number in numbers], settings, job.penalty)
        seconds = (time.monotonic() - started) / len(numbers)
        for number, ids in zip(numbers, new, strict=True):
            ends = [i for i, token in enumerate(ids) if token in job.end_ids]
            job.ready(number, ids[: ends[0]] if ends else ids, bool(ends), seconds)

    order = sorted(range(len(job.prompts)), key=lambda number: len(job.prompts[number]), reverse=True)
    cost, most = batch_costs(model, batch_size)
    in_batches(order, write, lambda number: cost(len(job.prompts[number]), job.limit), most)


def _batch(model, prompts: Sequence[Sequence[int]], settings, repetition_penalty: float) -> list[list[int]]:
    """New tokens of each row, padded behind its end."""
    import torch
    from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

    from bnft.head import sliced_head

    width, pad = max(len(ids) for ids in prompts), settings.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=model.device)
    penalty = RepetitionPenaltyLogitsProcessor(repetition_penalty, prompt_ignore_length=width)
    processors = LogitsProcessorList([penalty] if repetition_penalty != 1 else [])
    with torch.inference_mode(), sliced_head(model):
        output = model.generate(
            input_ids=ids, attention_mask=mask, generation_config=settings, logits_processor=processors
        )
    return output[:, width:].tolist()
