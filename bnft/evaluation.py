"""`Evaluator`: held-out conversations -> likelihoods and replies -> scores, base beside tuned on one loaded model.

Every reply of a conversation is one row, judged with all that was said before it. Where several processes evaluate
together, each takes its share of the rows, and all have the whole result. Knows nothing about what becomes of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnft.errors import UserError
from bnft.generated_rows import GeneratedRows, weights_fingerprint
from bnft.generation import Generated, generate_all
from bnft.metrics import Comparison, Likelihood, Reply, Score, compare, score_likelihood, score_replies
from bnft.prompts import IGNORED, encode, encode_prompt, end_token_ids, with_system
from bnft.settings import RunConfig


@dataclass(frozen=True)
class Row:
    """One exchange of the test split: what was said before, and the reply that a person wrote."""

    id: str
    messages: tuple[dict, ...]
    reference: str

    @property
    def question(self) -> str:
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Evaluation:
    """One system on the test split."""

    scores: dict[str, Score]
    replies: list[Generated]


def rows_of(conversations: Sequence) -> list[Row]:
    """The exchanges of conversations (objects with `id` and `messages`), in order."""
    return [
        Row(f"{c.id}-{i // 2 + 1}", tuple(c.messages[:i]), message["content"])
        for c in conversations
        for i, message in enumerate(c.messages)
        if message["role"] == "assistant"
    ]


def choose_rows(rows: Sequence[Row], samples: int | str, seed: int) -> list[Row]:
    """All rows, or a seeded sample of them in their order."""
    if samples == "all" or samples >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), samples))]


class Evaluator:
    """Scores a model on conversations.

    Args:
        model, tokenizer: as `LLAMAFineTuner` or `bnft.models` give them; with an adapter for base against tuned.
        config: the run's settings; prompt, decoding and sample size come from it.
        progress: called with the stage's name and the rows done and in all.
        folder: keeps every reply as it comes, for an evaluation that goes on with them; None keeps nothing.
    """

    def __init__(
        self,
        model,
        tokenizer,
        config: RunConfig,
        progress: Callable[[str, int, int], None] | None = None,
        folder: Path | None = None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.progress = progress or (lambda stage, done, total: None)
        self.folder = folder

    def evaluate(self, conversations: Sequence, name: str = "model") -> Evaluation:
        """Likelihood of all rows, replies to the chosen ones.

        Raises:
            UserError: there is no row to evaluate.
        """
        if not conversations:
            raise UserError("the test split is empty", "Use more data, or a larger --data.test_fraction.")
        self.model.eval()
        how = {"bootstrap": self.config.eval.bootstrap, "seed": self.config.seed}
        scores = score_likelihood(self.likelihoods(conversations, name), **how)
        rows = choose_rows(rows_of(conversations), self.config.eval.samples, self.config.seed)
        replies = self.generate(rows, name)
        judged = [Reply(text=r.text, tokens=r.tokens, ended=r.ended) for r in replies]
        scores |= score_replies(judged, [row.reference for row in rows], **how)
        return Evaluation(scores, replies)

    def evaluate_pair(self, conversations: Sequence) -> tuple[Evaluation, Evaluation, dict[str, Comparison]]:
        """The base (adapter off), then the tuned model (adapter on), and the paired comparison."""
        disable = getattr(self.model, "disable_adapter", nullcontext)
        with disable():
            base = self.evaluate(conversations, "base")
        tuned = self.evaluate(conversations, "tuned")
        return base, tuned, compare(base.scores, tuned.scores)

    def likelihoods(self, conversations: Sequence, name: str = "model") -> list[Likelihood]:
        """One value a reply, over its tokens alone: no template, no end-of-turn token, nothing cut off."""
        import torch

        from bnft.gpu_memory import batch_costs, in_batches
        from bnft.reply_loss import reply_log_likelihoods

        encoded = [encode(self.tokenizer, self._messages(c.messages)) for c in conversations]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].input_ids), reverse=True)
        _, share = _share(order)
        found: dict[int, list[Likelihood]] = {}

        def judge(chosen: Sequence[int]) -> None:
            rows = [encoded[i] for i in chosen]
            with torch.inference_mode():
                values = reply_log_likelihoods(self.model, **_padded(rows, self.tokenizer, self.model.device))
            values = values.double().tolist()
            for i in chosen:
                found[i] = []
                replies = [m["content"].strip() for m in conversations[i].messages if m["role"] == "assistant"]
                for text, length in zip(replies, _reply_lengths(encoded[i].labels), strict=True):
                    nats = -sum(values[: length - 1])  # the last one is the end token
                    values = values[length:]
                    found[i].append(Likelihood.of_reply(text, nats=nats, tokens=length - 1))
            self.progress(f"{name}: likelihood", sum(map(len, found.values())), total)

        total = sum(len(conversations[i].messages) // 2 for i in share)
        cost, most = batch_costs(self.model, max(1, self.config.eval.batch_size // 4))
        in_batches(share, judge, lambda i: cost(len(encoded[i].input_ids), 0), most)
        found = _gathered(found)
        return [likelihood for i in range(len(encoded)) for likelihood in found[i]]

    def generate(self, rows: Sequence[Row], name: str = "model") -> list[Generated]:
        """Greedy replies to the rows, in their order."""
        prompts = [encode_prompt(self.tokenizer, self._messages(row.messages)) for row in rows]
        ends, how = end_token_ids(self.tokenizer), self.config.generation
        # Every process finds the same share, whatever the others have written meanwhile.
        rank, share = _share(sorted(range(len(rows)), key=lambda i: len(prompts[i]), reverse=True))
        kept, found = None, {}
        if self.folder:
            made_with = {"limit": how.max_new_tokens, "penalty": how.repetition_penalty, "ends": ends}
            weights = weights_fingerprint(self.model)
            kept = GeneratedRows(self.folder, name, made_with | {"weights": weights}, rank)
            found = kept.read([rows[i].id for i in share], [prompts[i] for i in share])
        replies = {share[place]: reply for place, reply in found.items()}
        missing = [i for i in share if i not in replies]
        self.progress(f"{name}: replies", len(replies), len(share))

        def tell(number: int, reply: Generated) -> None:
            i = missing[number]
            replies[i] = reply
            if kept:
                kept.add(rows[i].id, prompts[i], reply)
            self.progress(f"{name}: replies", len(replies), len(share))

        with kept.open() if kept and missing else nullcontext():
            generate_all(
                self.model,
                self.tokenizer,
                [prompts[i] for i in missing],
                ends,
                how.max_new_tokens,
                self.config.eval.batch_size,
                how.repetition_penalty,
                tell,
            )
        replies = _gathered(replies)
        return [replies[i] for i in range(len(rows))]

    def _messages(self, messages: Sequence[dict]) -> list[dict]:
        return with_system(messages, self.config.data.system_prompt)


def _share(order: Sequence[int]) -> tuple[int, list[int]]:
    """This process' number, and every n-th of the rows: of n processes each gets as many long ones as the others."""
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return 0, list(order)
    rank = distributed.get_rank()
    return rank, list(order[rank :: distributed.get_world_size()])


def _gathered(found: dict[int, Any]) -> dict[int, Any]:
    """What all processes found."""
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return found
    everyone: list[dict] = [{}] * distributed.get_world_size()
    distributed.all_gather_object(everyone, found)
    return {i: value for part in everyone for i, value in part.items()}


def _reply_lengths(labels: Sequence[int]) -> list[int]:
    """Lengths of the runs of labelled tokens: one a reply, its end token included."""
    lengths = []
    before = IGNORED
    for label in labels:
        if label != IGNORED:
            if before == IGNORED:
                lengths.append(0)
            lengths[-1] += 1
        before = label
    return lengths


def _padded(encoded: Sequence, tokenizer, device) -> dict:
    import torch

    width = max(len(row.input_ids) for row in encoded)

    def tensor(rows, fill):
        return torch.tensor([list(row) + [fill] * (width - len(row)) for row in rows], device=device)

    return {
        "input_ids": tensor([row.input_ids for row in encoded], tokenizer.pad_token_id),
        "labels": tensor([row.labels for row in encoded], IGNORED),
        "attention_mask": tensor([[1] * len(row.input_ids) for row in encoded], 0),
    }
