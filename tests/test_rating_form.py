"""What raters are asked: scales, sentences, and which answers can be."""

import string

import pytest
import regex

from bnft import rating_form
from bnft.rating_form import _SENTENCES, PREFERENCES, QUESTIONS, RATER, say, valid_answers

GOOD = {f"{q.key}_{side}": q.low for side in ("a", "b") for q in QUESTIONS} | {"preference": "tie"}


@pytest.mark.parametrize("key", _SENTENCES)
def test_every_sentence_is_bengali_with_bengali_digits(key):
    sentence = rating_form._SENTENCES[key]
    values = {name: 1 for _, name, _, _ in string.Formatter().parse(sentence) if name}
    shown = say(key, **values)
    assert "{" not in shown
    if key != "english_title":
        assert regex.search(r"\p{Bengali}", shown)
        assert not regex.search("[0-9]", shown)


def test_the_scales_are_those_of_their_sources():
    scales = {q.key: (q.low, q.high) for q in QUESTIONS}
    assert scales == {
        "empathy": (1, 5), "relevance": (1, 5), "fluency": (1, 5),  # EmpatheticDialogues
        "emotional_reaction": (0, 2), "interpretation": (0, 2), "exploration": (0, 2),  # EPITOME
    }  # fmt: skip
    assert set(PREFERENCES) == {"A", "B", "tie"}
    assert QUESTIONS[0].choices[0] == ("১ একদম না", 1)
    assert QUESTIONS[0].choices[1] == ("২", 2)


def test_whole_answers_are_kept_as_text():
    kept, missing = valid_answers(GOOD)
    assert missing == []
    assert kept == {name: str(value) for name, value in GOOD.items()}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("empathy_a", 0),
        ("empathy_a", 6),
        ("empathy_a", None),
        ("empathy_a", True),
        ("empathy_a", 3.0),
        ("empathy_a", "3"),
        ("empathy_a", [3]),
        ("exploration_b", -1),
        ("exploration_b", 3),
        ("exploration_b", 10**30),
        ("preference", "C"),
        ("preference", None),
        ("preference", ["A"]),
        ("preference", {"A": 1}),
    ],
)
def test_an_impossible_value_is_an_open_question(name, value):
    kept, missing = valid_answers(GOOD | {name: value})
    assert name not in kept
    assert len(missing) == 1


def test_open_questions_are_told_by_name():
    assert valid_answers(GOOD | {"relevance_b": None, "preference": None})[1] == ["খ-এর প্রাসঙ্গিকতা", "কোনটা ভালো"]
    assert len(valid_answers({})[1]) == 13


@pytest.mark.parametrize("name", ["রিনা", "মীরা-১", "r.m 2", "ক্ষমা", "র‍্যাম", "x" * 40])
def test_a_pseudonym(name):
    assert regex.fullmatch(RATER, name)


@pytest.mark.parametrize("name", ["", " ", "=1+1", "a,b", 'a"b', "a\nb", "-a", "x" * 41, "<b>", "../x", "a\u202eb"])
def test_no_pseudonym(name):
    assert not regex.fullmatch(RATER, name)
