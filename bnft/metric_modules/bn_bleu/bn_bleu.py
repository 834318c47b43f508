"""BLEU of Bengali replies, by sacrebleu: `intl` tokens for use, `13a` tokens only to read beside papers."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np
import regex
from sacrebleu.metrics import BLEU

from bnft.metrics import BOOTSTRAP, SEED, Measure, Score
from bnft.text import NORMALISER, scoring_normalise

_DESCRIPTION = """\
Corpus BLEU. The intl tokenizer separates the danda and keeps ২.৫ whole; the 13a tokenizer of most papers leaves the
danda glued to its word and cuts ২.৫ in two, so bleu_13a is for comparison with papers only.
"""
_CITATION = """\
@inproceedings{post-2018-call, title = "A Call for Clarity in Reporting {BLEU} Scores", author = "Post, Matt",
  booktitle = "Proceedings of the Third Conference on Machine Translation", year = "2018", pages = "186--191"}
"""
_INPUTS = """\
predictions: list of replies; references: list of reference replies, one for each.
bootstrap, seed: resamples for the interval (0: none) and their seed.
Returns {"bleu": Score, "bleu_13a": Score}.
"""

# intl separates a punctuation mark from a number by what follows the mark; at the end of a text nothing follows, and
# the danda of a final "২০২৪।" stays glued. "final:split" in the signature names this repair.
_FINAL_MARK = regex.compile(r"(?<=\p{N})(?=\p{P}\s*\Z)")


class BnBleu(evaluate.Metric):
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
        split_replies = [_FINAL_MARK.sub(" ", text) for text in replies]
        split_references = [_FINAL_MARK.sub(" ", text) for text in references]
        intl = BLEU(tokenize="intl", lowercase=True, force=True)
        paper = BLEU(tokenize="13a", force=True)  # as in papers: case kept
        measures = (
            _measure("bleu", intl, f"final:split|norm:{NORMALISER}", split_replies, split_references),
            _measure("bleu_13a", paper, f"norm:{NORMALISER}", replies, references),
        )
        return {measure.name: measure.score(bootstrap, seed) for measure in measures}


def _measure(name: str, bleu: BLEU, preparation: str, replies: list[str], references: list[str]) -> Measure:
    rows = np.array(bleu._extract_corpus_statistics(replies, [references]))
    signature = str(bleu.get_signature()).replace("|version:", f"|{preparation}|version:")
    return Measure(
        name, rows, lambda sums: bleu._compute_score_from_stats(sums.tolist()).score, signature, "0-100", True
    )
