"""The crisis classifier: a linear model over what written examples say, fitted here and kept as plain arrays.

Crisis is no single topic: a prayer to be taken, a bottle looked at and a farewell share few words. So one linear model
is fitted a topic (wish, burden, ..., sadness, idiom), the topics of a crisis are weighed against the others, and a
naive Bayes over crisis against the rest is added: it keeps what a single rare word says. Knows nothing about phrases,
help lines or what is done with a score.
"""

from __future__ import annotations

import csv
import logging
import os
import tempfile
import zlib
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import regex

from bnft.config import cache_dir
from bnft.crisis_columns import BUCKETS, Block, Columns
from bnft.crisis_words import Lexicon, Pattern, fold_and_skeleton

log = logging.getLogger(__name__)

CRISIS = ("self", "other")
LABELS = ("self", "other", "soft", "none")
COMPANION_WEIGHT = 1.0  # of ordinary talk among the harmless examples
BAYES_WEIGHT = 0.5
NEIGHBOURS = 4  # classes that stand at most this many words apart make a pair
CRISIS_FROM = -1.7  # chosen by cross-validation alone, see benchmarks/safety_report.md
_CODE = ("crisis_classifier.py", "crisis_columns.py", "crisis_words.py", "text.py")  # what was learnt depends on it
_SMILE = regex.compile("[\U0001f600-\U0001f64f\U0001f900-\U0001f9ff]")
# Frames are 0/1, every other feature lies on the unit sphere of its kind.
_BLOCKS = (
    Block(letters=True),  # of the folded text
    Block(letters=True),  # of its sounds
    Block(),  # folded words, and two of them
    Block(weight=1.5),  # the same of their sounds
    Block(least=1),  # classes
    Block(least=3),  # pairs of classes
    Block(least=3, weight=0.3, unit=False),  # frames
)


class Example(NamedTuple):
    text: str
    label: str
    kind: str
    form: str
    part: str


def read_examples(path: Path, part: str) -> list[Example]:
    """Examples of one part, `fit` or `held_out`."""
    with path.open(encoding="utf-8", newline="") as file:
        return [example for row in csv.DictReader(file) if (example := Example(**row)).part == part]


class Scores(NamedTuple):
    """Log-odds; positive crisis scores are above the threshold."""

    crisis: float
    other: float
    soft: float


class Features:
    """What is counted in a text: letters, sounds, words, classes and their neighbourhoods, frames."""

    def __init__(self, lexicon: Lexicon, frames: dict[str, list[Pattern]]):
        self._lexicon = lexicon
        self._by_name: dict[str, set[tuple[str, str]]] = {}
        self._patterns: dict[tuple[str, str], Pattern] = {}
        for frame, patterns in frames.items():
            for i, pattern in enumerate(patterns):
                self._patterns[frame, f"{frame}.{i}"] = pattern
                for name in pattern.needs:
                    self._by_name.setdefault(name, set()).add((frame, f"{frame}.{i}"))

    def of(self, text: str) -> tuple[str | list[str], ...]:
        """One item for each of `_BLOCKS`."""
        folded, sounds = fold_and_skeleton(text)
        atoms = self._lexicon.atoms(folded)
        classes = [_classes(names) for names in atoms]
        pairs = [
            pair
            for i, first in enumerate(classes)
            for second in classes[i + 1 : i + 1 + NEIGHBOURS]
            for pair in _pairs(first, second)
        ]
        items = list(chain.from_iterable(classes))
        return folded, sounds, _words(folded), _words(sounds), items, pairs, self._found(text, atoms)

    def _found(self, text: str, atoms: list[frozenset[str]]) -> list[str]:
        present = frozenset(chain.from_iterable(atoms))
        possible = set().union(*(self._by_name.get(name, ()) for name in present))
        found = sorted({one for key in possible if self._patterns[key].found(atoms, present) for one in key})
        text = text.rstrip()
        signs = (("!" in text, "!"), ("?" in text, "?"), (text.endswith("?"), "?end"), (text.endswith("!"), "!end"))
        found += [sign for there, sign in signs if there]
        return [*found, *(["smile"] if _SMILE.search(text) else []), f"length{min(4, len(atoms) // 6)}"]


def _words(text: str) -> list[str]:
    words = text.split()
    return words + [f"{first} {second}" for first, second in pairwise(words)]


@lru_cache(maxsize=20_000)
def _classes(names: frozenset[str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in names if not name.startswith("~")))


