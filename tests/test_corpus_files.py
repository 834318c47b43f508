"""Formats, encodings, column names, and the messages for files that cannot be read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnft.corpus_files import READERS, is_hub_id, read_corpus
from bnft.errors import UserError
from tests.conftest import kept_or_refused

QUESTION, ANSWER = "মন ভালো নেই, কী করি?", "কী হয়েছে, বলবেন?"
TABLE = f'Topics,Question-Title,Questions,Answers\nদুঃখ,,"{QUESTION}","{ANSWER}"\n'


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return str(path)


def only_exchange(path):
    (row,) = read_corpus(path).rows
    assert row.number == 1
    return row.exchanges[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(tmp_path, encoding):
    path = write(tmp_path, "rows.csv", TABLE.encode(encoding))
    assert only_exchange(path) == (QUESTION, ANSWER)
    assert read_corpus(path).rows[0].topics == "দুঃখ"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Questions", "Answers"),
        ("question", "answer"),
        ("PROMPT", "Response"),
        ("instruction", "output"),
        ("Context", "Response"),
        (" Que stions ", "ANS_WERS"),
    ],
)
def test_column_names(tmp_path, question, answer):
    record = json.dumps({"id": 7, question: QUESTION, answer: ANSWER})
    assert only_exchange(write(tmp_path, "rows.jsonl", record)) == (QUESTION, ANSWER)


def test_question_column_wins_over_context_and_input_is_appended(tmp_path):
    both = {"context": "ক", "question": QUESTION, "answer": ANSWER}
    assert only_exchange(write(tmp_path, "a.json", json.dumps([both]))) == (QUESTION, ANSWER)
    task = {"instruction": "উত্তর দাও", "input": QUESTION, "output": ANSWER}
    assert only_exchange(write(tmp_path, "b.json", json.dumps([task]))) == (f"উত্তর দাও\n{QUESTION}", ANSWER)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters(tmp_path, delimiter):
    table = delimiter.join(["question", "answer"]) + "\n" + delimiter.join([f'"{QUESTION}"', f'"{ANSWER}"'])
    name = "rows.tsv" if delimiter == "\t" else "rows.csv"
    assert only_exchange(write(tmp_path, name, table)) == (QUESTION, ANSWER)


def test_csv_details_that_line_counting_or_pandas_get_wrong(tmp_path):
    text = 'question,answer\n"দুই\n\nলাইন ""উদ্ধৃতি""",NA\n\nnull,না\nকেন?\nএকটি,দুটি,তিনটি\n'
    rows = read_corpus(write(tmp_path, "rows.csv", text)).rows
    assert [row.exchanges[0] for row in rows[:3]] == [
        ('দুই\n\nলাইন "উদ্ধৃতি"', "NA"),
        ("null", "না"),
        ("কেন?", ""),
    ]
    assert [row.number for row in rows] == [1, 2, 3, 4]
    assert rows[3].fault == "too_many_columns"


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"Questions": [QUESTION, None], "Answers": [ANSWER, None]}), path)
    assert [row.exchanges[0] for row in read_corpus(str(path)).rows] == [(QUESTION, ANSWER), ("", "")]


def chat(*turns):
    return [{"role": role, "content": text} for role, text in turns]


@pytest.mark.parametrize(
    ("messages", "exchanges", "fault", "notes"),
    [
        (chat(("user", "ক"), ("assistant", "খ")), (("ক", "খ"),), "", ()),
        (chat(("system", "স"), ("user", "ক"), ("assistant", "খ")), (("ক", "খ"),), "", ("system_message_removed",)),
        (chat(("user", "ক"), ("assistant", "খ"), ("user", "গ")), (("ক", "খ"),), "", ("unanswered_turn_removed",)),
        ([{"from": "human", "value": "ক"}, {"from": "gpt", "value": "খ"}], (("ক", "খ"),), "", ()),
        (chat(("assistant", "খ"), ("user", "ক"), ("assistant", "গ")), (), "roles_do_not_alternate", ()),
        (chat(("user", "ক"), ("user", "খ"), ("assistant", "গ")), (), "roles_do_not_alternate", ()),
        (chat(("user", "ক"), ("tool", "খ")), (), "malformed_chat", ()),
        ([{"role": "user"}], (), "malformed_chat", ()),
        ([{"role": ["user"], "content": "ক"}], (), "malformed_chat", ()),
        ("ক", (), "malformed_chat", ()),
        ([], (), "malformed_chat", ()),
    ],
)
def test_chat_rows(tmp_path, messages, exchanges, fault, notes):
    path = write(tmp_path, "chat.jsonl", json.dumps({"messages": messages}) + "\n")
    (row,) = read_corpus(path).rows
    assert (row.exchanges, row.fault, row.notes, row.is_chat) == (exchanges, fault, notes, True)


