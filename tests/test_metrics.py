"""Metrics: worked values with where they come from, intervals and p values that mean what they say, no network."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF

from bnft.errors import UserError
from bnft.metrics import Likelihood, Measure, Reply, compare, ratio, score_likelihood, score_replies
from bnft.results import SHOWN
from bnft.run_facts import MAIN
from bnft.text import scoring_normalise
from tests.conftest import kept_or_refused

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(path.parent for path in (ROOT / "bnft" / "metric_modules").glob("bn_*/bn_*.py"))

# Audit events see every socket, whatever library opens it.
NO_NETWORK = """
import sys
def refuse(event, args):
    if event in ("socket.__new__", "socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"a metric touched the network: {event} {args}")
sys.addaudithook(refuse)
"""
LOAD_ALL = """
sys.modules["transformers"] = None  # evaluate would import its pipelines for seconds, which no metric needs
import evaluate
del sys.modules["transformers"]
for path in sys.argv[1:]:
    metric = evaluate.load(path)
    assert metric.description and metric.citation and metric.inputs_description, path
    rows = {"string": ["আমি আজ ভালো আছি।", "তুমি কেমন আছ?"], "int64": [3, 4], "float64": [2.0, 3.0], "bool": [True] * 2}
    inputs = {name: rows[feature.dtype] for name, feature in metric.features.items()}
    print(metric.name, sorted(metric.compute(**inputs, bootstrap=10)))
"""


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen]:
    """`evaluate.load` of every module in a process that cannot reach out; begun first: other tests run beside it."""
    environment = os.environ | {
        "HF_HOME": str(tmp_path_factory.mktemp("hf")),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONUTF8": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", NO_NETWORK + LOAD_ALL, *map(str, MODULES)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    yield process
    process.kill()
    process.wait()


def value_of(name: str, reply: str | list[str], reference: str | list[str], ended: bool = True) -> float:
    replies = [reply] if isinstance(reply, str) else reply
    references = [reference] if isinstance(reference, str) else reference
    return score_replies([Reply(text, 1, ended) for text in replies], references, bootstrap=0)[name].value


OVERLAP = ("chrf++", "chrf", "bleu", "bleu_13a", "rouge1", "rouge2", "rougeL")


@pytest.mark.parametrize(
    ("reply", "reference"),
    [
        pytest.param("আমি আজ খুব ভালো আছি।", "আমি আজ খুব ভালো আছি।", id="identical"),
        pytest.param("সম\u09df খুব কম আছে।", "সম\u09af\u09bc খুব কম আছে।", id="two encodings of য়"),
        pytest.param("আমি আজ খুব ভালো আছি৷", "আমি আজ খুব ভালো আছি।", id="U+09F7 as danda"),
        pytest.param("সালটা ছিল 2024 নাকি ২০২৫?", "সালটা ছিল ২০২৪ নাকি 2025?", id="digits"),
        pytest.param(
            "বা\u09dc\u09bf ফি\u09b0\u09c7 ঘুম আসে", "বা\u09a1\u09bc\u09bf ফি\u09b0\u09c7 ঘুম আসে", id="two encodings of ড়"
        ),
        pytest.param("ভাল\u09c7\u09be থেক\u09c7\u09be তুমি আজ", "ভাল\u09cb থেক\u09cb তুমি আজ", id="split ো"),
        pytest.param("বয়স ２৫ বছর হলো", "বয়স 25 বছর হলো", id="full-width digits"),
        pytest.param("হঠাত্ মন খারাপ হয়ে গেল।", "হঠাৎ মন খারাপ হয়ে গেল।", id="khanda ta"),
        pytest.param("আপনি 16789 নম্বরে call করুন।", "আপনি ১৬৭৮৯ নম্বরে call করুন।", id="mixed script"),
    ],
)
def test_equal_texts_score_100(reply: str, reference: str) -> None:
    scores = score_replies([Reply(reply, 1, True)], [reference], bootstrap=0)
    assert {name: scores[name].value for name in OVERLAP} == pytest.approx(dict.fromkeys(OVERLAP, 100.0))


def test_disjoint_scripts_score_0() -> None:
    scores = score_replies([Reply("I am quite well today", 1, True)], ["আমি আজ খুব ভালো আছি।"], bootstrap=0)
    assert {name: scores[name].value for name in OVERLAP} == dict.fromkeys(OVERLAP, 0.0)


def test_final_danda_after_a_number_is_a_token_of_its_own() -> None:
    # sacrebleu's intl alone leaves "২০২৪।" glued at the end of a text, so these two differ in their last token
    assert value_of("bleu", "আমার জন্ম হয় ২০২৪।", "আমার জন্ম হয় ২০২৪ ।") == pytest.approx(100)
    assert value_of("bleu_13a", "আমার জন্ম হয় ২০২৪।", "আমার জন্ম হয় ২০২৪ ।") < 100


@pytest.mark.parametrize(
    ("name", "reply", "reference", "expected"),
    [
        # 4 and 5 words; longest common subsequence 3 (আমি ভালো আছি): P 3/4, R 3/5, F = 2PR/(P+R) = 2/3
        ("rougeL", "আজ আমি ভালো আছি", "আমি আজ খুব ভালো আছি।", 200 / 3),
        # 4 words in common: P 1, R 4/5, F 8/9
        ("rouge1", "আজ আমি ভালো আছি", "আমি আজ খুব ভালো আছি।", 800 / 9),
        # of 3 and 4 bigrams one (ভালো আছি) in common: P 1/3, R 1/4, F 2/7
        ("rouge2", "আজ আমি ভালো আছি", "আমি আজ খুব ভালো আছি।", 200 / 7),
        # mean over rows: 2/3 and 0 (an empty reply counts as 0)
        ("rougeL", ["আজ আমি ভালো আছি", ""], ["আমি আজ খুব ভালো আছি।", "কেমন আছ"], 100 / 3),
        # precisions 5/6, 4/5, 3/4, 2/3, equal length: (1/3) ** (1/4)
        ("bleu", "এক দুই তিন চার পাঁচ ছয়", "এক দুই তিন চার পাঁচ সাত", 100 * (1 / 3) ** 0.25),
        # 1-grams P = R = 1/2, 2-grams 0: mean of two orders 1/4
        ("chrf", "কখ", "কগ", 25.0),
        # with the word unigram, 0 of 1, as third order: 1/6
        ("chrf++", "কখ", "কগ", 100 / 6),
    ],
)
def test_overlap_by_hand(name: str, reply: str | list[str], reference: str | list[str], expected: float) -> None:
    assert value_of(name, reply, reference) == pytest.approx(expected)


def test_overlap_is_the_librarys_own_over_the_corpus() -> None:
    """Resampling works on sums of the rows' counts; without resampling they give what sacrebleu gives by itself."""
    replies = ["আজ আমি ভালো আছি", "তুমি কেমন আছ আজ?", "", "call করুন ১৬৭৮৯ নম্বরে।"]
    references = ["আমি আজ খুব ভালো আছি।", "তুমি আজ কেমন আছ?", "কিছু বলুন", "আপনি ১৬৭৮৯ নম্বরে call করুন।"]
    sides = [scoring_normalise(text) for text in replies], [[scoring_normalise(text) for text in references]]
    scores = score_replies([Reply(text, 1, True) for text in replies], references, bootstrap=10)
    for name, metric in {
        "chrf": CHRF(word_order=0),
        "chrf++": CHRF(word_order=2),
        "bleu": BLEU(tokenize="intl"),
        "bleu_13a": BLEU(tokenize="13a"),
    }.items():
        assert scores[name].value == pytest.approx(metric.corpus_score(*sides).score, rel=1e-12), name


def test_all_that_is_recorded_stands_on_the_card_and_in_the_printed_table() -> None:
    recorded = set(score_replies([Reply("ভালো", 1, True)], ["ভালো"], bootstrap=0))
    recorded |= set(score_likelihood([Likelihood(1.0, 1, 1, 1)], bootstrap=0))
    assert set(MAIN) == recorded
    assert recorded - set(SHOWN) == {"reply_tokens", "reply_chars"}  # reply_words says it already


def test_the_interval_of_a_whole_test_set_is_quick() -> None:
    counts = np.random.default_rng(0).integers(1, 200, (3821, 24))
    chrf = CHRF(word_order=2)
    measure = Measure("chrf++", counts, lambda s: chrf._compute_score_from_stats(s.tolist()).score, "", "0-100", True)
    started = time.process_time()
    score = measure.score(1000)
    assert score.low < score.value < score.high
    assert time.process_time() - started < 5  # 0.3 s on an idle core; rescoring the texts would take hours


@pytest.mark.parametrize(
    ("reply", "reference", "below"),
    [
        pytest.param("আমি আজ খুব ভালো আছি", "আমি আজ খুব ভালো আছি।", ("chrf++", "chrf", "bleu", "bleu_13a"), id="none"),
        # sacrebleu's chrF++ and 13a separate ASCII marks only, so a glued danda is part of the word for them
        pytest.param("আমি আজ খুব ভালো আছি ।", "আমি আজ খুব ভালো আছি।", ("chrf++", "bleu_13a"), id="spaced"),
        pytest.param("আমি আজ খুব ভালো আছি॥", "আমি আজ খুব ভালো আছি।", ("chrf++", "chrf", "bleu", "bleu_13a"), id="double"),
        pytest.param(
            "আমি আজ খুব ভালো আছি.", "আমি আজ খুব ভালো আছি।", ("chrf++", "chrf", "bleu", "bleu_13a"), id="full stop"
        ),
    ],
)
def test_danda_is_a_mark_and_no_word(reply: str, reference: str, below: tuple[str, ...]) -> None:
    scores = score_replies([Reply(reply, 1, True)], [reference], bootstrap=0)
    assert {name for name in OVERLAP if scores[name].value < 99.9} == set(below)


def test_empty_texts() -> None:
    scores = score_replies([Reply("", 0, True), Reply("ভালো", 2, True)], ["কেমন আছ", "ভালো"], bootstrap=50)
    assert scores["rouge1"].value == pytest.approx(50)
    assert all(math.isfinite(score.value) for score in scores.values())
    with pytest.raises(UserError, match="no replies"):
        score_replies([], [])
    with pytest.raises(UserError, match="2 references"):
        score_replies([Reply("ভালো", 2, True)], ["ভালো", "ভালো"])


@pytest.mark.parametrize(("reply", "reference", "side"), [("।?!", "ভালো", "replies"), ("ভালো", "  ", "references")])
def test_rouge_of_no_words_is_refused(reply: str, reference: str, side: str) -> None:
    with pytest.raises(UserError, match=f"not one word in the 1 {side}"):
        score_replies([Reply(reply, 1, True)], [reference])


def test_reply_shape_by_hand() -> None:
    replies = [
        Reply("ক খ গ ঘ ক খ গ ঘ", 16, False),  # 5 four-grams, 1 of them a repeat; no end mark: cut off
        Reply("আমি call করি।", 6, False),  # stopped, but at the end of a sentence; 6 of 10 letters Bengali
        Reply("ভালো\ufffd", 2, True),  # 5 code points, 3 clusters, 4 letters
        Reply("", 0, True),
    ]
    references = ["ক খ", "আমি", "ভালো আছি", "না"]
    scores = score_replies(replies, references, bootstrap=0)
    expected = {
        "distinct1": 8 / 12,  # ক খ গ ঘ আমি call করি ভালো
        "distinct2": 6 / 9,  # কখ খগ গঘ ঘক, আমি-call call-করি; of 7 + 2
        "repeated_4grams": 1 / 5,
        "bengali_script_rate": (8 + 6 + 4) / (8 + 10 + 4),
        "ended_rate": 2 / 4,
        "cut_off_rate": 1 / 4,
        "replacement_char_rate": 1 / 4,
        "length_ratio": 12 / 6,
        "reply_words": 12 / 4,
        "reply_tokens": 24 / 4,
        "reply_chars": (15 + 11 + 3) / 4,  # আ মি _ c a l l _ ক রি ।
    }
    assert {name: scores[name].value for name in expected} == pytest.approx(expected)
    assert set(scores) == {*OVERLAP, *expected}


def test_a_repeat_in_another_reply_is_no_repetition() -> None:
    assert value_of("repeated_4grams", ["ক খ গ ঘ", "ক খ গ ঘ"], ["ক", "ক"]) == 0


def test_bits_per_byte_by_hand() -> None:
    # 10 and 30 bits over 10 and 40 bytes: 40 / 50; a mean of rows would be (1 + 0.75) / 2
    rows = [
        Likelihood(nats=10 * math.log(2), tokens=5, utf8_bytes=10, characters=4),
        Likelihood(nats=30 * math.log(2), tokens=15, utf8_bytes=40, characters=16),
    ]
    scores = score_likelihood(rows)
    assert scores["bits_per_byte"].value == pytest.approx(0.8)
    assert scores["token_perplexity"].value == pytest.approx(2 ** (40 / 20))
    assert scores["char_perplexity"].value == pytest.approx(2 ** (40 / 20))
    assert "never across tokenizers" in scores["token_perplexity"].signature
    assert "UTF-8" in scores["bits_per_byte"].signature


def test_likelihood_measures_the_text_as_written() -> None:
    # precomposed য় is one code point of three bytes; NFC would make it two of three
    row = Likelihood.of_reply("সম\u09df", nats=1.0, tokens=4)
    assert (row.utf8_bytes, row.characters) == (9, 3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no likelihoods"),
        ([Likelihood(1.0, 1, 1, 1), Likelihood(math.nan, 1, 1, 1)], "row 1 is nan"),
        ([Likelihood(0.0, 0, 0, 0)], "empty"),
    ],
)
def test_likelihoods_that_mean_nothing_are_refused(rows: list[Likelihood], message: str) -> None:
    with pytest.raises(UserError, match=message):
        score_likelihood(rows)


