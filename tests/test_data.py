"""From file to split. Rows are made up, with the faults of the real corpus; none of its text is here."""

import csv
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnft.data import SPLITS, DatasetProcessor, format_report
from bnft.errors import UserError
from bnft.settings import DataConfig

WORDS = (
    *("বাড়ি", "নদী", "বন্ধু", "কাজ", "রাত", "সকাল", "মন", "কথা", "বই", "পথ"),
    *("আলো", "গান", "বৃষ্টি", "চিঠি", "স্বপ্ন", "দিন", "আকাশ", "ঘুম", "ভয়", "আশা"),
)
COLUMNS = ["Topics", "Question-Title", "Questions", "Answers"]


def sentence(number, length=7):
    """A sentence that no other number gives: the number's digits choose the words."""
    return " ".join(WORDS[(number // 20**place + 7 * place) % 20] for place in range(length)) + "।"


def filler(count, start=1000):
    """Rows that stand alone and are unlike each other."""
    return [(f"দুঃখ, {n}", sentence(n * 7919, 9), sentence(n * 104729 + 3, 9)) for n in range(start, start + count)]


def process(folder, rows, **settings_):
    path = folder / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows((topics, "", question, answer) for topics, question, answer in rows)
    return DatasetProcessor(DataConfig(path=str(path), **settings_)).process()


def by_rows(data):
    return {one.rows: one for name in SPLITS for one in data.splits[name]}


def test_talks_faults_and_duplicates_from_file_to_split(tmp_path):
    rows = [
        ("ভয়", "রাতে একা থাকতে ভয় লাগে৷", " কী ভেবে ভয়  লাগে? "),  # 1-2: a talk
        ("ভয়", "অন্ধকারে ছায়া দেখি।", "বাতি জ্বেলে রাখলে কেমন হয়?"),
        ("শঙ্কা", "ছুটির দিনে অস্থির লাগে।", "ছুটির দিনে অস্থির লাগে।"),  # 3-5: roles are swapped
        ("শঙ্কা", "কেন?", "একা থাকলে নানা কথা মাথায় আসে।"),
        ("শঙ্কা", "কাউকে ডাকতে পারেন?", "কাউকে তেমন চিনি না এখানে।"),
        ("রাগ", "ভাই আমার জামা নিয়ে গেছে।", "না বলে?"),  # 6-8: the second turn is empty
        ("রাগ", "হ্যাঁ, না বলেই।", "   "),
        ("রাগ", "এখন কী করি?", "ভাইকে বলে দেখুন।"),
        ("আনন্দ, পরিবার", "মেয়ে আজ প্রথম হেঁটেছে!", "কী আনন্দের খবর!"),  # 9-10: one question, two answers
        ("পরিবার", "মেয়ে আজ  প্রথম হেঁটেছে!", "আপনাদের ঘর নিশ্চয় হাসিতে ভরে গেছে?"),
        ("আনন্দ, পরিবার", "মেয়ে আজ প্রথম হেঁটেছে।", "কী আনন্দের খবর!"),  # 11: again row 9
        ("একা, শহর", "ekhane karo sathe kotha hoy na", "নতুন শহরে একা লাগাটা কঠিন। কতদিন হলো এসেছেন?"),  # 12
        ("একা, শহর", "নতুন শহরে একা লাগে।", "It gets better."),  # 13
        *filler(20),
    ]
    data = process(tmp_path, rows)
    kept = by_rows(data)

    assert kept[1, 2].messages == (
        {"role": "user", "content": "রাতে একা থাকতে ভয় লাগে।"},
        {"role": "assistant", "content": "কী ভেবে ভয় লাগে?"},
        {"role": "user", "content": "অন্ধকারে ছায়া দেখি।"},
        {"role": "assistant", "content": "বাতি জ্বেলে রাখলে কেমন হয়?"},
    )
    assert kept[1, 2].topics == "ভয়"
    assert (6,) in kept  # what came before the broken turn
    assert kept[9,].group == kept[10,].group != kept[12,].group
    assert set(kept) == {(1, 2), (6,), (9,), (10,), (12,), *((n,) for n in range(14, 34))}
    report = data.report
    assert report["dropped"] == {
        "role_swapped_talk": 3,
        "empty_answer": 1,
        "earlier_turn_dropped": 1,
        "duplicate": 1,
        "not_bengali_enough": 1,
    }
    assert [(drop["row"], drop["reason"]) for drop in report["dropped_rows"]] == [
        (3, "role_swapped_talk"),
        (4, "role_swapped_talk"),
        (5, "role_swapped_talk"),
        (7, "empty_answer"),
        (8, "earlier_turn_dropped"),
        (11, "duplicate"),
        (13, "not_bengali_enough"),
    ]
    assert report["repaired"] == {"edge_spaces": 2, "doubled_spaces": 2, "currency_sign_as_danda": 1}
    assert (report["rows_read"], report["rows_kept"], report["talks"]) == (33, 26, 1)


def test_a_swap_inside_a_cut_run_takes_the_rest_of_the_run_and_a_lone_echo_only_itself(tmp_path):
    rows = [
        ("লজ্জা", sentence(1), sentence(2)),
        ("লজ্জা", sentence(3), sentence(3)),
        ("লজ্জা", sentence(4), sentence(5)),
        ("লজ্জা", sentence(6), sentence(7)),
        ("গর্ব", sentence(8), sentence(8)),
        *filler(10),
    ]
    report = process(tmp_path, rows).report
    assert report["dropped"] == {"role_swapped_talk": 3, "answer_equals_question": 1}
    assert report["runs_cut"] == 1


def test_rows_of_a_cut_run_stay_in_one_group(tmp_path):
    rows = [("লজ্জা", sentence(n * 7919), sentence(n * 104729)) for n in range(1, 7)] + filler(10)
    kept = by_rows(process(tmp_path, rows))
    assert {len(kept[n,].messages) for n in range(1, 7)} == {2}
    assert len({kept[n,].group for n in range(1, 7)}) == 1


def test_chats_keep_their_turns_up_to_the_first_that_cannot_be_used(tmp_path):
    path = tmp_path / "chats.jsonl"
    chats = []
    for number in range(10):
        turns = [("system", "সহায়ক হও"), ("user", sentence(number * 7919)), ("assistant", sentence(number * 104729 + 1))]
        turns += [("user", sentence(number + 500)), ("assistant", "ok" if number == 4 else sentence(number * 611953))]
        turns += [("user", sentence(number * 31 + 900)), ("assistant", sentence(number * 15485863 + 2))]
        chats.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    path.write_text("\n".join(json.dumps(chat) for chat in chats), encoding="utf-8")
    data = DatasetProcessor(DataConfig(path=str(path))).process()
    assert len(by_rows(data)[5,].messages) == 2
    assert len(by_rows(data)[6,].messages) == 6
    report = data.report
    assert report["repaired"] == {"system_message_removed": 10}
    assert report["dropped"] == {"not_bengali_enough": 1, "earlier_turn_dropped": 1}
    assert (report["rows_kept"], report["exchanges_read"], report["exchanges_kept"]) == (10, 30, 28)


SHORT = st.sampled_from(["কেন?", "হ্যাঁ", "কেন", "", "মন  খারাপ৷"])
ROW = st.tuples(
    st.sampled_from(["", "ভয়", "রাগ", "আশা", "ভয়, রাগ"]),
    st.one_of(SHORT, st.integers(0, 40).map(lambda n: sentence(n * 7919))),
    st.one_of(st.sampled_from(["না", "", "ok"]), st.integers(0, 400).map(lambda n: sentence(n * 104729, 12))),
)


@given(rows=st.lists(ROW, max_size=40), seed=st.integers(0, 3))
def test_nothing_is_lost_and_nothing_leaks(tmp_path, rows, seed):
    process(tmp_path, rows + filler(12))
    config = DataConfig(path=str(tmp_path / "rows.csv"))
    data = DatasetProcessor(config, seed).process()
    assert DatasetProcessor(config, seed).process() == data

    everything = [(name, one) for name in SPLITS for one in data.splits[name]]
    report = data.report
    assert json.loads(json.dumps(report)) == report
    # Counts add up, and every row was either kept or dropped with a reason.
    kept_rows = [row for _, one in everything for row in one.rows]
    dropped_rows = [drop["row"] for drop in report["dropped_rows"]]
    assert sorted(kept_rows + dropped_rows) == list(range(1, len(rows) + 13))
    assert report["exchanges_kept"] + sum(report["dropped"].values()) == report["exchanges_read"] == len(rows) + 12
    assert sum(sizes["exchanges"] for sizes in report["splits"].values()) == report["exchanges_kept"]
    assert len({one.id for _, one in everything}) == len(everything) == report["conversations"]
    assert all(data.splits[name] for name in SPLITS)
    # No group on two sides; and, by other means than the code's, no question on two sides.
    sides_of_group, sides_of_question = {}, {}
    for name, one in everything:
        sides_of_group.setdefault(one.group, set()).add(name)
        assert [message["role"] for message in one.messages] == ["user", "assistant"] * len(one.rows)
        for message in one.messages[::2]:
            question = " ".join(unicodedata.normalize("NFC", message["content"]).replace("৷", "।").split()).strip(
                " ।?!"
            )
            sides_of_question.setdefault(question, set()).add(name)
    assert {len(sides) for sides in sides_of_group.values()} == {1}
    assert {len(sides) for sides in sides_of_question.values()} == {1}


def test_the_result_does_not_depend_on_pythons_hash_seed(tmp_path):
    process(tmp_path, filler(60))
    code = (
        "import sys\nfrom bnft.data import DatasetProcessor\nfrom bnft.settings import DataConfig\n"
        "print(DatasetProcessor(DataConfig(path=sys.argv[1])).process())"
    )
    outputs = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-c", code, str(tmp_path / "rows.csv")]
        env = {**os.environ, "PYTHONHASHSEED": seed}
        here = Path(__file__).parent.parent
        outputs.add(subprocess.run(command, env=env, cwd=here, capture_output=True, check=True).stdout)
    assert len(outputs) == 1


def test_zero_usable_rows_are_explained_with_the_counts(tmp_path):
    with pytest.raises(UserError, match=r"none of the 3 rows .* not_bengali_enough 2, empty_answer 1"):
        process(tmp_path, [("", "কেন?", "why"), ("", "কে?", "who"), ("", "কী?", "")])
    with pytest.raises(UserError, match="header line and no rows"):
        process(tmp_path, [])


def test_too_few_rows_are_explained(tmp_path):
    with pytest.raises(UserError, match="usable rows 2, independent groups 2, needed groups 3"):
        process(tmp_path, filler(2))


def test_load_only_reads(tmp_path):
    process(tmp_path, filler(5))
    rows = DatasetProcessor(DataConfig(path=str(tmp_path / "rows.csv"))).load()
    assert [row.number for row in rows] == [1, 2, 3, 4, 5]


def test_the_printed_report_names_every_count(tmp_path):
    report = process(tmp_path, [*filler(20), ("", "কেন?", "why"), ("", "আজ  মন ভালো", "শুনে ভালো লাগল")]).report
    text = format_report(report)
    for line in ("rows read", "not bengali enough", "doubled spaces", "train", "validation", "test", "sha256"):
        assert line in text
    assert text.isascii() or str(tmp_path) in text