@pytest.mark.parametrize(("there", "asked"), [("rows .csv", "rows.csv"), ("rows.csv", "rows .csv")])
def test_a_space_before_the_ending_is_found_either_way(tmp_path, there, asked):
    write(tmp_path, there, TABLE)
    assert only_exchange(str(tmp_path / asked)) == (QUESTION, ANSWER)


def test_a_folder_with_one_data_file(tmp_path):
    write(tmp_path, "README.md", "x")
    write(tmp_path, "rows .csv", TABLE)
    assert only_exchange(str(tmp_path)) == (QUESTION, ANSWER)


FAULTY_FILES = [
    # (name, content, what the message says)
    ("empty.csv", "", ["empty.csv", "is empty"]),
    ("latin.csv", "question,answer\nক,caf\u00e9\n".encode("cp1252", "replace"), ["not UTF-8", "line 2", "UTF-8"]),
    ("half.csv", "\ufeffক".encode("utf-16-le") + b"\x00", ["not UTF-16"]),
    ("other.csv", "Qestions,Reply\nক,খ\n", ["no question and no answer", "Qestions, Reply", "'questions'"]),
    ("answers.csv", "Questions,Anwers\nক,খ\n", ["no answer column", "'Anwers' looks like 'answers'"]),
    ("broken.jsonl", '{"question": "ক", "answer": "খ"}\n{"question": ', ["line 2", "not JSON"]),
    ("mark.csv", "\ufeff\r\n".encode("utf-16-le"), ["no question and no answer", "found: none"]),
    ("deep.json", "[" * 100_000, ["not JSON", "recursion"]),
    ("digits.jsonl", '{"question": ' + "9" * 5000, ["line 1", "not JSON", "digits"]),
    ("list.jsonl", "[1, 2]\n", ["record 1", "not an object"]),
    ("rows.parquet", "not parquet", ["not a Parquet file"]),
    ("rows.docx", "x", ["cannot tell the format", ".csv"]),
    ("rows.xlsx", "PK", ["cannot tell the format", "save a spreadsheet as 'CSV UTF-8'"]),
    ("archive.zip", "PK", ["cannot tell the format", "unpack a .zip"]),  # Kaggle's download is one
    ("quote.csv", 'question,answer\nক,"খ' + "\nগ,ঘ" * 50_000, ["field larger", "quote"]),
]


@pytest.mark.parametrize(("name", "content", "said"), FAULTY_FILES, ids=[case[0] for case in FAULTY_FILES])
def test_files_that_cannot_be_read_are_explained(tmp_path, name, content, said):
    with pytest.raises(UserError) as caught:
        read_corpus(write(tmp_path, name, content))
    for part in said:
        assert part in str(caught.value)
    assert caught.value.hint


