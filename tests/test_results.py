"""Results are read by who tells them on; what does not belong together is refused there."""

import csv
import hashlib
import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnft import report_runs
from bnft.card import render
from bnft.config import resolve
from bnft.errors import UserError
from bnft.evaluation import Evaluation, Row
from bnft.generation import Generated
from bnft.metrics import Comparison
from bnft.records import RESPONSES, RunDirectory
from bnft.results import JUDGE, METRICS, SHOWN, Outcome, fingerprint, print_results, read_metrics, read_responses
from bnft.run_facts import read_run
from tests.conftest import kept_or_refused
from tests.test_card import FACTS, write_run
from tests.test_report import write_run as write_measured


@pytest.fixture
def run(tmp_path):
    """49 exchanges in the test split, 30 of them replied to."""
    return write_run(tmp_path / "run")


def change_rows(run, change):
    path = run / RESPONSES
    with path.open(encoding="utf-8", newline="") as file:
        rows = change(list(csv.reader(file)))
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def test_what_was_written_is_read(run):
    assert read_metrics(run)["test"]["rows_generated"] == len(read_responses(run)) == 30
    assert read_responses(run)[3] == {
        "id": "000000000003-1",
        "question": "q3",
        "base_reply": "b3",
        "tuned_reply": "t3",
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:-1], "29 rows, where the metrics were made of 30"),
        (lambda rows: [*rows, rows[-1]], "1 ids are there more than once (00000000001d-1); 31 rows, where"),
        (lambda rows: [*rows[:-1], rows[1]], "1 ids are there more than once (000000000000-1)"),
        (lambda rows: [*rows[:-1], ["f00-1", "q", "b", "t"]], "1 ids are none of the test split's (f00-1)"),
        (lambda rows: [*rows[:-1], ["000000000001-2", "q", "b", "t"]], "none of the test split's (000000000001-2)"),
        (lambda rows: [*rows[:-1], rows[-1][:2]], "1 rows are torn (00000000001d-1)"),
        (lambda rows: [*rows[:-1], [*rows[-1], "more"]], "1 rows are torn (00000000001d-1)"),
        (lambda rows: rows[:1], "0 rows, where the metrics were made of 30"),
        (lambda rows: [], "0 rows, where the metrics were made of 30"),
        (lambda rows: [row[1:] for row in rows], "cannot read"),
    ],
)
def test_rows_that_are_missing_doubled_or_foreign_are_refused(run, change, said):
    change_rows(run, change)
    with pytest.raises(UserError) as caught:
        read_run(run, resolve("smoke", {})[0])
    assert said in caught.value.message
    assert caught.value.hint == f"Measure the run again: python train.py --eval-only {run}"


def test_replies_that_are_not_there_are_refused(run):
    (run / RESPONSES).unlink()
    with pytest.raises(UserError, match=r"cannot read .*GeneratedResponses"):
        read_responses(run)


def test_numbers_of_another_split_are_refused(run):
    other = RunDirectory(run).read_splits()["test"][1:]
    assert fingerprint(other) != read_metrics(run)["test"]["fingerprint"]
    RunDirectory(run).write_splits({"train": [], "validation": [], "test": other})
    for read in (read_metrics, read_responses, lambda folder: read_run(folder, resolve("smoke", {})[0])):
        with pytest.raises(UserError, match="measured on another test split"):
            read(run)


@pytest.mark.parametrize("name", ["rows", "rows_generated", "fingerprint"])
def test_a_file_of_numbers_that_lacks_its_split_is_refused(run, name):
    metrics = json.loads((run / METRICS).read_text())
    del metrics["test"][name]
    (run / METRICS).write_text(json.dumps(metrics))
    with pytest.raises(UserError, match=f"lacks '{name}'"):
        read_metrics(run)


REPLIES = ["কেমন আছেন?", 'বলুন, "শুনছি"।\nআমি আছি।']


