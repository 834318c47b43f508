"""The merged model against the adapter, on the same held-out rows: likelihood, and greedy replies letter by letter.

One model is in memory at a time. Knows nothing about the Hub.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bnft.evaluation import Evaluator, Row, choose_rows, rows_of
from bnft.metrics import score_likelihood
from bnft.models import find_model, load_model, load_tokenizer, resolve_dtype
from bnft.progress import StageBar
from bnft.settings import ModelConfig, RunConfig


@dataclass(frozen=True)
class _Talk:
    """One row as the evaluator takes conversations."""

    id: str
    messages: tuple[dict, ...]


def compare_merged(config: RunConfig, adapter: str, merged: str, test: Sequence, rows: int) -> dict[str, Any]:
    """Bits per byte of both, and how many greedy replies are the same.

    Args:
        adapter: the adapter's folder; its base is loaded in 4 bit where the run trained on 4 bit.
        merged: the merged folder.
        test: the conversations of the test split.
    """
    chosen = choose_rows(rows_of(test), rows, config.seed)
    four_bit = config.model.load_in_4bit
    bits, replies = {}, {}
    for name, where, in_4bit in (("adapter", adapter, four_bit), ("merged", merged, False)):
        settings = ModelConfig(name=where, load_in_4bit=in_4bit, dtype=config.model.dtype)
        bits[name], replies[name] = _measure(config, settings, chosen, name)
        gc.collect()
    same = sum(a == b for a, b in zip(replies["adapter"], replies["merged"], strict=True))
    note = "The adapter's base was in 4 bit, as in training; the merged weights are not." if four_bit else ""
    return {
        "rows": len(chosen),
        "dtype": resolve_dtype(config.model.dtype)[0],
        "adapter_bits_per_byte": bits["adapter"],
        "merged_bits_per_byte": bits["merged"],
        "same_replies": same,
        "note": note,
    }


def _measure(config: RunConfig, settings: ModelConfig, rows: Sequence[Row], name: str) -> tuple[float, list[str]]:
    import torch

    source = find_model(settings.name, announce=lambda text: None)
    several = torch.cuda.is_available() and torch.cuda.device_count() > 1
    model = load_model(source, settings, device_map="auto" if several else None)
    with StageBar() as bar:
        evaluator = Evaluator(model, load_tokenizer(source), config, bar.show)
        talks = [_Talk(row.id, (*row.messages, {"role": "assistant", "content": row.reference})) for row in rows]
        values, last = evaluator.likelihoods(talks, name), []
        for talk in talks:  # one value a reply; a row is judged by its last
            count = len(talk.messages) // 2
            last.append(values[count - 1])
            values = values[count:]
        replies = [reply.text for reply in evaluator.generate(rows, name)]
    score = score_likelihood(last, bootstrap=config.eval.bootstrap, seed=config.seed)["bits_per_byte"]
    return score.value, replies
