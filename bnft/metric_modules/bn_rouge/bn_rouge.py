"""ROUGE-1, ROUGE-2 and ROUGE-L of Bengali replies, by rouge_score with a tokenizer that can read Bengali."""

from __future__ import annotations

from importlib.metadata import version

import datasets
import evaluate
import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from bnft.errors import UserError
from bnft.metrics import BOOTSTRAP, SEED, Measure, Score, ratio
from bnft.text import NORMALISER, scoring_normalise, word_tokens

_DESCRIPTION = """\
Mean ROUGE F1 over rows, 0-100, no stemming. rouge_score's own tokenizer keeps [a-z0-9] only, so that identical Bengali
texts score 0; this one takes the words of the reference Bengali ROUGE (xl-sum). The mean is the plain mean: the median
of a bootstrap, which the common `rouge` module reports, differs from run to run.
"""
_CITATION = """\
@inproceedings{lin-2004-rouge, title = "{ROUGE}: A Package for Automatic Evaluation of Summaries",
  author = "Lin, Chin-Yew", booktitle = "Text Summarization Branches Out", year = "2004", pages = "74--81"}
@inproceedings{hasan-etal-2021-xl, author = "Hasan, Tahmid and others",
  title = "{XL}-Sum: Large-Scale Multilingual Abstractive Summarization for 44 Languages",
  booktitle = "Findings of ACL-IJCNLP", year = "2021", pages = "4693--4703"}
"""
_INPUTS = """\
predictions: list of replies; references: list of reference replies, one for each.
bootstrap, seed: resamples for the interval (0: none) and their seed.
Returns {"rouge1": Score, "rouge2": Score, "rougeL": Score}. Raises UserError where one side has no word at all.
"""
_TYPES = ("rouge1", "rouge2", "rougeL")


class _BengaliWords:
    """What `RougeScorer` calls a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return word_tokens(text)


class BnRouge(evaluate.Metric):
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
        _refuse_wordless("replies", replies)
        _refuse_wordless("references", references)
        scorer = RougeScorer(_TYPES, use_stemmer=False, tokenizer=_BengaliWords())
        rows = [scorer.score(target, reply) for target, reply in zip(references, replies, strict=True)]
        signature = (
            f"nrefs:1|case:lc|tok:bn-words|stem:no|agg:mean-f1|norm:{NORMALISER}"
            f"|version:rouge_score-{version('rouge_score')}"
        )
        return {
            kind: Measure(
                kind, np.array([(100 * row[kind].fmeasure, 1) for row in rows]), ratio, signature, "0-100", True
            ).score(bootstrap, seed)
            for kind in _TYPES
        }


def _refuse_wordless(side: str, texts: list[str]) -> None:
    """A tokenizer that finds nothing makes a ROUGE of 0 that looks like a result."""
    if not any(word_tokens(text) for text in texts):
        raise UserError(
            f"ROUGE cannot be computed: there is not one word in the {len(texts)} {side} (first: {texts[0][:40]!r}).",
            f"Look at the {side}: they are empty or hold punctuation alone.",
        )
