"""What a reply is worth in numbers: every number a `Score` with its signature, its n and a bootstrap interval.

Replies and references come in as plain strings, likelihoods as sums; nothing here knows about models, files or prompts.
The metrics themselves are `evaluate` modules in `bnft/metric_modules`. They are imported as classes and kept in memory,
not fetched with `evaluate.load`: that call copies the file into a shared folder under the home directory and imports
the copy, which needs a writable home, lets parallel processes meet there, and measures with code outside the clone.
(`evaluate.load(".../bn_rouge")` works all the same; a test holds it to that, without a network.)
Importing `evaluate` pulls torch in, so it happens inside the functions.
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from bnft.errors import UserError

BOOTSTRAP = 1000
SEED = 3407
CONFIDENCE = 95.0


@dataclass(frozen=True)
class Reply:
    """One generated reply: its text, its length in the model's tokens, and whether the model ended it by itself."""

    text: str
    tokens: int
    ended: bool


@dataclass(frozen=True)
class Likelihood:
    """Negative natural log-likelihood of one reference reply, summed over its tokens alone, and the reply's sizes."""

    nats: float
    tokens: int
    utf8_bytes: int
    characters: int

    @classmethod
    def of_reply(cls, text: str, *, nats: float, tokens: int) -> Likelihood:
        """Measures the reply as it was written: UTF-8 bytes and code points, no normalisation."""
        return cls(nats=nats, tokens=tokens, utf8_bytes=len(text.encode("utf-8")), characters=len(text))


@dataclass(frozen=True)
class Score:
    """One number and how it came about.

    Args:
        signature: everything that has to be equal for two values to be comparable.
        n: rows that it was computed on.
        low, high: 95 % percentile bootstrap over rows; None without resampling or with a single row.
            A share of exactly 0 or 1 gets an interval without width: resampling cannot draw what never happened.
        unit: "0-100", "share", "bits/byte", "perplexity", "ratio", "words", "tokens", "characters",
            or a scale of ratings: "1-5", "0-2".
        higher_is_better: None where neither direction is good in itself.
        resamples: the value on each resample; equal seeds and n draw equal rows, which is what makes `compare` paired.
    """

    name: str
    value: float
    signature: str
    n: int
    low: float | None
    high: float | None
    unit: str
    higher_is_better: bool | None
    resamples: np.ndarray | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """All but the resamples, ready for JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "resamples"}

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.name} {self.value:.4g}{interval} ({self.signature})"


@dataclass(frozen=True)
class Measure:
    """A metric taken apart so that it can be resampled: statistics that add up over rows, and what to do with the sums.

    Args:
        rows: shape (n, k), one line of sufficient statistics a row.
        formula: turns the k sums into the value.
        signature: without the bootstrap's part, which `score` adds.
    """

    name: str
    rows: np.ndarray
    formula: Callable[[np.ndarray], float]
    signature: str
    unit: str
    higher_is_better: bool | None

    def score(self, bootstrap: int = BOOTSTRAP, seed: int = SEED) -> Score:
        """The value over all rows and, from `bootstrap` resamples of the rows, its interval."""
        rows = np.asarray(self.rows, dtype=np.float64)
        n = len(rows)
        low = high = resamples = None
        signature = self.signature
        if bootstrap and n > 1:
            # In float64 sums of counts are exact and their matrix product is fast; in integers it is slow.
            sums = _draws(n, bootstrap, seed) @ rows
            resamples = np.array([self.formula(s) for s in sums])
            tail = (100 - CONFIDENCE) / 2
            low, high = (float(x) for x in np.percentile(resamples, [tail, 100 - tail]))
            signature = f"{signature}|bs:{bootstrap}|seed:{seed}"
        value = float(self.formula(rows.sum(axis=0)))
        return Score(self.name, value, signature, n, low, high, self.unit, self.higher_is_better, resamples)


@functools.lru_cache(maxsize=1)
def _draws(n: int, bootstrap: int, seed: int) -> np.ndarray:
    """How often each of n rows is drawn in each resample: shape (bootstrap, n). One call's metrics all share it."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=bootstrap).astype(np.float64)


def ratio(sums: np.ndarray) -> float:
    """First sum over second; 0.0 where there is nothing to count, as in a resample without a single 4-gram."""
    return float(sums[0] / sums[1]) if sums[1] else 0.0


