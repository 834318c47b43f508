"""Numbers about ratings, against values worked by hand and from the literature, and what is recorded of them."""

import json

import pytest
from nltk.metrics.distance import binary_distance, interval_distance

from bnft.errors import UserError
from bnft.rating_form import QUESTIONS
from bnft.rating_items import plan, read_items
from bnft.rating_store import SYSTEMS, RatingStore
from bnft.rating_summary import (
    HUMAN,
    krippendorff_alpha,
    preferences_of,
    print_summary,
    record_summary,
    summarise,
    table_of,
)
from tests.test_rating_items import make_measured_run
from tests.test_rating_store import ROW

# Krippendorff's example with three coders of twelve units; "-" is a missing value.
CODERS = ("5 4 3 2 4 5 1 3 4 2 - 5", "4 4 3 1 4 5 2 3 5 2 3 -", "5 3 3 2 - 4 1 2 4 2 3 5")
TRIPLES = [(c, u, int(v)) for c, row in enumerate(CODERS) for u, v in enumerate(row.split()) if v != "-"]


@pytest.mark.parametrize(("distance", "alpha"), [(interval_distance, 0.8708), (binary_distance, 0.4754)])
def test_alpha_of_a_published_shape(distance, alpha):
    found = krippendorff_alpha(TRIPLES, distance)
    assert found["alpha"] == pytest.approx(alpha, abs=5e-5)
    assert found["units"] == 12
    alone = [("one more", unit, 1) for unit in range(50, 60)]
    assert krippendorff_alpha(TRIPLES + alone, distance) == found, "units of a single rater say nothing"


@pytest.mark.parametrize(
    "data", [[], [("a", 1, 3), ("a", 2, 4)], [("a", 1, 3), ("b", 1, 3)]], ids=["nothing", "one rater", "one value"]
)
def test_alpha_is_none_where_it_is_not_defined(data):
    assert krippendorff_alpha(data, interval_distance)["alpha"] is None


def rated(rater, item, winner="tie", repeat="0", systems=("tuned", "base"), scores=(4, 2), flipped=False, **more):
    """One rating; `scores` are the Empathy of the two systems."""
    sides = dict(zip(("b", "a") if flipped else ("a", "b"), zip(systems, scores, strict=True), strict=True))
    row = ROW | {"rater": rater, "item": item, "repeat": repeat} | more
    for side, (system, score) in sides.items():
        row |= {f"system_{side}": system, f"hash_{side}": system.encode().hex()[:8] * 2, f"empathy_{side}": str(score)}
    row["preference"] = next((side.upper() for side, (system, _) in sides.items() if system == winner), "tie")
    return row


RATINGS = [
    rated("a", "1", "tuned"),
    rated("b", "1", "tuned", scores=(5, 2), flipped=True),
    rated("a", "2", "base", scores=(3, 4)),
    rated("b", "2", "tuned", scores=(4, 2), native="no"),
    rated("a", "3", "tuned", scores=(5, 1)),
    rated("a", "4", "tie", scores=(2, 2), flipped=True),
    rated("a", "1", "base", repeat="1", scores=(3, 2), flipped=True),
    rated("a", "5", "reference", systems=("base", "reference"), scores=(1, 5)),
]


def test_means_do_not_depend_on_sides_and_leave_repeats_out():
    scores = summarise(RATINGS, 200, 1)["scores"]
    assert scores["tuned"]["empathy"]["value"] == pytest.approx((4 + 5 + 3 + 4 + 5 + 2) / 6)
    assert scores["base"]["empathy"]["value"] == pytest.approx((2 + 2 + 4 + 2 + 1 + 2 + 1) / 7)
    assert scores["reference"]["empathy"]["value"] == 5
    assert scores["reference"]["empathy"]["low"] is None, "one item has no interval"
    tuned = scores["tuned"]["empathy"]
    assert tuned["low"] < tuned["value"] < tuned["high"]
    assert tuned["n"] == 4, "items, not ratings"
    assert tuned["unit"] == "1-5"


def test_preferences_by_rating_and_by_item():
    told = summarise(RATINGS, 0, 1)["preferences"][0]
    assert told == {
        "first": "tuned", "second": "base",
        "first_preferred": 4, "second_preferred": 1, "ties": 1,
        # item 1 and 3 to tuned; 2 is one against one; 4 is a tie
        "items_for_first": 2, "items_for_second": 0,
        "p": 0.5,  # two of two: 2 * 0.5 ** 2
    }  # fmt: skip


