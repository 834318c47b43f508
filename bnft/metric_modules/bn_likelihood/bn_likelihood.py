"""Bits per byte, token perplexity and character perplexity from summed log-likelihoods of the reference replies."""

from __future__ import annotations

import math

import datasets
import evaluate
import numpy as np

from bnft.errors import UserError
from bnft.metrics import BOOTSTRAP, SEED, Measure, Score, ratio

_DESCRIPTION = """\
How well a model predicts the reference replies, from corpus sums and not from means of rows:
bits per byte = sum(nats) / sum(UTF-8 bytes) / ln 2, perplexity = exp(sum(nats) / sum(tokens or characters)), the
definitions of lm-evaluation-harness (lm_eval/api/metrics.py). Only bits per byte and character perplexity compare
models of different tokenizers: one log-likelihood reads as 141.8 over Gemma's tokens and as 2.99 over Llama's.
"""
_CITATION = """\
@misc{eval-harness, title = {A framework for few-shot language model evaluation}, author = {Gao, Leo and others},
  publisher = {Zenodo}, doi = {10.5281/zenodo.10256836}, year = {2023}}
"""
_INPUTS = """\
nats: negative natural log-likelihood of each reply, summed over the reply's tokens alone (no template, no end-of-turn).
tokens, utf8_bytes, characters: the reply's sizes; bytes and code points of the text as written.
bootstrap, seed: resamples for the interval (0: none) and their seed.
Returns {"bits_per_byte": Score, "token_perplexity": Score, "char_perplexity": Score}.
"""
_SPAN = "agg:corpus-sums|span:reply tokens only, no template, no end-of-turn token"


class BnLikelihood(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        count = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"nats": datasets.Value("float64"), "tokens": count, "utf8_bytes": count, "characters": count}
            ),
        )

    def _compute(
        self,
        nats: list[float],
        tokens: list[int],
        utf8_bytes: list[int],
        characters: list[int],
        bootstrap: int = BOOTSTRAP,
        seed: int = SEED,
    ) -> dict[str, Score]:
        def perplexity(sums: np.ndarray) -> float:
            try:
                return math.exp(ratio(sums))
            except OverflowError as error:
                raise UserError(
                    f"A perplexity of exp({ratio(sums):.0f}) is no number to tell.",
                    "The model's weights or its number format are broken; try a lower learning rate or float32.",
                ) from error

        def bits(sums: np.ndarray) -> float:
            return ratio(sums) / math.log(2)

        per_byte, per_token, per_character = (
            np.column_stack([nats, size]) for size in (utf8_bytes, tokens, characters)
        )
        as_bytes = f"{_SPAN}|bytes:UTF-8 of the reply text as written"
        as_tokens = f"{_SPAN}|tok:the model's own|compare:never across tokenizers"
        as_characters = f"{_SPAN}|chars:code points of the reply text as written"
        measures = (
            Measure("bits_per_byte", per_byte, bits, as_bytes, "bits/byte", False),
            Measure("token_perplexity", per_token, perplexity, as_tokens, "perplexity", False),
            Measure("char_perplexity", per_character, perplexity, as_characters, "perplexity", False),
        )
        return {measure.name: measure.score(bootstrap, seed) for measure in measures}
