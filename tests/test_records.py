"""The run directory: whole files or none, no run over another, nothing lost, nothing secret."""

import csv
import getpass
import json
import os
import platform
import signal
import subprocess
import sys

import pytest

from bnft.config import REPOSITORY
from bnft.data import SPLITS
from bnft.errors import UserError
from bnft.records import EXPERIMENTS, RunDirectory, append_experiment, environment, read_json
from bnft.whole_files import write_atomically, write_json


def python(code, *arguments, **pipes):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=REPOSITORY, **pipes)


# Whole or not at all


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, "পুরোনো")
    write_atomically(path, "নতুন\r\n")
    assert path.read_bytes() == "নতুন\r\n".encode()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path, moment):
    path = tmp_path / "metrics.json"
    write_atomically(path, "old")
    code = (
        "import os, signal, sys; from pathlib import Path; from bnft.whole_files import write_atomically\n"
        f"os.{moment} = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(Path(sys.argv[1]), 'new' * 100_000)"
    )
    assert python(code, path).wait(60) == -signal.SIGKILL
    assert path.read_text() == "old"
    write_atomically(path, "newer")
    assert path.read_text() == "newer"
    assert list(tmp_path.iterdir()) == [path], "what the killed one left is still there"


def test_four_that_write_one_file_at_once_leave_one_of_theirs_whole(tmp_path):
    path = tmp_path / "metrics.json"
    code = (
        "import sys; from pathlib import Path; from bnft.whole_files import write_atomically\n"
        "for i in range(50): write_atomically(Path(sys.argv[1]), sys.argv[2] * (1000 + i))"
    )
    writers = [python(code, path, letter) for letter in "abcd"]
    assert [writer.wait(120) for writer in writers] == [0] * 4
    assert len(set(path.read_text())) == 1
    assert len(path.read_text()) == 1049
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_in_the_middle_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_json(path, {"ক": 1})

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"ক": 2})
    assert read_json(path) == {"ক": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_number_that_is_none_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe"])
def test_a_missing_or_damaged_json_file(tmp_path, content):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*run\.json"):
        read_json(path)


# Names


@pytest.mark.parametrize(
    "name", ["a", "laptop-2026-11-21T231700Z", "r_16", "প্রথম রান", "ক্ষুদ্র_পরীক্ষা-২", "v1.2+x", "ড়" * 30]
)
def test_a_good_name_makes_a_folder(tmp_path, name):
    run = RunDirectory.create(tmp_path / "out" / "puts", name)
    assert run.folder == tmp_path / "out" / "puts" / name
    assert list(run.folder.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../x", "a/b", "a\\b", "/etc", "latest", " a", "-rf", ".hidden"),
        *("a\nb", "a\0b", "a:b", "a*", "x" * 101, "ক" * 90),
    ],
)
def test_a_bad_name_makes_nothing(tmp_path, name):
    with pytest.raises(UserError, match="cannot be a folder name"):
        RunDirectory.create(tmp_path / "outputs", name)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_is_refused_and_left_alone(tmp_path):
    RunDirectory.create(tmp_path, "a").path("metrics.json").write_text("mine")
    with pytest.raises(UserError, match="exists already") as caught:
        RunDirectory.create(tmp_path, "a")
    assert f"--resume {tmp_path / 'a'}" in caught.value.hint
    assert (tmp_path / "a" / "metrics.json").read_text() == "mine"


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_an_output_folder_that_is_a_file(tmp_path, inside):
    file = tmp_path / "outputs"
    file.write_text("mine")
    with pytest.raises(UserError, match="cannot write to"):  # once: "the run exists already"
        RunDirectory.create(file / inside, "a")
    assert file.read_text() == "mine"


@pytest.mark.parametrize("named", ["two", ""], ids=["beside it", "in it"])
def test_a_folder_that_is_no_run_names_those_nearby(tmp_path, named):
    RunDirectory.create(tmp_path, "one").path("config.yaml").write_text("")
    with pytest.raises(UserError, match=r"no config\.yaml in it") as caught:
        RunDirectory.open(tmp_path / named)
    assert str(tmp_path / "one") in caught.value.hint
    assert RunDirectory.open(tmp_path / "one").folder == tmp_path / "one"


