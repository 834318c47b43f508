"""One turn of a conversation: bounds, safety, prompt, reply as it is written, and a kind answer when that fails.

`Chat.reply` works without a page and knows none; the model is a source behind it, local or on another machine. Models
compute in threads of their own: every thread that ever did so keeps megabytes, and the page's threads are hundreds.
What people write is never logged.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from typing import Any, Protocol

from bnft.batching import BatchEngine, open_engine
from bnft.counts import Counts
from bnft.crisis_cards import crisis_card, guess_country, safe_reply
from bnft.endpoint import EndpointError
from bnft.errors import UserError
from bnft.gpu_memory import release_gpu
from bnft.line import Line, LineFull
from bnft.prompts import encode_prompt, end_token_ids, trim_history, with_system
from bnft.safety import CrisisDetector, Risk, Verdict, whole_sentences
from bnft.streaming import Engine, Piece, Sampling
from bnft.turns import MAX_MESSAGE, Card, Settings, Update, clean_message, clean_reply, exchanges, says_something
from bnft.ui_strings import text
from bnft.zero_gpu import LentEngine, is_zero_gpu

JUDGED = 25  # messages that may wait to be judged; each holds a thread
MAX_CONTEXT = 4096  # tokens of prompt and reply together; longer prompts take minutes on a CPU
GRAVE = (Risk.SELF, Risk.OTHER)
FAILURES = (RuntimeError, OSError, ValueError, LookupError, TypeError, MemoryError, EndpointError)
log = logging.getLogger("bnft.chat")


class Source(Protocol):
    """Where replies come from.

    Attributes:
        seats: how many replies it writes at the same time.
        can_compare: it can reply with its adapter off.
    """

    seats: int
    can_compare: bool

    def stream(
        self, messages: Sequence[dict], sampling: Sampling, stop: threading.Event, base: bool = False
    ) -> Iterator[Piece]: ...


class LocalSource:
    """A model of this process. On a CPU it replies at once, and faster as soon as quicker weights are made.

    Args:
        model: with or without an adapter on it; its weights must not change afterwards.
        engine: streams from that model; the one that suits it where none is given.
    """

    def __init__(self, model, tokenizer, engine: Engine | BatchEngine | LentEngine | None = None):
        self.tokenizer = tokenizer
        self.context = min(getattr(model.config, "max_position_embeddings", MAX_CONTEXT), MAX_CONTEXT)
        self.can_compare = hasattr(model, "peft_config")
        ends = end_token_ids(tokenizer)
        if engine is None and is_zero_gpu():
            engine = LentEngine(model, tokenizer, ends)
        if engine is None and model.device.type == "cpu":
            self.engine = Engine(model, tokenizer, ends, quick=False)
            threading.Thread(target=self._quicken, args=(model, tokenizer, ends)).start()
        else:
            self.engine = engine or open_engine(model, tokenizer, ends, self.context)
        self.seats = self.engine.seats
        self._worker = ThreadPoolExecutor(1) if isinstance(self.engine, Engine) else None

    def _quicken(self, *parts) -> None:
        """Takes seconds, on one core; a reply that is being written keeps the engine with which it began."""
        try:
            self.engine = Engine(*parts)
        except (RuntimeError, MemoryError):
            log.exception("no quicker weights; replies go on at the model's own pace")

    def stream(
        self, messages: Sequence[dict], sampling: Sampling, stop: threading.Event, base: bool = False
    ) -> Iterator[Piece]:
        """Raises UserError when the newest message alone does not fit."""
        room = max(self.context - sampling.max_new_tokens, self.context // 2)
        ids = encode_prompt(self.tokenizer, trim_history(self.tokenizer, messages, room))
        pieces = self.engine.stream(ids, sampling, stop, base)
        yield from pieces if self._worker is None else _drawn_by(self._worker, pieces)


def _drawn_by(worker: Executor, pieces: Iterator[Piece]) -> Iterator[Piece]:
    with closing(pieces):
        while (piece := _done_by(worker, next, pieces, None)) is not None:
            yield piece


def _done_by(worker: Executor, do: Callable, *values):
    try:
        promise = worker.submit(do, *values)
    except RuntimeError as error:  # the program is ending
        raise LineFull from error
    return promise.result()


class Chat:
    """Replies to people.

    Args:
        source: the model.
        detector: judges every message, and every reply before it is shown.
        system_prompt: the one that the model was trained with.
        line: who is served when; as many seats as the source has.
    """

    def __init__(self, source: Source, detector: CrisisDetector, system_prompt: str, line: Line | None = None):
        self.source = source
        self.detector = detector
        self.system_prompt = system_prompt
        self.counts = Counts()  # decisions about messages, never a text
        self.line = Line(source.seats) if line is None else line
        self._judging = Line(seats=1, longest=JUDGED)  # takes up to seconds, on a core of the replies
        self._judge = ThreadPoolExecutor(1)

    def reply(
        self, message: Any, history: Sequence[dict], settings: Settings, stop: threading.Event | None = None
    ) -> Iterator[Update]:
        """Frames of the answer to `message`. Always ends with a finished one, whatever happens.

        Args:
            message: as it came from outside.
            history: the conversation so far, from `read_history`.
            stop: set it to end the reply early.
        """
        settings = settings.clamped()
        stop = stop or threading.Event()
        cleaned = clean_message(message)
        if not says_something(cleaned):
            yield Update(text("say_something", settings.language), finish_reason="refused")
            return
        try:
            verdict, card = self._judged(settings.visitor, self._read, cleaned, history, settings)
        except LineFull:
            verdict, card = self._read_quickly(cleaned, settings)
            yield self._instead("busy", "busy", verdict.risk, card, settings)
            return
        except FAILURES:
            log.exception("a message was judged without the reader")
            verdict, card = self._read_quickly(cleaned, settings)
        if not settings.base:  # the same message once more
            self.counts.add(verdict)
        if len(cleaned) > MAX_MESSAGE:
            refusal = text("too_long", settings.language, limit=MAX_MESSAGE)
            yield Update(refusal, card, finish_reason="refused")
            return
        yield Update(card=card)  # accepted; a card comes before the first word
        prompt = with_system(
            [*exchanges(history, settings.base), {"role": "user", "content": cleaned}], self.system_prompt
        )
        yield from self._guarded(prompt, verdict, card, settings, stop)

    def is_sensitive(self, history: Sequence[dict], visitor: str = "") -> bool:
        """Whether anything in a conversation was a sign of crisis; such a one is never stored.

        Raises:
            LineFull: too many wait to be judged.
        """
        return self._judged(visitor, self._is_sensitive, history)

    def _judged(self, visitor: str, judge: Callable, *values):
        with self._judging.join(visitor) as place:
            place.wait_silently()
            return _done_by(self._judge, judge, *values)

    def _read(self, message: str, history: Sequence[dict], settings: Settings) -> tuple[Verdict, Card | None]:
        verdict = self.detector.judge(message, _said(history))
        return verdict, self._card(verdict.risk, message, history, settings)

    def _read_quickly(self, message: str, settings: Settings) -> tuple[Verdict, Card | None]:
        """Without the reader and the talk: whoever is in danger gets the help lines even so."""
        verdict = self.detector.judge_quickly(message)
        return verdict, self._card(verdict.risk, message, (), settings) if verdict.risk in GRAVE else None

    def _is_sensitive(self, history: Sequence[dict]) -> bool:
        said = _said(history)
        return any(self.detector.judge(message, said[:i]).risk in GRAVE for i, message in enumerate(said))

    def _card(self, risk: Risk, message: str, history: Sequence[dict], settings: Settings) -> Card | None:
        # A grave card stays in sight for the rest of the talk; a softer one must not take its place.
        if risk is Risk.NONE or (risk is Risk.SOFT and self._is_sensitive(history)):
            return None
        words = crisis_card(risk, settings.country or guess_country(message), settings.language)
        return Card(words.title, words.text, words.lines, grave=risk in GRAVE)

    def _guarded(
        self, prompt: list[dict], verdict: Verdict, card: Card | None, settings: Settings, stop: threading.Event
    ) -> Iterator[Update]:
        """Waits for a turn and answers; every failure becomes a sentence.

        Somebody in danger reads words first that were written for it, once in a talk. Where the danger was said in so
        many words they are the whole reply: nothing that a model makes up stands beside them.
        """
        risk, opening = verdict.risk, _opening(verdict.risk, prompt, settings.language)
        if opening and verdict.by == "phrase":
            yield Update(opening, card, "stop")
            return
        try:
            with self.line.join(settings.visitor) as place:
                for ahead in place.wait(stop):
                    yield Update(card=card, ahead=ahead)
                if stop.is_set():
                    yield Update("", card, "stopped")
                    return
                yield from self._generated(prompt, risk, opening, card, settings, stop)
        except LineFull:
            yield self._instead("busy", "busy", risk, card, settings)
        except UserError:  # the message has fewer characters than allowed, but too many tokens
            yield self._instead("too_long", "refused", risk, card, settings, limit=MAX_MESSAGE // 4)
        except FAILURES as error:
            log.exception("a reply failed")
            yield self._instead(_kind_of(error), "error", risk, card, settings)

    def _generated(
        self,
        prompt: list[dict],
        risk: Risk,
        opening: str,
        card: Card | None,
        settings: Settings,
        stop: threading.Event,
    ) -> Iterator[Update]:
        sampling = Sampling(
            settings.max_new_tokens,
            settings.temperature,
            settings.top_p,
            settings.repetition_penalty,
            seed=time.time_ns() % 2**32,
        )
        shown = ""
        for piece in self.source.stream(prompt, sampling, stop, settings.base):
            if piece.text != shown and self.detector.judge_reply(piece.text):
                if not piece.finish_reason and not self.detector.judge_reply(whole_sentences(piece.text)):
                    continue  # held back: an unfinished sentence may yet turn ("... করো" and then " না")
                stop.set()
                log.warning("a reply was withheld")
                yield Update(safe_reply(risk, settings.language), card, "withheld")
                return
            shown = piece.text
            yield Update(f"{opening}\n\n{clean_reply(shown)}".strip(), card, piece.finish_reason)

    def _instead(
        self, key: str, reason: str, risk: Risk, card: Card | None, settings: Settings, **values: object
    ) -> Update:
        """This program's own sentence; a person in danger is answered even when the model cannot."""
        sentence = text(key, settings.language, **values)
        if risk in GRAVE:
            sentence = f"{safe_reply(risk, settings.language)}\n\n{sentence}"
        return Update(sentence, card, reason)


def _said(history: Sequence[dict]) -> tuple[str, ...]:
    return tuple(message["content"] for message in history if message["role"] == "user")


def _opening(risk: Risk, prompt: Sequence[dict], language: str) -> str:
    """Words for somebody in danger, unless they stand in the talk already; "" for everybody else."""
    if risk not in GRAVE:
        return ""
    words = safe_reply(risk, language)
    return "" if any(words in message["content"] for message in prompt if message["role"] == "assistant") else words


def _kind_of(error: BaseException) -> str:
    if isinstance(error, EndpointError):
        return "unreachable"
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        release_gpu()  # what the failed reply left there, so that the next one has room
        return "out_of_memory"
    return "failed"
