"""Results are read by who tells them on; what does not belong together is refused there."""

import csv
import json

import pytest

from bnft.config import resolve
from bnft.errors import UserError
from bnft.evaluation import Evaluation, Row
from bnft.generation import Generated
from bnft.metrics import Comparison
from bnft.records import RESPONSES, RunDirectory
from bnft.results import METRICS, SHOWN, Outcome, fingerprint, print_results, read_metrics, read_responses
from bnft.run_facts import read_run
from tests.test_card import write_run


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
