"""One reply at a time as it is being written: the decoding loop, the choice of the next token, and when to stop.

No threads: the caller draws one piece after another, and a reply that nobody draws costs nothing (many replies at once
on a GPU: bnft/batching.py). Knows nothing about prompts, people or pages.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from bnft import cpu_weights
from bnft.adapters import AdapterSwitch
from bnft.cpu_weights import ScreenedHead
from bnft.emitter import Emitter, TokenTable

_CHUNK = 128  # prompt tokens read between two looks at the stop event
_MOST_ROWS = 16_384  # beyond so many candidates the whole head is read faster


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0.0 is greedy.
        top_p: the smallest set of tokens with this probability is drawn from.
        repetition_penalty: above 1 makes tokens less likely that the reply holds already, as in bnft/generation.py.
        seed: the same one gives the same reply; None a new one each time.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    repetition_penalty: float
    seed: int | None = None

    def __post_init__(self) -> None:
        wrong = [
            f"{name} {getattr(self, name)} is not {bounds}"
            for name, fits, bounds in (
                ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
                ("temperature", self.temperature >= 0, "at least 0"),
                ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
                ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            )
            if not fits
        ]
        if wrong:
            raise ValueError("; ".join(wrong))


@dataclass(frozen=True)
class Piece:
    """A reply so far.

    Attributes:
        text: the whole text, in whole grapheme clusters, stripped; each is a prefix of the next.
        tokens: tokens drawn so far, without the end token.
        finish_reason: None while running, then "stop" (by the model), "length" or "stopped" (from outside).
    """

    text: str
    tokens: int
    finish_reason: str | None


class Engine:
    """Streams replies of one model; where several are drawn at the same time, they take turns by the token.

    On a CPU it reads faster copies of the weights, made here: the weights must not change afterwards.

    Args:
        model: a causal language model, with or without a LoRA adapter on it.
        end_ids: the tokens at which a reply ends.
        quick: make those copies; without them every token costs what it costs `generate`.

    Attributes:
        seats: how many replies it writes without one waiting for the other.
        note: what there is to know about its speed, for the log.
    """

    seats = 1
    note = "one reply at a time"

    def __init__(self, model, tokenizer, end_ids: Sequence[int], quick: bool = True) -> None:
        self._table = TokenTable(tokenizer)
        self._end_ids = frozenset(end_ids)
        self._model = model
        causal = causal_part(model)
        self._device, self._config = causal.device, causal.config
        self._body = causal.get_decoder()
        self._head = causal.get_output_embeddings()
        self._cap = score_cap(causal)
        self._screen: ScreenedHead | None = None
        self._switch: AdapterSwitch | None = None
        self._turn = threading.Lock()
        if quick and self._device.type == "cpu" and cpu_weights.has_fast_kernels():
            self._prepare_cpu(tokenizer)

    @torch.inference_mode()
    def _prepare_cpu(self, tokenizer) -> None:
        left = cpu_weights.EXTRA_BYTES
        if type(self._head) is torch.nn.Linear and self._head.bias is None and self._cap is None:
            ids = tokenizer("আমি আপনার পাশে আছি। I am with you.", return_tensors="pt").input_ids
            sample = self._body(input_ids=ids, use_cache=False).last_hidden_state[0]
            self._screen = cpu_weights.quick_head(self._head.weight, sample)
            left -= ScreenedHead.size(self._head.weight) if self._screen else 0
        switch = AdapterSwitch()
        quick = cpu_weights.quick_copy(self._body, left, switch)
        if quick is not None:
            self._body, self._switch = quick, switch

    def stream(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        stop: threading.Event | None = None,
        base: bool = False,
    ) -> Iterator[Piece]:
        """A piece for every token, the last one with its finish reason; the text need not grow with each.

        Setting `stop` ends the reply within one token's time (while the prompt is read: within 128 tokens' time), and
        so does closing the iterator.

        Args:
            base: the adapter is off for this reply.
        """
        if not prompt_ids:
            raise ValueError("the prompt is empty")
        stop = stop or threading.Event()
        cache = DynamicCache(config=self._config)
        emitter = Emitter(self._table)
        chooser = _Chooser(sampling, self._scores, self._screen)
        for start in range(0, len(prompt_ids), _CHUNK):
            if stop.is_set():
                yield Piece("", 0, "stopped")
                return
            hidden = self._read(prompt_ids[start : start + _CHUNK], cache, base)
        for count in range(1, sampling.max_new_tokens + 1):
            token = chooser.choose(hidden)
            if token in self._end_ids:
                yield Piece(emitter.end(), count - 1, "stop")
                return
            text = emitter.push(token)
            if count == sampling.max_new_tokens:
                break
            if not stop.is_set():
                yield Piece(text, count, None)
            if stop.is_set():
                yield Piece(emitter.cut(), count, "stopped")
                return
            hidden = self._read([token], cache, base)
        yield Piece(emitter.cut(), sampling.max_new_tokens, "length")

    def close(self) -> None:
        """Nothing to end: an engine at rest holds no thread."""

    @torch.inference_mode()
    def _read(self, tokens: Sequence[int], cache: DynamicCache, base: bool) -> torch.Tensor:
        """The hidden state behind the last of the tokens, which are added to the cache."""
        ids = torch.tensor([list(tokens)], device=self._device)
        with self._turn, self._adapter(not base):
            return self._body(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[0, -1]

    @contextmanager
    def _adapter(self, on: bool) -> Iterator[None]:
        if self._switch is not None:
            self._switch.on = on
            yield
        else:
            with nullcontext() if on or not hasattr(self._model, "disable_adapter") else self._model.disable_adapter():
                yield

    def _scores(self, hidden: torch.Tensor) -> torch.Tensor:
        scores = self._head(hidden).float()
        return torch.tanh(scores / self._cap) * self._cap if self._cap else scores


def causal_part(model):
    """The language model itself, with the adapter's layers in it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def score_cap(causal) -> float | None:
    """Gemma 2's bound of the scores, or None."""
    return getattr(causal.config.get_text_config(), "final_logit_softcapping", None)


