"""Cached tokens: the very ids that encoding gives, made once, named by all they depend on, mended when damaged."""

import copy
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime

import pytest

from bnft import token_cache
from bnft.errors import UserError
from bnft.prompts import IGNORED, encode, with_system
from bnft.token_cache import KEPT, WORTH_KEEPING, key_of, tokenised

SYSTEM = "আপনি একজন সহানুভূতিশীল বন্ধু।"
LIMIT = 200
ROWS = "data-00000-of-00001.arrow"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BNFT_CACHE", str(tmp_path))
    return tmp_path / "tokens"


@pytest.fixture(scope="module")
def many(conversations):
    """So many that they are kept, each another; one is too long for its reply to fit."""

    def with_text(conversation, text):
        first, *rest = conversation.messages
        return replace(conversation, messages=({**first, "content": f"{first['content']} {text}"}, *rest))

    made = [with_text(conversations[i % len(conversations)], str(i)) for i in range(WORTH_KEEPING)]
    return [*made, with_text(conversations[0], "ক " * LIMIT)]


def expected(conversations, tokenizer, limit=LIMIT):
    rows = [encode(tokenizer, with_system(c.messages, SYSTEM), limit) for c in conversations]
    rows = [row for row in rows if any(label != IGNORED for label in row.labels)]
    return [(row.input_ids, row.labels) for row in rows]


def rows_of(dataset):
    return list(zip(dataset["input_ids"], dataset["labels"], strict=True))


def entries(cache):
    return sorted(path.name for path in cache.iterdir() if path.name != ".lock")


@pytest.mark.parametrize("count", [1, 12, WORTH_KEEPING + 1])
def test_the_rows_are_those_of_encode_in_their_order(cache, tiny_tokenizer, many, count):
    rows = tokenised(many[-count - 1 : -1], tiny_tokenizer, SYSTEM, LIMIT, "train")
    assert rows_of(rows) == expected(many[-count - 1 : -1], tiny_tokenizer)
    assert list(rows["length"]) == [len(ids) for ids in rows["input_ids"]]
    assert list(rows["reply_tokens"]) == [sum(label != IGNORED for label in labels) for labels in rows["labels"]]
    assert {str(rows.features[name].feature.dtype) for name in ("input_ids", "labels")} == {"int32"}
    assert cache.exists() == (count >= WORTH_KEEPING)


def test_two_processes_give_the_same_rows_as_one(cache, tiny_tokenizer, many, monkeypatch):
    one = rows_of(tokenised(many, tiny_tokenizer, SYSTEM, LIMIT, "train"))
    shutil.rmtree(cache)
    monkeypatch.setattr(token_cache, "ROWS_A_PROCESS", 100)
    monkeypatch.setattr(token_cache, "cpu_cores", lambda: 2)
    assert rows_of(tokenised(many, tiny_tokenizer, SYSTEM, LIMIT, "train")) == one == expected(many, tiny_tokenizer)


def test_the_second_time_nothing_is_encoded(cache, tiny_tokenizer, many, monkeypatch):
    first = rows_of(tokenised(many, tiny_tokenizer, SYSTEM, LIMIT, "train"))
    monkeypatch.setattr(token_cache, "_encode_rows", None)
    again = tokenised(many, tiny_tokenizer, SYSTEM, LIMIT, "validation")
    assert rows_of(again) == first
    assert again.cache_files, "held in memory instead of mapped"
    assert len(entries(cache)) == 1


def test_four_that_want_the_same_rows_at_once_make_them_once(cache, tiny_tokenizer, many, monkeypatch):
    made, real = [], token_cache._made
    monkeypatch.setattr(token_cache, "_made", lambda *wanted: made.append(1) or real(*wanted))
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(tokenised, many, tiny_tokenizer, SYSTEM, LIMIT, "train") for _ in range(4)]
        results = [rows_of(call.result()) for call in calls]
    assert results == [expected(many, tiny_tokenizer)] * 4
    assert made == [1]


def other_template(tokenizer):
    tokenizer.chat_template = tokenizer.chat_template + "\n"


def other_token(tokenizer):
    tokenizer.add_tokens(["মনখারাপ"])


def other_end(tokenizer):
    tokenizer.eos_token = "<|end_of_text|>"