def test_every_score_is_signed_and_ready_for_json() -> None:
    scores = score_replies([Reply("ভালো আছি।", 4, True)] * 3, ["আমি ভালো আছি।"] * 3, bootstrap=20, seed=7)
    assert scores["bleu"].signature == (
        f"nrefs:1|case:lc|eff:no|tok:intl|smooth:exp|final:split|norm:bnft-1|version:{version('sacrebleu')}|bs:20|seed:7"
    )
    for name, score in scores.items():
        assert score.name == name
        assert score.signature.endswith("|bs:20|seed:7")
        assert json.loads(json.dumps(score.to_dict()))["n"] == 3
        assert score.low <= score.value + 1e-9
        assert score.value <= score.high + 1e-9


def test_one_row_or_no_resampling_gives_no_interval() -> None:
    for replies, bootstrap in ((1, 100), (3, 0)):
        score = score_replies([Reply("ভালো", 1, True)] * replies, ["ভালো"] * replies, bootstrap=bootstrap)["chrf"]
        assert (score.low, score.high) == (None, None)
        assert "bs:" not in score.signature


def _proportion(rng: np.random.Generator, chance: float, n: int = 150) -> Measure:
    hits = rng.random(n) < chance
    return Measure("hits", np.column_stack([hits, np.ones(n)]), ratio, "agg:mean", "share", True)