def test_text_of_a_parquet_file_that_is_no_utf8_is_explained(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    offsets, data = pa.py_buffer(bytes(4) + b"\x02\0\0\0"), pa.py_buffer(b"\xff\xfe")
    torn = pa.Array.from_buffers(pa.string(), 1, [None, offsets, data])
    pq.write_table(pa.table({"question": torn, "answer": ["খ"]}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="not a Parquet file that can be read: 'utf-8'"):
        read_corpus(str(tmp_path / "rows.parquet"))


PIECES = (
    *(b"question,answer\n", b"Questions;Answers\r\n", b'"', b",", b"\n", b"\r", b"\t", b"\0", b"\x85", b" "),
    *(b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", "ক".encode(), b"PAR1", b"null", b"1e999", b"NaN", b"7" * 4400),
    *(
        b'{"question":',
        b'"answer":',
        b'"\\ud800"',
        b":",
        b"[",
        b"]",
        b"}",
        b'{"messages":[',
        b'{"role":[],"content":1}',
    ),
    b'{"role":"user","content":"a"}',
)


@given(
    st.lists(st.sampled_from(PIECES) | st.binary(max_size=6), max_size=14).map(b"".join), st.sampled_from([*READERS])
)
def test_any_bytes_are_rows_or_explained(tmp_path, data, ending):
    path = write(tmp_path, f"rows{ending}", data)
    source, said = kept_or_refused(read_corpus, path)
    assert (
        (path in said) if source is None else [row.number for row in source.rows] == [*range(1, len(source.rows) + 1)]
    )


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path_factory.mktemp("parquet") / "rows.parquet"
    pq.write_table(pa.table({"question": [QUESTION, None, "a"], "answer": [ANSWER, "x" * 50, None]}), path)
    return path.read_bytes()


@given(st.data())
def test_a_damaged_parquet_file_is_rows_or_explained(tmp_path, parquet, data):
    torn = bytearray(parquet)
    for place in data.draw(st.lists(st.integers(0, len(torn) - 1), min_size=1, max_size=5)):
        torn[place] = data.draw(st.integers(0, 255))
    path = write(tmp_path, "rows.parquet", bytes(torn[: data.draw(st.none() | st.integers(0, len(torn)))]))
    source, said = kept_or_refused(read_corpus, path)
    assert source or path in said


@pytest.mark.parametrize("name", [" ", ". ", "~nobody-of-this-name/rows.csv", "a" * 300, "a" * 300 + "/b", "a\0.csv"])
def test_what_cannot_be_a_path_is_explained(name):
    with pytest.raises(UserError):
        read_corpus(name)


def test_missing_paths_are_explained(tmp_path):
    write(tmp_path, "bengali_rows.csv", TABLE)
    with pytest.raises(UserError, match=r"Nearest names.*bengali_rows"):
        read_corpus(str(tmp_path / "bengali_row.csv"))
    with pytest.raises(UserError, match="does not exist either"):
        read_corpus(str(tmp_path / "nowhere" / "rows.csv"))
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no data file"):
        read_corpus(str(tmp_path / "none"))
    write(tmp_path, "more.csv", TABLE)
    with pytest.raises(UserError, match="holds 2 data files"):
        read_corpus(str(tmp_path))


def test_hub_ids_are_told_from_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert is_hub_id("someone/bengali-chats")
    assert is_hub_id("someone/bengali-chats:config_2")
    for path in ("mine/rows", "other/rows.csv", "/tmp/rows", "bundled", "./rows/more", "a/b/c"):
        assert not is_hub_id(path)


@pytest.mark.parametrize("before", ["\n", "\r\n\r\n", "\ufeff\n"])
def test_empty_lines_before_the_header_are_passed_over(tmp_path, before):
    assert only_exchange(write(tmp_path, "rows.csv", before + TABLE)) == (QUESTION, ANSWER)


def run_python(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_hub_datasets_are_read_and_unreachable_ones_explained(tmp_path):
    # The library loads a local folder the way it loads a repository of the Hub.
    (tmp_path / "set").mkdir()
    write(tmp_path / "set", "train.csv", TABLE)
    write(tmp_path / "set", "test.csv", TABLE)
    (tmp_path / "script").mkdir()  # as data sets were made years ago
    write(tmp_path / "script", "script.py", "raise SystemExit('this must never run')")
    (tmp_path / "odd").mkdir()
    write(tmp_path / "odd", "a.csv", "question,answer\nক,খ\n")
    write(tmp_path / "odd", "b.csv", "something,else\n1,2\n")
    code = """
import sys
from bnft.corpus_files import _read_hub
from bnft.errors import UserError
found, *wrong = sys.argv[1:]
print(_read_hub(found)[0], len(_read_hub(found)[1]))
for name in ("nobody/nothing-here", *wrong):
    try:
        _read_hub(name)
    except UserError as error:
        print(error)
"""
    folders = [str(tmp_path / name) for name in ("set", "script", "odd")]
    said = run_python(code, *folders, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "home"))
    assert "['Topics', 'Question-Title', 'Questions', 'Answers'] 2" in said
    assert "'nobody/nothing-here'" in said
    assert "scripts are no longer supported" in said
    assert "cannot load the dataset" in said
    assert said.count("owner/name:config") == 3


def test_reading_files_imports_no_heavy_library(tmp_path):
    code = """
import sys
from bnft.data import DatasetProcessor
from bnft.corpus_files import read_corpus
read_corpus(sys.argv[1])
print([name for name in ("torch", "gradio", "datasets", "transformers") if name in sys.modules])
"""
    assert run_python(code, write(tmp_path, "rows.csv", TABLE)).strip() == "[]"