def test_latest_names_the_newest_and_opens_as_its_own_folder(tmp_path):
    for name in ("a", "b"):
        run = RunDirectory.create(tmp_path, name)
        run.path("config.yaml").write_text("")
        run.mark_latest()
    assert RunDirectory.open(tmp_path / "latest").folder == (tmp_path / "b").resolve()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b", "latest"]


def test_a_folder_of_the_users_called_latest_is_left_alone(tmp_path):
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "mine").touch()
    RunDirectory.create(tmp_path, "a").mark_latest()
    assert (tmp_path / "latest" / "mine").exists()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "latest"]


@pytest.mark.parametrize("kept", ["", "checkpoints", "lora_model", "metrics.json"])
def test_only_a_run_without_results_is_discarded(tmp_path, kept):
    run = RunDirectory.create(tmp_path, "a")
    run.path("config.yaml").write_text("")
    run.path("splits", "train.jsonl").write_text("")
    if kept:
        run.path(kept).mkdir()
    run.discard_if_empty()
    assert run.folder.exists() == bool(kept)


# Splits


def test_splits_come_back_as_they_were(tmp_path, conversations):
    odd = conversations[0].__class__(
        "0" * 12,
        'মন, "একা"',
        ({"role": "user", "content": "ক\u2028খ\u0085গ\x0bঘ\r\n"}, {"role": "assistant", "content": "🙂\\n"}),
        "0" * 12,
        (3, 4),
    )
    splits = {"train": conversations[:6], "validation": [], "test": [*conversations[6:], odd]}
    run = RunDirectory.create(tmp_path, "a")
    run.write_splits(splits)
    assert run.read_splits() == splits
    assert tuple(splits) == SPLITS