@pytest.fixture(scope="module")
def made(tmp_path_factory, conversations):
    return write_measured(tmp_path_factory.mktemp("made"), "run", conversations[:3], REPLIES)


@pytest.fixture
def measured(made, tmp_path):
    """A run whose metrics name the replies that they are of."""
    return shutil.copytree(made, tmp_path / "run")


def test_replies_are_known_again_after_a_spreadsheet_and_refused_once_changed(measured):
    path = measured / RESPONSES
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerows(rows)
    assert len(read_responses(measured)) == len(rows) - 1
    path.write_text("\ufeff" + path.read_text(encoding="utf-8"), encoding="utf-8")  # as Excel saves "CSV UTF-8"
    assert len(read_responses(measured)) == len(rows) - 1
    path.write_text(path.read_text(encoding="utf-8").replace("শুনছি", "শুনছ", 1), encoding="utf-8")
    with pytest.raises(UserError, match="a reply has changed since"):
        read_responses(measured)


def test_numbers_of_other_weights_are_refused(measured):
    (measured / "lora_model").mkdir()
    (measured / "lora_model" / "adapter_model.safetensors").write_bytes(b"some")
    metrics = read_metrics(measured)  # the run had no weights when it was measured
    (measured / METRICS).write_text(json.dumps(metrics | {"adapter": hashlib.sha256(b"some").hexdigest()}))
    read_metrics(measured)
    (measured / "lora_model" / "adapter_model.safetensors").write_bytes(b"sume")
    with pytest.raises(UserError, match="measured with other weights"):
        read_metrics(measured)


def test_a_judge_is_told_of_while_the_replies_are_those_that_it_read(measured, conversations, capsys):
    (measured / METRICS).write_text(json.dumps(read_metrics(measured) | {JUDGE: {"what": "said"}}))
    for replies, kept in ((REPLIES, True), (["অন্য"], False)):
        write_measured(measured.parent, "run", conversations[:3], replies)
        assert (JUDGE in read_metrics(measured)) == kept
        assert ("no longer told" in capsys.readouterr().out) != kept


@pytest.mark.parametrize(("replied", "said"), [(1, True), (2, False)])
def test_the_next_step_is_told_while_there_is_one(run, capsys, replied, said):
    test = RunDirectory(run).read_splits()["test"][:2]
    rows = [Row(f"{talk.id}-1", ({"content": "প্রশ্ন"},), "উত্তর") for talk in test[:replied]]
    base, tuned = (Evaluation({}, [Generated(text, 1, True, 0.5)] * replied) for text in ("আগে", "পরে"))
    comparisons = {name: Comparison(name, 0.25, 0.5, 0.25, None, None, None, True) for name in SHOWN}
    print_results(run, Outcome(test, rows, base, tuned, comparisons), 1)
    told = capsys.readouterr().out
    assert "person: প্রশ্ন\n  base:   আগে\n  tuned:  পরে" in told
    assert ("--eval-samples all" in told) == said


def places(value, path=()):
    """Where in a record something stands."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


@pytest.mark.parametrize("name", ["metrics.json", "run.json", "data_report.json"])
@given(data=st.data())
def test_a_record_of_another_form_is_refused_or_read_never_stumbled_over(tmp_path, name, data):
    run = tmp_path / "run" if (tmp_path / "run").exists() else write_run(tmp_path / "run")
    whole = (run / name).read_text()
    record = {"": json.loads(whole)}
    *way, last = ("", *data.draw(st.sampled_from(sorted(places(record[""]), key=str))))
    there = record
    for key in way:
        there = there[key]
    there[last] = data.draw(st.sampled_from([None, [], {}, "", "x", -1, 2.5, True, [[]], {"": 1}]))
    try:
        (run / name).write_text(json.dumps(record[""]))
        card, said = kept_or_refused(render, "merged", run, resolve("smoke", {})[0], FACTS)
        assert card or said
        told, said = kept_or_refused(report_runs.read_run, run)
        assert told or said
    finally:
        (run / name).write_text(whole)
