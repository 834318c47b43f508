"""Who sees which replies when: cut-off replies are trimmed, every rater has a plan, and some runs cannot be rated."""

import json
from collections import Counter
from itertools import islice

import pytest

from bnft.csv_files import csv_text
from bnft.errors import UserError
from bnft.rating_items import (
    PAIRS,
    Item,
    decoding_of,
    of_these,
    plan,
    read_items,
    read_rater,
    shown,
)
from bnft.rating_store import SYSTEMS, key_of
from bnft.records import RunDirectory
from bnft.results import fingerprint
from bnft.whole_files import write_json


def make_measured_run(folder, conversations):
    """A run's records, as far as raters need them; replies are told apart by eye."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 3407\neval: {bootstrap: 200}\n", encoding="utf-8")
    RunDirectory(folder).write_splits({"train": [], "validation": [], "test": conversations})
    rows = [
        {
            "id": f"{c.id}-{turn + 1}",
            "question": c.messages[2 * turn]["content"],
            "reference": c.messages[2 * turn + 1]["content"],
            "base_reply": f"এটি {number} নম্বর। তারপর আর",
            "tuned_reply": f"বুঝতে পারছি, {number}। কেমন আছেন?",
            "base_finish_reason": "length",
            "tuned_finish_reason": "stop",
        }
        for number, c in enumerate(conversations)
        for turn in range(len(c.messages) // 2)
    ]
    (folder / "GeneratedResponses.csv").write_text(csv_text(rows, list(rows[0])), encoding="utf-8")
    test = {"rows": len(rows), "rows_generated": len(rows), "fingerprint": fingerprint(conversations)}
    decoding = {"method": "greedy", "max_new_tokens": 80, "repetition_penalty": 1.1}
    write_json(folder / "metrics.json", {"test": test, "decoding": decoding})
    return folder


@pytest.fixture
def run(tmp_path, conversations):
    return make_measured_run(tmp_path / "outputs" / "run", conversations)


@pytest.fixture
def items(run):
    return read_items(run)


@pytest.mark.parametrize(
    ("reply", "cut_off", "expected"),
    [
        ("মন ভালো নেই। কী হ", False, "মন ভালো নেই। কী হ"),  # the model ended it so
        ("মন খুব খারাপ আজ। কী হ", True, "মন খুব খারাপ আজ।"),
        ("মন খারাপ? আহা! আর", True, "মন খারাপ? আহা!"),
        ("বলল “ভালো আছি।” আর", True, "বলল “ভালো আছি।”"),
        ("it is so. Then i", True, "it is so."),
        ("আমার বয়স ২.৫ বছ", True, "আমার বয়স ২.৫"),  # the point of a number ends no sentence
        ("হুম। " + "কথা " * 20 + "শে", True, "হুম। " + "কথা " * 19 + "কথা"),  # a sentence that is nearly nothing
        ("আমি খুব কষ্\ufffd", True, "আমি খুব"),
        ("এটা\n.\n\nসে", True, "এটা\n."),
        ("একটাশব্দ", True, "একটাশব্দ"),
        ("", True, ""),
        (" \n ", False, ""),
    ],
)
def test_the_length_limit_is_not_seen(reply, cut_off, expected):
    assert shown(reply, cut_off) == expected


def test_items_hold_what_was_said_and_three_replies(items, conversations):
    assert len(items) == sum(len(c.messages) // 2 for c in conversations)
    last = items[-2]  # the second turn of the last but one talk's neighbour
    assert [m["role"] for m in last.said] == ["user"]
    three = next(item for item in items if item.id.endswith("-3"))
    assert [m["role"] for m in three.said] == ["user", "assistant", "user", "assistant", "user"]
    assert three.said[-1]["content"] == "মায়ের।"
    assert three.texts["base"].endswith("নম্বর।")
    assert three.texts["reference"] == "মাকে আজ ফোন করবেন?"
    assert len(set(three.hashes.values())) == 3


def test_decoding_is_one_value(run):
    assert decoding_of(run) == "method=greedy;max_new_tokens=80;repetition_penalty=1.1"


def test_a_rater_sees_every_pair_once_and_a_tenth_twice(items):
    seen = list(plan(items, "রিনা", 1))
    new = Counter((c.item.id, frozenset(c.systems)) for c in seen if not c.repeat)
    again = Counter((c.item.id, frozenset(c.systems)) for c in seen if c.repeat)
    assert len(new) == len(items) * len(PAIRS)
    assert set(new.values()) == set(again.values()) == {1}
    assert set(again) < set(new)
    assert 0.08 < len(again) / len(seen) < 0.11
    assert len({key_of(c.columns("রিনা")) for c in seen}) == len(seen)
    for c in seen:  # a repeat comes when other pairs have been seen since
        if c.repeat:
            at = seen.index(c)
            first = next(i for i, o in enumerate(seen) if o.item is c.item and set(o.systems) == set(c.systems))
            assert at - first > 3
    assert {(c.place, c.of) for c in seen[:11]} == {(i, 11) for i in range(1, 12)}


def test_sides_are_chance_orders_are_the_raters_own_and_rounds_are_everybodys(items):
    one, same, other = (list(plan(items, name, 1)) for name in ("রিনা", "রিনা", "মিতা"))
    assert one == same
    assert [c.item.id for c in one] != [c.item.id for c in other]
    assert [c.item.id for c in one] != [c.item.id for c in plan(items, "রিনা", 2)]

    def first_round(seen):
        return {(c.item.id, frozenset(c.systems)) for c in seen[:11]}

    assert first_round(one) == first_round(other)
    left = Counter(c.systems[0] for name in range(40) for c in islice(plan(items, f"r{name}", 1), 33))
    assert all(abs(left[system] / sum(left.values()) - 1 / 3) < 0.05 for system in SYSTEMS)


def test_a_few_items_are_enough_for_a_plan():
    item = Item("x-1", ({"role": "user", "content": "মন"},), dict.fromkeys(SYSTEMS, "ক"))
    seen = list(plan([item], "রিনা", 1))
    assert [c.repeat for c in seen] == [False] * 3
    assert len({key_of(c.columns("রিনা")) for c in seen}) == 3, "equal texts of two systems stay two pairs"


def test_the_token_tells_neither_system_nor_side(items):
    seen = list(plan(items, "রিনা", 1))
    tokens = [c.token("রিনা") for c in seen]
    assert len(set(tokens)) == len(tokens)
    assert all(len(token) == 16 and not any(system in token for system in SYSTEMS) for token in tokens)
    assert tokens[0] != seen[0].token("মিতা")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("  Rina   Di ", "rina di"),
        ("\u09df", "\u09af\u09bc"),
        ("\u09af\u09bc", "\u09af\u09bc"),
        (5, ""),
        (None, ""),
        ("a,b", ""),
        ({}, ""),
    ],
)
def test_a_rater_is_one_whatever_the_case_and_spacing(written, name):
    assert read_rater(written) == name


def test_ratings_of_replies_that_are_gone_do_not_count(items):
    row = next(iter(plan(items, "রিনা", 1))).columns("রিনা")
    assert of_these([row], items) == [row]
    for change in ({"hash_a": "0" * 16}, {"item": "gone-1"}, {"system_b": row["system_a"]}):
        assert of_these([row | change], items) == []


def damage(run, how):
    path = run / "GeneratedResponses.csv"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if how == "missing file":
        path.unlink()
    elif how == "missing row":
        path.write_text("".join(lines[:-1]), encoding="utf-8")
    elif how == "doubled row":
        path.write_text("".join([*lines[:-1], lines[1]]), encoding="utf-8")
    elif how == "no tuned replies":
        path.write_text("".join(lines).replace("tuned_reply", "other"), encoding="utf-8")
    elif how == "no metrics":
        (run / "metrics.json").unlink()
    elif how == "another split":
        metrics = json.loads((run / "metrics.json").read_text())
        metrics["test"]["fingerprint"] = "0" * 64
        write_json(run / "metrics.json", metrics)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("missing file", "GeneratedResponses.csv"),
        ("missing row", "rows"),
        ("doubled row", "more than once"),
        ("no tuned replies", "tuned_reply"),
        ("no metrics", "metrics.json"),
        ("another split", "another test split"),
    ],
)
def test_a_run_that_cannot_be_rated(run, how, told):
    damage(run, how)
    with pytest.raises(UserError, match=told):
        read_items(run)
