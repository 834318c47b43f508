"""chrF++ and chrF of Bengali replies, by sacrebleu, after one scoring normaliser on both sides."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np
from sacrebleu.metrics import CHRF

from bnft.metrics import BOOTSTRAP, SEED, Measure, Score
from bnft.text import NORMALISER, scoring_normalise

_DESCRIPTION = """\
Character n-gram F-score (beta 2, orders 1-6), and with word n-grams of orders 1-2 as chrF++. sacrebleu counts code
points and knows nothing of Unicode normalisation: the same text in two encodings of য় would score about 20, so both
sides are normalised first. With one reference it detects drift and does not judge quality; unrelated text scores
about 10.
"""
_CITATION = """\
@inproceedings{popovic-2017-chrf, title = "chr{F}++: words helping character n-grams", author = "Popovi{\\'c}, Maja",
  booktitle = "Proceedings of the Second Conference on Machine Translation", year = "2017", pages = "612--618"}
"""
_INPUTS = """\
predictions: list of replies; references: list of reference replies, one for each.
bootstrap, seed: resamples for the interval (0: none) and their seed.
Returns {"chrf++": Score, "chrf": Score}.
"""
_WORD_ORDERS = {"chrf++": 2, "chrf": 0}


class BnChrf(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(
        self, predictions: list[str], references: list[str], bootstrap: int = BOOTSTRAP, seed: int = SEED
    ) -> dict[str, Score]:
        replies = [scoring_normalise(text) for text in predictions]
        references = [scoring_normalise(text) for text in references]
        metrics = {name: CHRF(word_order=order, lowercase=True) for name, order in _WORD_ORDERS.items()}
        # Counting n-grams takes nearly all the time, and chrF++ counts those of chrF first: three numbers an order.
        rows = np.array(metrics["chrf++"]._extract_corpus_statistics(replies, [references]))
        return {
            name: _measure(name, chrf, rows[:, : 3 * chrf.order]).score(bootstrap, seed)
            for name, chrf in metrics.items()
        }


def _measure(name: str, chrf: CHRF, rows: np.ndarray) -> Measure:
    chrf.num_refs = 1  # for the signature; only the one that counted knows it
    signature = str(chrf.get_signature()).replace("|version:", f"|norm:{NORMALISER}|version:")
    return Measure(
        name, rows, lambda sums: chrf._compute_score_from_stats(sums.tolist()).score, signature, "0-100", True
    )