@lru_cache(maxsize=100_000)
def _pairs(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{a}>{b}" for a in first for b in second)


class CrisisClassifier:
    """Fitted once, then only asked. Fitting takes seconds, so what was learnt can be kept: see `save` and `load`.

    Attributes:
        topics: "label kind", one a linear model.
    """

    def __init__(
        self, features: Features, columns: Columns, topics: Sequence[str], weights: np.ndarray, bias: np.ndarray
    ):
        """Args:
        weights: one row a column; one column a topic, and the last one of the naive Bayes.
        """
        self._features, self._columns, self.topics = features, columns, tuple(topics)
        self._weights, self._bias = np.asarray(weights, dtype=np.float32), np.asarray(bias, dtype=np.float32)
        self._of_label = {
            label: [i for i, topic in enumerate(self.topics) if topic.startswith(f"{label} ")] for label in LABELS
        }

    @classmethod
    def fitted(cls, features: Features, examples: Sequence[Example]) -> CrisisClassifier:
        from sklearn.linear_model import LogisticRegression
        from sklearn.naive_bayes import ComplementNB

        counted = list(zip(*(features.of(example.text) for example in examples), strict=True))
        columns = Columns.fitted(_BLOCKS, counted)
        rows = columns.of(counted)
        crisis = np.array([example.label in CRISIS for example in examples])
        importance = np.array([COMPANION_WEIGHT if example.kind == "companion" else 1.0 for example in examples])
        for side in (crisis, ~crisis):
            importance[side] *= len(examples) / (2 * importance[side].sum())
        topic_of = np.array([f"{example.label} {example.kind}" for example in examples])
        topics = sorted(set(topic_of))
        weights, bias = [], []
        for topic in topics:
            its = topic_of == topic
            model = LogisticRegression(C=30, solver="liblinear", dual=True, tol=0.01, random_state=0)
            model.fit(rows, its, importance)
            weights.append(model.coef_[0])
            bias.append(model.intercept_[0])
        not_crisis, is_crisis = ComplementNB().fit(rows, crisis, importance).feature_log_prob_
        return cls(features, columns, topics, np.array([*weights, is_crisis - not_crisis]).T, np.array([*bias, 0.0]))

    def save(self, path: Path) -> None:
        """Plain arrays in a NumPy archive; the file appears whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".npz", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                rarity = {}
                for i, weights in enumerate(self._columns.rarity):
                    buckets = np.flatnonzero(weights).astype(np.int32)
                    rarity |= {f"buckets{i}": buckets, f"rarity{i}": weights[buckets]}
                np.savez(file, topics=np.array(self.topics), weights=self._weights, bias=self._bias, **rarity)
            os.replace(scratch, path)
        finally:
            Path(scratch).unlink(missing_ok=True)

    @classmethod
    def load(cls, features: Features, path: Path) -> CrisisClassifier | None:
        """What `save` kept; None where there is no such file, or none that can be read."""
        try:
            with np.load(path, allow_pickle=False) as kept:
                rarity = [_spread(kept[f"buckets{i}"], kept[f"rarity{i}"]) for i in range(len(_BLOCKS))]
                columns = Columns(_BLOCKS, rarity)
                return cls(features, columns, kept["topics"].tolist(), kept["weights"], kept["bias"])
        except (OSError, KeyError, ValueError, EOFError, RuntimeError, BadZipFile, zlib.error):
            return None

    def scores(self, texts: Sequence[str]) -> list[Scores]:
        rows = self._columns.of(list(zip(*map(self._features.of, texts), strict=True)))
        odds = rows @ self._weights + self._bias
        self_, other, soft, none = (np.logaddexp.reduce(odds[:, self._of_label[label]], axis=1) for label in LABELS)
        crisis = np.logaddexp(self_, other) - np.logaddexp(soft, none) + BAYES_WEIGHT * odds[:, -1] - CRISIS_FROM
        return [Scores(*map(float, row)) for row in zip(crisis, other - self_, soft - none, strict=True)]


def kept_file(examples: Path, phrases: Path) -> Path:
    """Where the user's cache keeps what is learnt from these files by this code."""
    rooms = [Path(__file__).with_name(name) for name in _CODE]
    digest = blake2b(digest_size=8)
    for path in (examples, phrases, *rooms):
        digest.update(path.read_bytes())
    return cache_dir() / "crisis" / f"{digest.hexdigest()}.npz"


def fitted_once(features: Features, examples: Path, phrases: Path) -> CrisisClassifier:
    """The classifier out of the user's cache, or fitted and put there.

    Args:
        phrases: the file that `features` were made from.
    """
    kept = kept_file(examples, phrases)
    classifier = CrisisClassifier.load(features, kept)
    if classifier is None:
        classifier = CrisisClassifier.fitted(features, read_examples(examples, "fit"))
        try:
            classifier.save(kept)
        except OSError as error:  # without a cache that can be written, every start is slower and nothing else
            log.warning("the fitted classifier could not be kept: %s", error)
    return classifier


def _spread(buckets: np.ndarray, values: np.ndarray) -> np.ndarray:
    spread = np.zeros(BUCKETS, dtype=np.float32)
    spread[buckets] = values
    return spread
