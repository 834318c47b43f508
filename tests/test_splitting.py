"""Duplicates, leakage groups and the split, on plain keys."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnft.errors import UserError
from bnft.splitting import (
    NearIndex,
    Signatures,
    banding,
    find_duplicates,
    find_groups,
    jaccard,
    shingles,
    split_groups,
)

LONG = "পরীক্ষার আগের রাতে ঘুম আসে না আর সারাক্ষণ মনে হয় সব ভুলে গেছি তখন বুকটা কেমন যেন ধড়ফড় করে ওঠে"
OTHER = "অফিসের বড় কর্তা সবার সামনে বকেছেন বলে আজ সারাদিন কারও সঙ্গে কথা বলতে ইচ্ছে করেনি আমার একটুও"
REPLY = "শুনে খুব খারাপ লাগল আপনি যে কথাটা বললেন তার জন্য ধন্যবাদ একটু বলবেন কখন থেকে এমন লাগছে আর কে পাশে আছে আপনার"


def duplicates(talks, threshold=0.85):
    return list(find_duplicates(talks, threshold, Signatures()))


def groups(talks, runs=None, threshold=0.85):
    return find_groups(talks, runs or list(range(len(talks))), threshold, Signatures())


def test_shingles_and_jaccard_agree_with_sets_of_substrings():
    def truth(text):
        return {text[i : i + 5] for i in range(max(1, len(text) - 4))}

    dice = random.Random(2)
    for _ in range(50):
        left = "".join(dice.choices("কখগা ", k=dice.randint(1, 60)))
        right = left[: dice.randint(0, len(left))] + "".join(dice.choices("কখগা ", k=9))
        expected = len(truth(left) & truth(right)) / len(truth(left) | truth(right))
        assert jaccard(np.unique(shingles(left)), np.unique(shingles(right))) == pytest.approx(expected)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.85, 0.95, 1.0])
def test_the_index_proposes_nearly_every_pair_at_the_threshold(threshold):
    bands, rows = banding(threshold)
    assert bands >= 2
    assert bands * rows <= 64
    assert 1 - (1 - threshold**rows) ** bands >= 0.995


def test_near_index_finds_one_changed_word_and_not_another_subject():
    index = NearIndex(0.85, Signatures())
    index.add(0, (LONG,))
    near = LONG.replace("রাতে", "রাত্রে")
    assert index.candidates((near,)) == [0]
    assert index.is_near(0, (near,))
    assert index.candidates((OTHER,)) == []
    assert not index.is_near(0, (OTHER,))


@pytest.mark.parametrize(
    ("talks", "expected"),
    [
        ([[("ক", "খ")], [("ক", "খ")], [("ক", "গ")]], ["", "duplicate", ""]),
        ([[(LONG, REPLY)], [(LONG + " হ্যাঁ", REPLY)]], ["", "near_duplicate"]),
        ([[(LONG, REPLY)], [(OTHER, REPLY)]], ["", ""]),
        # a talk goes only when all of it was said before
        ([[("ক", "খ")], [("ক", "খ"), (OTHER, "গ")], [("ক", "খ"), (OTHER, "গ")]], ["", "", "duplicate"]),
        # two copies of a dropped row are judged by the row that was kept
        ([[(LONG, REPLY)], [(LONG + " হ্যাঁ", REPLY)], [(LONG, REPLY)]], ["", "near_duplicate", "duplicate"]),
    ],
)
def test_duplicates(talks, expected):
    assert duplicates(talks) == expected


@pytest.mark.parametrize(
    ("talks", "runs", "expected"),
    [
        ([[("ক", "খ")], [("ক", "গ")], [("ঘ", "গ")]], None, [0, 0, 2]),  # one question
        ([[("ক", "খ")], [("চ", "ছ"), ("ক", "জ")]], None, [0, 0]),  # a question of a later turn
        ([[("ক", "খ")], [("গ", "ঘ")], [("চ", "ছ")]], [1, 2, 1], [0, 1, 0]),  # one run of rows
        ([[(LONG, "ক")], [(LONG + " হ্যাঁ", "খ")]], None, [0, 0]),  # nearly one question
        ([[("কেমন আছেন আপনি", "ক")], [("কেমন আছেন আপনিও", "খ")]], None, [0, 1]),  # too short to tell
        ([[(LONG, REPLY)], [(OTHER, REPLY)]], None, [0, 0]),  # one long reply
        ([[(LONG, "ধন্যবাদ")], [(OTHER, "ধন্যবাদ")]], None, [0, 1]),  # a short reply means nothing
        ([[("ক", "খ")], [("গ", "ঘ")], [("ক", "চ"), ("গ", "ছ")]], None, [0, 0, 0]),  # the third joins the others
    ],
)
def test_groups(talks, runs, expected):
    assert groups(talks, runs) == expected


SIZES = st.dictionaries(st.text("০১২৩৪৫৬৭৮৯abc", min_size=1, max_size=6), st.integers(1, 60), min_size=3, max_size=80)


@given(SIZES, st.integers(0, 5), st.floats(0.01, 0.4), st.floats(0.01, 0.4))
def test_every_group_is_placed_once_and_every_split_gets_one(sizes, seed, test, validation):
    placed = split_groups(sizes, test, validation, seed)
    assert placed.keys() == sizes.keys()
    assert set(placed.values()) == {"train", "validation", "test"}
    backwards = dict(sorted(sizes.items(), reverse=True))
    assert split_groups(backwards, test, validation, seed) == placed


def test_shares_are_met_in_every_size_and_the_seed_matters():
    sizes = {f"g{n}": 1 + n % 3 for n in range(999)}
    placed = split_groups(sizes, 0.1, 0.2, seed=1)
    for size in (1, 2, 3):
        for name, share in (("test", 0.1), ("validation", 0.2), ("train", 0.7)):
            count = sum(placed[group] == name for group in sizes if sizes[group] == size)
            assert count == pytest.approx(333 * share, abs=2)
    assert split_groups(sizes, 0.1, 0.2, seed=2) != placed


def test_a_huge_group_goes_to_train_and_the_held_out_shares_stay():
    sizes = {f"g{n}": 2 for n in range(400)} | {"huge": 400}
    for seed in range(20):
        placed = split_groups(sizes, 0.1, 0.1, seed)
        assert placed["huge"] == "train"
        assert sum(sizes[group] for group in sizes if placed[group] == "test") == pytest.approx(120, abs=2)


def test_too_few_groups_says_how_many_are_needed():
    with pytest.raises(UserError, match="usable rows 9, independent groups 2, needed groups 3"):
        split_groups({"a": 4, "b": 5}, 0.1, 0.1, seed=1)