@pytest.mark.parametrize("line", ["{", "[1]", "7", "{}", '{"id": "x"}', None])
def test_a_damaged_or_missing_split_file(tmp_path, conversations, line):
    run = RunDirectory.create(tmp_path, "a")
    run.write_splits(dict.fromkeys(SPLITS, conversations))
    run.path("splits", "manifest.json").unlink()  # a run of an earlier version has none
    path = run.path("splits", "validation.jsonl")
    if line is None:
        path.unlink()
    else:
        path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"validation\.jsonl is missing or damaged"):
        run.read_splits()


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "gone", "another's"])
def test_a_split_file_that_is_not_as_it_was_written_is_named(tmp_path, conversations, damage):
    run = RunDirectory.create(tmp_path, "a")
    run.write_splits({"train": conversations[2:], "validation": conversations[:1], "test": conversations[1:2]})
    path = run.path("splits", "test.jsonl")
    whole = path.read_bytes()
    other = run.path("splits", "validation.jsonl").read_bytes()
    flipped = whole.replace("আজ".encode(), "আঝ".encode(), 1)  # still a conversation, still its id
    contents = {"flipped": flipped, "cut": whole[: len(whole) // 2], "emptied": b"", "another's": other}
    if damage == "gone":
        path.unlink()
    else:
        assert contents[damage] != whole
        path.write_bytes(contents[damage])
    with pytest.raises(UserError, match=r"is not as it was written: .*test\.jsonl"):
        run.read_splits()


# Two at once, and what a kill leaves


def test_of_two_processes_one_works_in_a_run(tmp_path):
    run = RunDirectory.create(tmp_path, "a")
    code = (
        "import sys; from bnft.records import RunDirectory; from pathlib import Path\n"
        "with RunDirectory(Path(sys.argv[1])).held():\n    print('held', flush=True); sys.stdin.read()"
    )
    other = python(code, run.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline().strip() == b"held"
    with pytest.raises(UserError, match="another process is at work"), run.held():
        pass
    other.kill()
    other.wait(60)
    with run.held():  # the lock has died with its process
        pass
    assert list(run.folder.iterdir()) == []


def test_runs_that_start_in_the_same_second_get_names_of_their_own(tmp_path):
    code = (
        "import sys; from bnft.records import RunDirectory\n"
        "print(RunDirectory.create(sys.argv[1], 'smoke-2026', numbered=True).folder.name)"
    )
    started = [python(code, tmp_path, stdout=subprocess.PIPE) for _ in range(4)]
    names = sorted(process.communicate(timeout=120)[0].decode().strip() for process in started)
    assert names == ["smoke-2026", "smoke-2026-2", "smoke-2026-3", "smoke-2026-4"]


@pytest.mark.parametrize(
    ("left", "taken"),
    [
        ([], True),
        (["run.json", ".config.yaml.part"], True),
        (["config.yaml", "run.json"], False),
        (["notes.txt"], False),  # somebody's own folder
    ],
)
def test_a_folder_of_a_run_that_was_killed_at_its_very_start_is_taken_again(tmp_path, left, taken):
    (tmp_path / "a").mkdir()
    for name in left:
        (tmp_path / "a" / name).touch()
    if taken:
        assert RunDirectory.create(tmp_path, "a").folder == tmp_path / "a"
    else:
        with pytest.raises(UserError, match="exists already"):
            RunDirectory.create(tmp_path, "a")


# The log of experiments


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_four_processes_at_once_lose_nothing(tmp_path):
    code = (
        "import sys; from pathlib import Path; from bnft.records import append_experiment\n"
        "for i in range(10):\n"
        "    append_experiment(Path(sys.argv[1]), {'run': f'{sys.argv[2]}-{i}', f'own_{sys.argv[2]}': i})"
    )
    processes = [python(code, tmp_path, number) for number in range(4)]
    assert [process.wait(120) for process in processes] == [0] * 4
    rows = rows_of(tmp_path / EXPERIMENTS)
    assert sorted(row["run"] for row in rows) == sorted(f"{n}-{i}" for n in range(4) for i in range(10))
    assert set(rows[0]) == {"run", "own_0", "own_1", "own_2", "own_3"}
    for row in rows:
        number, i = row["run"].split("-")
        assert row[f"own_{number}"] == i
        assert [value for name, value in row.items() if name.startswith("own_") and value] == [i]


def test_new_columns_join_and_missing_ones_stay_empty(tmp_path):
    append_experiment(tmp_path, {"run": "এক", "loss": 1.5})
    append_experiment(tmp_path, {"run": 'দুই, "২"', "bleu": 3})
    assert rows_of(tmp_path / EXPERIMENTS) == [
        {"run": "এক", "loss": "1.5", "bleu": ""},
        {"run": 'দুই, "২"', "loss": "", "bleu": "3"},
    ]


def test_a_log_that_excel_saved_keeps_its_first_column(tmp_path):
    (tmp_path / EXPERIMENTS).write_bytes("\ufeffrun,loss\r\nএক,1.5\r\n".encode())
    append_experiment(tmp_path, {"run": "দুই", "loss": 2})
    assert rows_of(tmp_path / EXPERIMENTS) == [{"run": "এক", "loss": "1.5"}, {"run": "দুই", "loss": "2"}]


# Secrets


def test_nothing_secret_and_no_name_of_host_or_user_is_recorded(monkeypatch):
    secrets = {
        name: f"{name.lower()}-5ecr3t" for name in ("HF_TOKEN", "WANDB_API_KEY", "HUGGING_FACE_HUB_TOKEN", "USER")
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    recorded = environment()
    text = json.dumps(recorded)
    for value in (*secrets.values(), getpass.getuser(), os.path.expanduser("~"), platform.node()):
        assert value not in text
    assert set(recorded) == {"python", "system", "cpu_cores", "versions", "git_commit"}
    assert recorded["versions"]["torch"]


def test_a_run_that_is_measured_again_has_one_line(tmp_path):
    row = {"run": "এক", "started": "2026-01-01T00:00:00+00:00"}
    append_experiment(tmp_path, row | {"loss": 1})
    append_experiment(tmp_path, {"run": "এক", "started": "2027-01-01T00:00:00+00:00"})  # another of that name
    append_experiment(tmp_path, row | {"loss": 2})
    told = [(line["started"][:4], line["loss"]) for line in rows_of(tmp_path / EXPERIMENTS)]
    assert told == [("2027", ""), ("2026", "2")]


def test_a_log_that_is_no_table_is_put_aside(tmp_path, capsys):
    damage = b"run\n\xff\n"
    (tmp_path / EXPERIMENTS).write_bytes(damage)
    append_experiment(tmp_path, {"run": "এক"})
    assert (tmp_path / f"{EXPERIMENTS}.damaged").read_bytes() == damage
    assert "cannot be read" in capsys.readouterr().out
    assert rows_of(tmp_path / EXPERIMENTS) == [{"run": "এক"}]
