"""`ratings.csv`: no rating lost, none torn, none twice, whoever writes and whatever kills them."""

import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnft.config import REPOSITORY
from bnft.errors import UserError
from bnft.rating_form import QUESTIONS
from bnft.rating_store import COLUMNS, HEADER, LINE, RatingStore, key_of
from tests.conftest import kept_or_refused

ROW = {
    "item": "84c08dbd411f-1",
    "repeat": "0",
    "system_a": "tuned",
    "system_b": "base",
    "hash_a": "a" * 16,
    "hash_b": "b" * 16,
    **{f"{q.key}_{side}": str(q.low) for side in "ab" for q in QUESTIONS},
    "preference": "A",
    "rater": "রিনা",
    "native": "yes",
    "region": "BD",
    "decoding": "method=greedy;max_new_tokens=80",
    "build": "0" * 40 + "-dirty",
    "time": "2026-11-22T08:37:22+00:00",
}


def line_of(row):
    return ",".join(row[name] for name in COLUMNS)


@pytest.fixture
def store(tmp_path):
    return RatingStore(tmp_path)


def test_what_is_kept_is_read(store):
    assert store.read() == []
    other = ROW | {"rater": "মিতা", "preference": "tie"}
    assert store.append(ROW)
    assert store.append(other)
    assert store.read() == [ROW, other]
    assert store.path.read_text(encoding="utf-8") == f"{HEADER}\n{line_of(ROW)}\n{line_of(other)}\n"
    assert store.path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({}, False),
        ({"preference": "B"}, False),  # the same pair once more
        ({"system_a": "base", "system_b": "tuned", "hash_a": "b" * 16, "hash_b": "a" * 16}, False),  # sides changed
        ({"repeat": "1"}, True),
        ({"rater": "মিতা"}, True),
        ({"hash_b": "c" * 16}, True),  # the run was measured again
        ({"item": "84c08dbd411f-2"}, True),
    ],
)
def test_a_rater_rates_a_pair_once(store, change, kept):
    store.append(ROW)
    assert store.append(ROW | change) is kept
    assert len(store.read()) == 1 + kept


@pytest.mark.parametrize(
    "change",
    [
        {"empathy_a": "6"},
        {"empathy_a": "০"},
        {"exploration_b": "3"},
        {"preference": ""},
        {"system_a": "gpt"},
        {"hash_a": "x"},
        {"rater": "a,b"},
        {"rater": "=1"},
        {"rater": "a\nb"},
        {"region": "MOON"},
        {"decoding": 'say "x"'},
        {"time": "now"},
    ],
)
def test_an_impossible_value_never_gets_in(store, change):
    with pytest.raises(ValueError, match="no rating"):
        store.append(ROW | change)
    assert not store.path.exists()


@pytest.mark.parametrize("cut", [1, 5, 30, 120, -1, -3])
def test_a_torn_last_line_is_taken_out_with_a_word_and_its_rater_may_rate_again(store, cut, capsys):
    store.append(ROW)
    torn = line_of(ROW | {"rater": "মিতা"}).encode()[:cut]
    with store.path.open("ab") as file:
        file.write(torn)
    assert store.read() == [ROW]
    assert "passing over line 3" in capsys.readouterr().out
    assert store.append(ROW | {"rater": "মিতা"})
    assert "taking the torn last line out" in capsys.readouterr().out
    assert RatingStore(store.path.parent).read() == [ROW, ROW | {"rater": "মিতা"}]
    assert capsys.readouterr().out == ""


def test_a_whole_last_line_without_its_end_is_kept(store):
    """As an editor leaves it."""
    store.path.write_text(f"{HEADER}\n{line_of(ROW)}", encoding="utf-8")
    store.append(ROW | {"repeat": "1"})
    assert len(store.read()) == 2


@pytest.mark.parametrize("start", ["", HEADER[:7], HEADER, f"{HEADER}\n"])
def test_a_torn_beginning(store, start):
    store.path.write_text(start)
    store.append(ROW)
    assert store.read() == [ROW]
    assert store.path.read_text(encoding="utf-8") == f"{HEADER}\n{line_of(ROW)}\n"


def test_a_torn_line_in_the_middle_swallows_no_neighbour(store, capsys):
    store.path.write_text(f'{HEADER}\n"84c0,{line_of(ROW)[:50]}\n{line_of(ROW)}\n\n', encoding="utf-8")
    assert store.read() == [ROW]
    store.read()
    assert capsys.readouterr().out.count("passing over line 2") == 1, "told once"


def test_a_file_that_a_spreadsheet_has_saved(store):
    store.path.write_bytes(b"\xef\xbb\xbf" + f"{HEADER}\r\n{line_of(ROW)}\r\n".encode())
    assert store.read() == [ROW]
    store.append(ROW | {"repeat": "1"})
    assert len(store.read()) == 2


def test_another_table_is_refused_and_left_alone(store):
    store.path.write_text("a,b\n1,2\n")
    for call in (store.read, lambda: store.append(ROW)):
        with pytest.raises(UserError, match="other columns"):
            call()
    assert store.path.read_text() == "a,b\n1,2\n"


def test_a_place_that_cannot_be_read(store):
    store.path.mkdir()
    with pytest.raises(UserError, match="cannot read"):
        store.append(ROW)


@given(cut=st.integers(0, len(line_of(ROW).encode()) - 1))
def test_no_beginning_of_a_line_passes_for_a_line(cut):
    assert not LINE.fullmatch(line_of(ROW).encode()[:cut].decode("utf-8", "replace"))


WRITER = """
import sys, time
from pathlib import Path
from bnft.rating_store import RatingStore
from tests.test_rating_store import ROW
store, name = RatingStore(Path(sys.argv[1])), sys.argv[2]
print("ready", flush=True)
for i in range(100_000):
    store.append(ROW | {"rater": name, "item": f"{i:06}"})
    print(i, flush=True)
    time.sleep(0.005)  # or the other one never gets the lock
"""


def test_two_writers_killed_in_the_middle_lose_nothing_that_was_acknowledged(tmp_path):
    told = {}
    for attempt in range(2):
        names = [f"r{attempt}{i}" for i in range(2)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(tmp_path), name],
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            )
            for name in names
        ]
        for process in processes:
            assert process.stdout.readline() == "ready\n"
            assert [process.stdout.readline() for _ in range(4)] == ["0\n", "1\n", "2\n", "3\n"]
        for name, process in zip(names, processes, strict=True):
            process.send_signal(signal.SIGKILL)
            # not communicate(timeout=...): it reads the pipe itself and never sees what readline() had read ahead
            told[name] = 4 + process.stdout.read().count("\n")
            process.wait(20)
    rows = RatingStore(tmp_path).read()
    assert len({key_of(row) for row in rows}) == len(rows)
    for name, count in told.items():
        kept = [row["item"] for row in rows if row["rater"] == name]
        assert kept == [f"{i:06}" for i in range(len(kept))]
        assert count <= len(kept) <= count + 1


@given(
    st.lists(
        st.sampled_from([HEADER.encode(), line_of(ROW).encode(), b"\n", b"\r\n", b"\xef\xbb\xbf", b'"', b","])
        | st.binary(max_size=9),
        max_size=8,
    ).map(b"".join)
)
def test_any_bytes_are_ratings_or_another_table(store, content):
    store.path.write_bytes(content)
    ratings, said = kept_or_refused(store.read)
    assert "other columns" in said or all(line_of(row) == line_of(ROW) for row in ratings)
    if not said:
        store.append(ROW | {"rater": "নতুন"})
        assert store.read()[-1]["rater"] == "নতুন"