def test_the_sign_test_is_exact():
    rows = [rated("a", str(i), "tuned" if i < 9 else "base") for i in range(10)]
    told = summarise(rows, 0, 1)["preferences"][0]
    assert told["p"] == pytest.approx(2 * (1 + 10) / 2**10)  # 9 or 10 of 10, two-sided
    assert summarise(rows, 0, 1)["preferences"][1]["p"] is None, "no rating of this pair"


def test_agreement_and_self_agreement():
    told = summarise(RATINGS, 0, 1)
    assert told["agreement"]["empathy"]["units"] == 4  # two replies of items 1 and 2
    assert told["agreement"]["preference"]["units"] == 2
    assert told["self_agreement"]["pairs"] == 1
    assert told["self_agreement"]["preference"] == 0, "tuned, then base, whichever side they stood on"
    assert told["self_agreement"]["empathy"] == {"same": 0.5, "mean_difference": 0.5}
    assert (told["raters"], told["native_speakers"], told["items"], told["repeats"]) == (2, 1, 5, 1)


def test_raters_who_agree_and_raters_who_do_not():
    same = [
        rated(r, str(i), w, scores=s) for r in "ab" for i, (w, s) in enumerate([("tuned", (5, 1)), ("base", (2, 4))])
    ]
    assert summarise(same, 0, 1)["agreement"]["preference"]["alpha"] == 1
    assert summarise(same, 0, 1)["agreement"]["empathy"]["alpha"] == 1
    apart = [rated("a", str(i), "tuned") for i in range(4)] + [rated("b", str(i), "base") for i in range(4)]
    assert summarise(apart, 0, 1)["agreement"]["preference"]["alpha"] < 0


@pytest.fixture
def run(tmp_path, conversations):
    return make_measured_run(tmp_path / "run", conversations)


def rate_all(run, raters, count):
    items, store = read_items(run), RatingStore(run)
    for rater in raters:
        for seen, _ in zip(plan(items, rater, 3407), range(count), strict=False):
            better = "A" if seen.systems[0] != "base" else "B"
            values = {f"{q.key}_{s}": str(q.high if n != "base" else q.low)
                      for q in QUESTIONS for s, n in zip("ab", seen.systems, strict=True)}  # fmt: skip
            store.append(ROW | values | {"preference": better} | seen.columns(rater))


def test_the_summary_is_recorded_beside_what_was_there_and_names_nobody(run, capsys):
    before = json.loads((run / "metrics.json").read_text())
    rate_all(run, ["রিনা", "মিতা"], 12)
    summary = record_summary(run, 200, 3407)
    after = json.loads((run / "metrics.json").read_text())
    assert after == before | {HUMAN: summary}
    assert "রিনা" not in (run / "metrics.json").read_text()
    assert summary["scores"]["base"]["empathy"]["value"] == 1
    assert summary["scores"]["tuned"]["empathy"]["value"] == 5
    print_summary(summary)
    told = capsys.readouterr().out
    assert "22 pairs rated by 2 raters (2 native speakers)" in told
    assert "5.00 [5.00, 5.00]" in told
    assert record_summary(run, 200, 3407) == summary, "the same again"


def test_ratings_of_earlier_replies_are_counted_apart(run, conversations, capsys):
    rate_all(run, ["রিনা"], 5)
    store = RatingStore(run)
    store.append(ROW | {"hash_a": "0" * 16})
    summary = record_summary(run, 0, 1)
    assert (summary["ratings"], summary["ratings_of_earlier_replies"]) == (5, 1)
    print_summary(summary)
    assert "passed over: 1 ratings" in capsys.readouterr().out


def test_no_ratings_is_an_error_that_says_what_to_do(run):
    before = (run / "metrics.json").read_bytes()
    with pytest.raises(UserError, match="nobody has rated"):
        record_summary(run, 0, 1)
    RatingStore(run).append(ROW)
    with pytest.raises(UserError, match="1 are of replies that the run had before"):
        record_summary(run, 0, 1)
    assert (run / "metrics.json").read_bytes() == before


def test_what_is_read_of_it():
    summary = summarise(RATINGS, 0, 1)
    lines = table_of(summary)
    assert [list(line) for line in lines] == [["name", *SYSTEMS, "alpha", "again"]] * 7
    assert lines[0]["tuned"] == "3.83"
    assert lines[-1]["again"] == "0%"
    assert preferences_of(summary)[0] == (
        "tuned preferred to base 4 times, base to tuned 1 times, 1 ties; items 2 to 0, p = 0.500"
    )
