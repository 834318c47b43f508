"""Crisis detection, help lines, and what is said to a person who may be at risk.

Each turn is read by two layers: direct phrases, few and sure, and a classifier fitted from written examples
(bnft/crisis_classifier.py). Everything that can be edited lies in data/: crisis_phrases.yaml, crisis_cards.yaml,
help_lines.yaml, safety_examples.csv. Nothing here keeps or logs a text: what was judged before is known by a digest,
and `Counts` counts decisions.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from enum import Enum
from functools import cache
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import TypeVar

import regex
import yaml

from bnft.crisis_classifier import CrisisClassifier, Features, Scores, fitted_once
from bnft.crisis_words import Lexicon, Pattern, fold

DATA = Path(__file__).resolve().parent.parent / "data"
EXAMPLES, PHRASES = DATA / "safety_examples.csv", DATA / "crisis_phrases.yaml"
REMEMBERED = 2_000  # judgements that need not be made again
WINDOW = 400  # characters judged at once, so that one sentence is not drowned in a long message
MOST_READ = 20_000  # characters read from each end of a longer message
SHORT = 4  # words; a turn this short ("হ্যাঁ", "আজ রাতে") is read together with the turn before it
LOOK_BACK = 3  # earlier turns that such a short turn may answer to
DENIED_WITHIN = 3  # words after a harmful phrase in a reply: "তুমি ফালতু কথা বলছ না"
_CLAUSE_END = regex.compile(r"[,;:—–]|\bকিন্তু\b|\bবরং\b")
T = TypeVar("T")
_QUOTED = regex.compile('"[^"]{1,80}"|“[^”]{1,80}”|‘[^’]{1,80}’|«[^»]{1,80}»')
_SENTENCE = regex.compile(r"[^।॥৷.?!\n]*[।॥৷.?!\n]*")


class Risk(Enum):
    NONE = "none"
    SOFT = "soft"
    OTHER = "other"
    SELF = "self"


@dataclass(frozen=True)
class Verdict:
    """A decision about one turn.

    Attributes:
        by: which layer decided: "phrase", "classifier", or "none" when nothing was found.
        score: how strongly a crisis is suspected, 0 to 1; from 0.5 on it is one.
    """

    risk: Risk
    by: str
    score: float


@dataclass(frozen=True)
class HelpLine:
    """A line to call; `number` is for reading (Bengali digits), `tel` for the tel: link."""

    name_bn: str
    name_en: str
    number: str
    tel: str
    hours_bn: str
    hours_en: str
    country: str
    status: str
    source: str
    checked: date


@dataclass(frozen=True)
class CrisisCard:
    title: str
    text: str
    lines: tuple[HelpLine, ...]


def _read(name: str):
    return yaml.load((DATA / name).read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@cache
def _phrases() -> dict:
    return _read("crisis_phrases.yaml")


@cache
def _cards() -> dict:
    return _read("crisis_cards.yaml")


@cache
def _all_lines() -> tuple[HelpLine, ...]:
    return tuple(HelpLine(**line) for line in _read("help_lines.yaml"))


def help_lines(country: str | None) -> tuple[HelpLine, ...]:
    """The lines of a country ("BD" or "IN"); all of them where the country is not known."""
    return tuple(line for line in _all_lines() if line.country == country) or _all_lines()


def _words_for(language: str) -> dict:
    return _cards().get(language, _cards()["bn"])


def crisis_card(risk: Risk, country: str | None, language: str = "bn") -> CrisisCard:
    """The card shown before a reply: to the person at risk, to a friend of one, or one soft sentence with the lines."""
    words = _words_for(language)[(Risk.SOFT if risk is Risk.NONE else risk).value]
    return CrisisCard(words["title"], words["text"], help_lines(country))


def safe_reply(risk: Risk, language: str = "bn") -> str:
    """What is said instead of a reply that was withheld."""
    return _words_for(language)[risk.value]["reply"]


@cache
def _country_words() -> dict[str, tuple[tuple[str, int], ...]]:
    return {
        country: tuple(
            (fold(word), weight) for key, weight in (("places", 2), ("words", 1)) for word in told[key].split()
        )
        for country, told in _phrases()["countries"].items()
    }


def guess_country(message: str) -> str | None:
    """ "BD" or "IN" by place names and vocabulary; None unless the signs are at least two and all of one country."""
    words = set(fold(message[:MOST_READ]).split())
    points = {
        country: sum(weight for stem, weight in known if any(word.startswith(stem) for word in words))
        for country, known in _country_words().items()
    }
    sure = [country for country, sum_ in points.items() if sum_ >= 2]
    return sure[0] if len(sure) == 1 and sum(points.values()) == points[sure[0]] else None


def windows(message: str) -> list[str]:
    """Whole sentences gathered to about WINDOW characters; bounded however long the message is."""
    if len(message) > 2 * MOST_READ:
        message = f"{message[:MOST_READ]}\n{message[-MOST_READ:]}"
    gathered = [""]
    for sentence in _SENTENCE.findall(message):
        for start in range(0, len(sentence), WINDOW):
            piece = sentence[start : start + WINDOW]
            if len(gathered[-1]) + len(piece) > WINDOW:
                gathered.append("")
            gathered[-1] += piece
    return list(dict.fromkeys(window for window in gathered if window.strip()))


def whole_sentences(text: str) -> str:
    """A growing text without the sentence that is still being written."""
    return text[: max(text.rfind(mark) for mark in "।॥৷.?!\n") + 1]


def _remembering(judge: Callable[[str], T]) -> Callable[[str], T]:
    """`judge`, which need not judge a text again while it is among the newest; texts are known by a digest alone."""
    known: OrderedDict[bytes, T] = OrderedDict()
    lock = threading.Lock()

    def remembering(text: str) -> T:
        digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        with lock:
            if digest in known:
                known.move_to_end(digest)
                return known[digest]
        judged = judge(text)
        with lock:
            known[digest] = judged
            if len(known) > REMEMBERED:
                known.popitem(last=False)
        return judged

    return remembering


class CrisisDetector:
    """Judges messages and replies; build it once with `from_repository`, then share it between threads."""

    def __init__(self, phrases: dict, classifier: Callable[[Features], CrisisClassifier]):
        """Args:
        phrases: as data/crisis_phrases.yaml holds them.
        classifier: given what is counted in a text, returns the fitted classifier.
        """
        frames = {name: [Pattern(one) for one in patterns] for name, patterns in phrases["frames"].items()}
        self._direct = [Pattern(one) for one in phrases["direct"]]
        self._urges, self._belittles = ([Pattern(one) for one in phrases[name]] for name in ("urges", "belittles"))
        self._guards = frozenset(phrases["guards"].split())
        self._negations = frozenset(fold(word) for word in phrases["negations"].split())
        self._told = tuple(fold(word) for word in phrases["told"].split())
        patterns = chain(self._direct, self._urges, self._belittles, *frames.values())
        self._lexicon = Lexicon(phrases["classes"], frozenset(chain.from_iterable(p.literals for p in patterns)))
        self.features = Features(self._lexicon, frames)
        self._classifier = classifier(self.features)
        self._verdict_on, self._harms = _remembering(self._judge_window), _remembering(self._is_harmful)

    @classmethod
    def from_repository(cls) -> CrisisDetector:
        """Fitted from the `fit` rows of data/safety_examples.csv, once; later starts read what was learnt."""
        return cls(_phrases(), lambda features: fitted_once(features, EXAMPLES, PHRASES))

    def judge(self, message: str, history: Sequence[str] = ()) -> Verdict:
        """The gravest verdict on any part of a message.

        Args:
            message: what the person just wrote.
            history: the person's earlier messages, oldest first; a short answer to a risky turn stays a risk.
        """
        verdict = self._judge_text(message)
        if _is_crisis(verdict) or not history or len(message.split()) > SHORT:
            return verdict
        joined = self._judge_text(f"{history[-1][-WINDOW:]} {message}")
        earlier = [self._judge_text(turn) for turn in reversed(history[-LOOK_BACK:])]
        return next(filter(_is_crisis, [joined, *earlier]), verdict)

    def judge_reply(self, reply: str) -> bool:
        """Whether a model's reply would do harm: urges to die, tells how, belittles, names pills to take.

        What an unfinished sentence says may yet turn ("... করো" and then " না"): ask about `whole_sentences` too.
        """
        sentences = chain.from_iterable(map(_SENTENCE.findall, windows(reply)))
        return any(self._harms(sentence) for sentence in sentences)

    def _judge_text(self, message: str) -> Verdict:
        verdicts = [self._verdict_on(window) for window in windows(message)]
        return max(verdicts, key=lambda v: (list(Risk).index(v.risk), v.score), default=Verdict(Risk.NONE, "none", 0.0))

    def _judge_window(self, text: str) -> Verdict:
        if len(fold(text)) < 2:  # a single letter says nothing
            return Verdict(Risk.NONE, "none", 0.0)
        (scores,) = self._classifier.scores([text])
        probability = 1 / (1 + math.exp(-max(-30.0, min(30.0, scores.crisis))))
        if self._says_directly(text):
            return Verdict(_whose(scores), "phrase", max(probability, 0.99))
        if scores.crisis >= 0:
            return Verdict(_whose(scores), "classifier", probability)
        if scores.soft >= 0:
            return Verdict(Risk.SOFT, "classifier", probability)
        return Verdict(Risk.NONE, "none", probability)

    def _says_directly(self, text: str) -> bool:
        atoms = self._lexicon.atoms(fold(text))
        present = frozenset(chain.from_iterable(atoms))
        return self._guards.isdisjoint(present) and any(p.found(atoms, present) for p in self._direct)

    def _is_harmful(self, sentence: str) -> bool:
        sentence = _QUOTED.sub(" ", sentence)  # what somebody else said
        if any(self._says(self._urges, clause) for clause in _CLAUSE_END.split(sentence)):
            return True
        retold = any(word.startswith(self._told) for word in fold(sentence).split())
        return not retold and self._says(self._belittles, sentence)

    def _says(self, patterns: list[Pattern], text: str) -> bool:
        """Whether one of the patterns is there and not denied right behind it."""
        words = fold(text).split()
        atoms = [self._lexicon.of(word) for word in words]
        present = frozenset(chain.from_iterable(atoms))
        return any(
            self._negations.isdisjoint(words[end : end + DENIED_WITHIN])
            for pattern in patterns
            if pattern.found(atoms, present)
            for end in pattern.ends(atoms)
        )


def _is_crisis(verdict: Verdict) -> bool:
    return verdict.risk in (Risk.SELF, Risk.OTHER)


def _whose(scores: Scores) -> Risk:
    return Risk.OTHER if scores.other >= 0 else Risk.SELF