def test_bootstrap_is_seeded() -> None:
    measure = _proportion(np.random.default_rng(0), 0.5)
    first, again, other = measure.score(200, 1), measure.score(200, 1), measure.score(200, 2)
    assert first == again
    assert first.value == other.value
    assert (first.low, first.high) != (other.low, other.high)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    scores = [_proportion(rng, 0.3).score(300) for _ in range(300)]
    coverage = np.mean([score.low <= 0.3 <= score.high for score in scores])
    assert 0.91 <= coverage <= 0.98


def test_p_is_rarely_small_without_a_difference() -> None:
    rng = np.random.default_rng(0)
    p = [
        compare({"hits": _proportion(rng, 0.5).score(200)}, {"hits": _proportion(rng, 0.5).score(200)})["hits"].p
        for _ in range(300)
    ]
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.09


def test_compare_tells_a_clear_difference_from_none() -> None:
    references = [f"আমি {word} নিয়ে খুব চিন্তায় আছি, কী করব?" for word in ("পরীক্ষা", "চাকরি", "পরিবার", "টাকা", "বন্ধু") * 8]
    good = [Reply(text.replace("খুব", "বেশ"), 9, True) for text in references]
    bad = [Reply("I do not know what to say, I do not know what to say", 9, i % 4 == 0) for i in range(40)]
    base, tuned = (score_replies(replies, references, bootstrap=200) for replies in (bad, good))
    for name in ("chrf++", "bleu", "rougeL", "repeated_4grams", "bengali_script_rate", "ended_rate"):
        comparison = compare(base, tuned)[name]
        assert comparison.p < 0.01, name
        assert comparison.improved, name
        assert comparison.low <= comparison.difference <= comparison.high, name
    same = compare(tuned, tuned)
    assert {comparison.p for comparison in same.values()} == {1.0}
    assert {comparison.improved for comparison in same.values()} == {None}
    assert json.loads(json.dumps(same["bleu"].to_dict()))["difference"] == 0