@pytest.mark.parametrize("change", [other_template, other_token, other_end])
def test_another_tokenizer_is_another_entry(tiny_tokenizer, conversations, change):
    other = copy.deepcopy(tiny_tokenizer)
    same = key_of(conversations, other, SYSTEM, LIMIT)
    assert same == key_of(conversations, tiny_tokenizer, SYSTEM, LIMIT)
    change(other)
    assert key_of(conversations, other, SYSTEM, LIMIT) != same


def test_other_texts_or_limits_are_another_entry(tiny_tokenizer, conversations):
    question, answer = conversations[0].messages
    other = replace(conversations[0], messages=(question, {**answer, "content": answer["content"] + "।"}))
    keys = [
        key_of(conversations, tiny_tokenizer, SYSTEM, LIMIT),
        key_of(conversations, tiny_tokenizer, SYSTEM + " ", LIMIT),
        key_of(conversations, tiny_tokenizer, SYSTEM, LIMIT + 1),
        key_of(conversations[::-1], tiny_tokenizer, SYSTEM, LIMIT),
        key_of(conversations[1:], tiny_tokenizer, SYSTEM, LIMIT),
        key_of([other, *conversations[1:]], tiny_tokenizer, SYSTEM, LIMIT),
    ]
    assert len(set(keys)) == len(keys)


def test_a_template_that_shows_the_date_is_another_entry_every_day(tiny_tokenizer, conversations, monkeypatch):
    dated = copy.deepcopy(tiny_tokenizer)
    dated.chat_template = "{{ strftime_now('%d %b') }}" + dated.chat_template
    today = key_of(conversations, dated, SYSTEM, LIMIT)

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 1, 2)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Later)
    assert key_of(conversations, dated, SYSTEM, LIMIT) != today


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("part", "damage"),
    [(ROWS, cut), (ROWS, flip), (ROWS, os.unlink), ("state.json", os.unlink), ("manifest.json", cut)],
)
def test_a_damaged_entry_is_made_again_with_a_word(cache, tiny_tokenizer, many, capsys, part, damage):
    tokenised(many, tiny_tokenizer, SYSTEM, LIMIT, "train")
    capsys.readouterr()
    damage(cache / entries(cache)[0] / part)
    assert rows_of(tokenised(many, tiny_tokenizer, SYSTEM, LIMIT, "train")) == expected(many, tiny_tokenizer)
    assert f"damaged ({part}" in capsys.readouterr().out.replace("the checksum of ", "")
    assert len(entries(cache)) == 1


@pytest.mark.parametrize("count", [2, WORTH_KEEPING])
def test_rows_of_which_no_reply_fits_are_an_error_and_leave_nothing(cache, tiny_tokenizer, many, count):
    with pytest.raises(UserError, match="no validation conversation has a reply within 10 tokens"):
        tokenised(many[:count], tiny_tokenizer, SYSTEM, 10, "validation")
    assert not cache.exists() or not entries(cache)


@pytest.mark.parametrize("there", [KEPT // 2, KEPT + 2])
def test_the_last_used_entries_are_kept_and_what_a_dead_build_left_goes(cache, tiny_tokenizer, many, there):
    for number in range(there):
        old = cache / f"{number:032x}"
        old.mkdir(parents=True)
        os.utime(old, (number, number))
    (cache / ".0.part").mkdir()
    tokenised(many, tiny_tokenizer, SYSTEM, LIMIT, "train")
    new = key_of(many, tiny_tokenizer, SYSTEM, LIMIT)
    kept = range(max(0, there - KEPT + 1), there)
    assert entries(cache) == sorted([new, *(f"{number:032x}" for number in kept)])
    os.utime(cache / new, (0, 0))
    tokenised(many, tiny_tokenizer, SYSTEM, LIMIT, "train")
    assert (cache / new).stat().st_mtime > 100, "a used entry must count as new"


def test_a_cache_that_cannot_be_written_is_named(tmp_path, tiny_tokenizer, many, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BNFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write the cache of tokens") as caught:
        tokenised(many, tiny_tokenizer, SYSTEM, LIMIT, "train")
    assert "BNFT_CACHE" in caught.value.hint