def score_replies(
    replies: Sequence[Reply], references: Sequence[str], *, bootstrap: int = BOOTSTRAP, seed: int = SEED
) -> dict[str, Score]:
    """Overlap with the reference and the shape of the replies, by metric name.

    Raises:
        UserError: no replies, another number of references, or texts in which ROUGE finds no word at all.
    """
    if not replies:
        raise UserError("There are no replies to score.", "Evaluate at least one row (--eval-samples 1 or more).")
    if len(replies) != len(references):
        raise UserError(
            f"{len(replies)} replies were to be scored against {len(references)} references.",
            "Score a run against the split it was generated from.",
        )
    from bnft.metric_modules.bn_bleu.bn_bleu import BnBleu
    from bnft.metric_modules.bn_chrf.bn_chrf import BnChrf
    from bnft.metric_modules.bn_reply_shape.bn_reply_shape import BnReplyShape
    from bnft.metric_modules.bn_rouge.bn_rouge import BnRouge

    texts = {"predictions": [reply.text for reply in replies], "references": list(references)}
    shape = {"tokens": [reply.tokens for reply in replies], "ended": [reply.ended for reply in replies]}
    how = {"bootstrap": bootstrap, "seed": seed}
    scores: dict[str, Score] = {}
    for metric_class in (BnChrf, BnBleu, BnRouge):
        scores |= _compute(metric_class, **texts, **how)
    return scores | _compute(BnReplyShape, **texts, **shape, **how)


def score_likelihood(rows: Sequence[Likelihood], *, bootstrap: int = BOOTSTRAP, seed: int = SEED) -> dict[str, Score]:
    """Bits per byte, token and character perplexity of the reference replies, by metric name.

    Raises:
        UserError: no rows, no bytes, or a likelihood that is not a number.
    """
    if not rows:
        raise UserError("There are no likelihoods to score.", "Evaluate at least one row (--eval-samples 1 or more).")
    bad = [i for i, row in enumerate(rows) if not math.isfinite(row.nats)]
    if bad:
        raise UserError(
            f"The likelihood of row {bad[0]} is {rows[bad[0]].nats} ({len(bad)} of {len(rows)} rows are like that).",
            "The model's weights or its number format are broken; try a lower learning rate or float32.",
        )
    if not all(sum(getattr(row, size) for row in rows) for size in ("tokens", "utf8_bytes", "characters")):
        raise UserError("All replies whose likelihood was measured are empty.", "Look at the split's replies.")
    from bnft.metric_modules.bn_likelihood.bn_likelihood import BnLikelihood

    columns = {f.name: [getattr(row, f.name) for row in rows] for f in fields(Likelihood)}
    return _compute(BnLikelihood, **columns, bootstrap=bootstrap, seed=seed)


def _compute(metric_class: type, **inputs: Any) -> dict[str, Score]:
    # `evaluate` makes its folder even for data kept in memory, by default under the home directory.
    with tempfile.TemporaryDirectory() as folder:
        return metric_class(keep_in_memory=True, cache_dir=folder).compute(**inputs)


@dataclass(frozen=True)
class Comparison:
    """Tuned against base on the same rows.

    Args:
        difference: tuned minus base, with its 95 % interval `low` to `high`.
        p: two-sided paired bootstrap p; None without resampling.
        improved: whether the difference goes the better way; None where neither way is better.
    """

    name: str
    base: float
    tuned: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    improved: bool | None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def compare(base: Mapping[str, Score], tuned: Mapping[str, Score]) -> dict[str, Comparison]:
    """Compares two systems on the same rows, metric by metric; both must come from one seed and number of resamples.

    Raises:
        UserError: the two were not computed alike.
    """
    if set(base) != set(tuned):
        raise UserError(
            f"Only one of the two systems has: {', '.join(sorted(set(base) ^ set(tuned)))}.",
            "Evaluate both with the same version of this program.",
        )
    return {name: _compare(base[name], tuned[name]) for name in base}


def _compare(base: Score, tuned: Score) -> Comparison:
    if (base.signature, base.n) != (tuned.signature, tuned.n):
        raise UserError(
            f"{base.name} was computed in two ways: base {base.signature} (n={base.n}), "
            f"tuned {tuned.signature} (n={tuned.n}).",
            "Evaluate both on the same rows with the same settings.",
        )
    difference = tuned.value - base.value
    better = base.higher_is_better
    improved = None if better is None or not difference else (difference > 0) == better
    if base.resamples is None or tuned.resamples is None:
        return Comparison(base.name, base.value, tuned.value, difference, None, None, None, improved)
    differences = tuned.resamples - base.resamples
    tail = (100 - CONFIDENCE) / 2
    low, high = (float(x) for x in np.percentile(differences, [tail, 100 - tail]))
    # Shifted to mean zero, the resamples show the differences that chance alone makes (Koehn 2004; Riezler and
    # Maxwell 2005). Ties count as chance, so that a system against itself gets p = 1.
    chance = np.abs(differences - differences.mean())
    extreme = int(np.sum(chance >= abs(difference) - 1e-12))
    p = (extreme + 1) / (len(differences) + 1)
    return Comparison(base.name, base.value, tuned.value, difference, low, high, p, improved)