def test_compare_refuses_what_was_computed_in_two_ways() -> None:
    scores = [_proportion(np.random.default_rng(0), 0.5, n).score(50, seed) for n, seed in ((20, 1), (20, 2), (30, 1))]
    for other in scores[1:]:
        with pytest.raises(UserError, match="two ways"):
            compare({"hits": scores[0]}, {"hits": other})
    with pytest.raises(UserError, match="Only one"):
        compare({"hits": scores[0]}, {})


def test_importing_metrics_is_light() -> None:
    code = """
        import sys, bnft.metrics, bnft.text
        print([name for name in ("torch", "transformers", "gradio", "datasets", "evaluate") if name in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_modules_load_by_path_without_a_network(offline: subprocess.Popen) -> None:
    output, errors = offline.communicate(timeout=120)
    assert offline.returncode == 0, errors
    assert output.strip().splitlines() == [
        "bn_bleu ['bleu', 'bleu_13a']",
        "bn_chrf ['chrf', 'chrf++']",
        "bn_likelihood ['bits_per_byte', 'char_perplexity', 'token_perplexity']",
        "bn_reply_shape ['bengali_script_rate', 'cut_off_rate', 'distinct1', 'distinct2', 'ended_rate', 'length_ratio',"
        " 'repeated_4grams', 'replacement_char_rate', 'reply_chars', 'reply_tokens', 'reply_words']",
        "bn_rouge ['rouge1', 'rouge2', 'rougeL']",
    ]


ANY_REPLY = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    ["", "।", "ক্ষমা করবেন।", "\ufffd"]
)
SHARES = ("distinct1", "distinct2", "repeated_4grams", "bengali_script_rate", "ended_rate", "cut_off_rate")


@settings(max_examples=settings().max_examples // 6)  # `evaluate` takes a tenth of a second for each
@given(st.lists(st.tuples(ANY_REPLY, ANY_REPLY, ANY_REPLY, st.booleans()), min_size=1, max_size=5))
def test_any_replies_give_numbers_within_their_bounds(rows):
    references = [reference for _, _, reference, _ in rows]
    sides = [[Reply(row[side], len(row[side]), row[3]) for row in rows] for side in (0, 1)]
    scored = [kept_or_refused(lambda side=side: score_replies(side, references, bootstrap=100)) for side in sides]
    for scores, said in scored:
        assert scores or "not one word" in said
        for name, score in (scores or {}).items():
            told = [score.value, *([] if score.low is None else [score.low, score.high])]
            top = 100 if score.unit == "0-100" else 1 if name in SHARES else math.inf
            assert all(0 <= value <= top + 1e-9 and math.isfinite(value) for value in told)
            json.dumps(score.to_dict(), allow_nan=False)
    (base, _), (tuned, _) = scored
    for compared in compare(base, tuned).values() if base and tuned else ():
        assert compared.p is None or 0 <= compared.p <= 1
        json.dumps(compared.to_dict(), allow_nan=False)


def test_a_perplexity_beyond_all_numbers_is_refused():
    with pytest.raises(UserError, match=r"exp\(100000\) is no number"):
        score_likelihood([Likelihood(1e5, 1, 3, 1), Likelihood(1e5, 1, 3, 1)])
