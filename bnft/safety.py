"""Crisis detection.

Each turn is read by direct phrases, few and sure, by a classifier fitted from written examples
(bnft/crisis_classifier.py), and, where the two leave a doubt, by a reader that is handed in: a language model
(bnft/crisis_reader.py). What can be edited lies in data/: crisis_phrases.yaml and safety_examples.csv. Nothing here
keeps or logs a text: what was judged before is known by a digest.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from hashlib import blake2b
from itertools import chain
from typing import TypeVar

import regex
import yaml

from bnft.config import REPOSITORY
from bnft.crisis_classifier import CrisisClassifier, Features, Scores, fitted_once
from bnft.crisis_words import Lexicon, Pattern, fold

DATA = REPOSITORY / "data"
EXAMPLES, PHRASES = DATA / "safety_examples.csv", DATA / "crisis_phrases.yaml"
REMEMBERED = 2_000  # judgements that need not be made again
WINDOW = 400  # characters judged at once, so that one sentence is not drowned in a long message
READ_WINDOWS = 10  # of a longer message the reader is not asked: it takes a tenth of a second for each
MOST_READ = 20_000  # characters read from each end of a longer message
SHORT = 4  # words; a turn this short ("হ্যাঁ", "আজ রাতে") is read together with the turn before it
LOOK_BACK = 3  # earlier turns that such a short turn may answer to
# How the reader's log-odds join the classifier's, by cross-validation alone; a classifier surer than that need not ask.
READER_WEIGHT, READER_FROM, READER_MOST = 1.2, -0.44, 8.0
DENIED_WITHIN = 3  # words after a harmful phrase in a reply: "তুমি ফালতু কথা বলছ না"
_CLAUSE_END = regex.compile(r"[,;:—–]|\bকিন্তু\b|\bবরং\b")
T = TypeVar("T")
Reader = Callable[[str], float | None]
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
        by: which layer decided: "phrase", "classifier", "reader", or "none" when nothing was found.
        score: how strongly a crisis is suspected, 0 to 1; from 0.5 on it is one.
    """

    risk: Risk
    by: str
    score: float


def read_yaml(name: str):
    return yaml.load((DATA / name).read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@cache
def phrases() -> dict:
    return read_yaml("crisis_phrases.yaml")


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

    def __init__(self, phrases: dict, classifier: Callable[[Features], CrisisClassifier], reader: Reader | None = None):
        """Args:
        phrases: as data/crisis_phrases.yaml holds them.
        classifier: given what is counted in a text, returns the fitted classifier.
        reader: gives log-odds of a crisis, or None when it cannot tell.
        """
        self._reader = reader
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
        self._quick_verdict_on = _remembering(lambda text: self._judge_window(text, read=False))

    @classmethod
    def from_repository(cls, reader: Reader | None = None) -> CrisisDetector:
        """Fitted from the `fit` rows of data/safety_examples.csv, once; later starts read what was learnt."""
        return cls(phrases(), lambda features: fitted_once(features, EXAMPLES, PHRASES), reader)

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

    def judge_quickly(self, message: str) -> Verdict:
        """A message by itself, without the reader: for when so many wait that there is no time for more."""
        return _gravest(map(self._quick_verdict_on, windows(message)))

    def judge_reply(self, reply: str) -> bool:
        """Whether a model's reply would do harm: urges to die, tells how, belittles, names pills to take.

        What an unfinished sentence says may yet turn ("... করো" and then " না"): ask about `whole_sentences` too.
        """
        sentences = chain.from_iterable(map(_SENTENCE.findall, windows(reply)))
        return any(self._harms(sentence) for sentence in sentences)

    def _judge_text(self, message: str) -> Verdict:
        parts = windows(message)
        judge = self._verdict_on if len(parts) <= READ_WINDOWS else self._quick_verdict_on
        return _gravest(map(judge, parts))

    def _judge_window(self, text: str, read: bool = True) -> Verdict:
        if len(fold(text)) < 2:  # a single letter says nothing
            return Verdict(Risk.NONE, "none", 0.0)
        (scores,) = self._classifier.scores([text])
        if self._says_directly(text):
            return Verdict(_whose(scores), "phrase", max(_probability(scores.crisis), 0.99))
        crisis, by = self._read(text, scores.crisis) if read else (scores.crisis, "classifier")
        probability = _probability(crisis)
        if crisis >= 0:
            return Verdict(_whose(scores), by, probability)
        if scores.soft >= 0:
            return Verdict(Risk.SOFT, "classifier", probability)
        return Verdict(Risk.NONE, "none", probability)

    def _read(self, text: str, crisis: float) -> tuple[float, str]:
        """The classifier's score, with the reader's where that could change the decision, and which of them decided."""
        if self._reader and abs(crisis - READER_FROM) <= READER_WEIGHT * READER_MOST:
            odds = self._reader(text)
            if odds is not None:
                return crisis - READER_FROM + READER_WEIGHT * max(-READER_MOST, min(READER_MOST, odds)), "reader"
        return crisis, "classifier"

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


def _gravest(verdicts: Iterable[Verdict]) -> Verdict:
    return max(verdicts, key=lambda v: (list(Risk).index(v.risk), v.score), default=Verdict(Risk.NONE, "none", 0.0))


def _is_crisis(verdict: Verdict) -> bool:
    return verdict.risk in (Risk.SELF, Risk.OTHER)


def _probability(log_odds: float) -> float:
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, log_odds))))


def _whose(scores: Scores) -> Risk:
    return Risk.OTHER if scores.other >= 0 else Risk.SELF
