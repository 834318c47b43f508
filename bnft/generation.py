"""Replies from a given model: many at a time.

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
        seconds: the batch's time shared out by row.
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
    progress: Callable[[int], None] = lambda rows: None,
) -> list[Generated]:
    """Greedy replies in the order of the prompts; rows of like length share a batch, so that little is padded.

    Args:
        prompts: token ids of each prompt.
        end_ids: the tokens at which a reply ends.
        repetition_penalty: above 1 makes tokens less likely that the reply holds already; the prompt's stay free, for
            a reply that may not take up the person's own words drifts off the point.
        progress: told the number of rows that became ready.
    """
    from transformers import GenerationConfig

    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(end_ids),
        pad_token_id=tokenizer.pad_token_id,
    )
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    replies: list[Generated | None] = [None] * len(prompts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        made = _batch(model, tokenizer, [prompts[i] for i in rows], greedy, repetition_penalty)
        for row, reply in zip(rows, made, strict=True):
            replies[row] = reply
        progress(len(rows))
    return replies


def _batch(model, tokenizer, prompts, settings, repetition_penalty: float) -> list[Generated]:
    import torch
    from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

    from bnft.head import sliced_head

    started = time.monotonic()
    width = max(len(ids) for ids in prompts)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=model.device)
    penalty = RepetitionPenaltyLogitsProcessor(repetition_penalty, prompt_ignore_length=width)
    processors = LogitsProcessorList([penalty] if repetition_penalty != 1 else [])
    with torch.inference_mode(), sliced_head(model):
        output = model.generate(
            input_ids=ids, attention_mask=mask, generation_config=settings, logits_processor=processors
        )
    new = output[:, width:].tolist()
    seconds = (time.monotonic() - started) / len(prompts)
    return [_reply(tokenizer, row, settings.eos_token_id, seconds) for row in new]


def _reply(tokenizer, ids: list[int], end_ids: Sequence[int], seconds: float) -> Generated:
    stops = [i for i, token in enumerate(ids) if token in end_ids]
    kept = ids[: stops[0]] if stops else ids
    text = tokenizer.decode(kept, skip_special_tokens=True).strip()
    return Generated(text if stops else drop_torn_tail(text), len(kept), bool(stops), seconds)