class _Chooser:
    """The next token of one reply, from the scores of all tokens or of those that can matter.

    Args:
        scores: hidden state -> the score of every token.
        screen: a quicker way to find the best tokens, where there is one.
    """

    def __init__(
        self,
        sampling: Sampling,
        scores: Callable[[torch.Tensor], torch.Tensor],
        screen: ScreenedHead | None,
    ) -> None:
        self._sampling, self._scores, self._screen = sampling, scores, screen
        self._seen: set[int] = set()
        self._dice: torch.Generator | None = None

    @torch.inference_mode()
    def choose(self, hidden: torch.Tensor) -> int:
        greedy = self._sampling.temperature == 0
        token = None
        if self._screen:
            token = self._best_of_few(hidden) if greedy else self._draw_of_few(hidden)
        if token is None:
            scores = self._penalised(self._scores(hidden))
            token = int(scores.argmax()) if greedy else self._draw(scores / self._sampling.temperature)
        self._seen.add(token)
        return token

    def _best_of_few(self, hidden: torch.Tensor) -> int | None:
        """The token with the highest score, or None where too many could have it."""
        estimate, margin = self._screen.estimate(hidden)
        highest = self._penalised(estimate + margin)
        floor = self._exact(hidden, highest.argmax()[None])[0]
        rows = (highest >= floor).nonzero()[:, 0]
        return int(rows[self._exact(hidden, rows).argmax()]) if len(rows) <= _MOST_ROWS else None

    def _draw_of_few(self, hidden: torch.Tensor) -> int | None:
        """A token drawn from the nucleus, or None where that is too large to be worth a search.

        Every token of the nucleus is in it, with its true score. Only the probability of all the others together is
        taken from the estimate, whose errors are small and cancel out: it moves the nucleus' edge.
        """
        temperature, top_p = self._sampling.temperature, self._sampling.top_p
        if top_p == 1:
            return None
        estimate, margin = self._screen.estimate(hidden)
        highest = self._penalised(estimate + margin) / temperature
        likely = self._penalised(estimate) / temperature
        total = likely.logsumexp(0)
        for reach in (4, 8, 12):
            floor = likely.max() - reach
            rows = (highest >= floor).nonzero()[:, 0]  # all others score less than `floor`
            if len(rows) > _MOST_ROWS:
                return None
            others = 1 - (likely[rows] - total).exp().sum()
            exact, order = (self._exact(hidden, rows) / temperature).sort(descending=True)
            shares = (exact - torch.logaddexp(exact.logsumexp(0), total + others.clamp_min(0).log())).exp()
            count = _nucleus(shares, top_p)
            if count <= len(rows) and exact[count - 1] >= floor:
                return int(rows[order[self._throw(shares[:count])]])
        return None

    def _draw(self, scores: torch.Tensor) -> int:
        if self._sampling.top_p == 1:
            return self._throw(scores.softmax(0))
        shares = scores.softmax(0)
        rows = (shares >= shares.max() * 1e-6).nonzero()[:, 0]  # sorting all tokens takes as long as scoring them
        if shares[rows].sum() < self._sampling.top_p:
            rows = torch.arange(len(shares), device=shares.device)
        shares, order = shares[rows].sort(descending=True)
        return int(rows[order[self._throw(shares[: _nucleus(shares, self._sampling.top_p)])]])

    def _throw(self, shares: torch.Tensor) -> int:
        if self._dice is None:
            self._dice = torch.Generator(shares.device)
            self._dice.seed() if self._sampling.seed is None else self._dice.manual_seed(self._sampling.seed)
        return int(torch.multinomial(shares, 1, generator=self._dice))

    def _exact(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        scores = self._screen.scores_of(hidden, rows)
        if self._sampling.repetition_penalty == 1:
            return scores
        return torch.where(
            torch.isin(rows, torch.tensor(list(self._seen), dtype=torch.long)), self._weakened(scores), scores
        )

    def _penalised(self, scores: torch.Tensor) -> torch.Tensor:
        if self._sampling.repetition_penalty == 1:
            return scores
        seen = torch.tensor(list(self._seen), dtype=torch.long, device=scores.device)
        return scores.index_copy(0, seen, self._weakened(scores[seen]))

    def _weakened(self, scores: torch.Tensor) -> torch.Tensor:
        """As in CTRL (https://arxiv.org/abs/1909.05858) and `generate`; it keeps the order of two scores."""
        penalty = self._sampling.repetition_penalty
        return torch.where(scores > 0, scores / penalty, scores * penalty)


def _nucleus(shares: torch.Tensor, top_p: float) -> int:
    """How many of the falling shares it takes to reach `top_p`; one more than there are when all do not."""
    return int((shares.cumsum(0) < top_p).sum()) + 1
