"""The run directory: what a run was, saw, did and measured, written so that nothing is ever half there.

Every file goes to a temporary name beside its place and is renamed. Never holds a token or another secret. Knows
nothing about models; it is handed plain values.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any

import regex
from filelock import FileLock

from bnft.config import REPOSITORY, path_of
from bnft.csv_files import CsvReader, csv_text
from bnft.errors import UserError, is_full_disk
from bnft.manifest import refuse_damaged, seal
from bnft.whole_files import UNFINISHED, locked, write_atomically

LIBRARIES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "evaluate",
    "sacrebleu",
    "rouge_score",
    "unsloth",
)
EXPERIMENTS = "LLAMAExperiments.csv"
RESPONSES = "GeneratedResponses.csv"
SETTINGS = "config.yaml"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a run.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it holds no values by name")
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}", "Give the folder of a finished run of train.py.") from error


class RunDirectory:
    """One run's folder, `<output_dir>/<name>`.

    Args:
        folder: must exist; `create` makes a new one.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def create(cls, output_dir: str | Path, name: str, numbered: bool = False) -> RunDirectory:
        """A new, empty run folder; with `numbered`, one of the next free name.

        Raises:
            UserError: the name is no plain folder name, or a run of that name exists.
        """
        # regex's \w holds Bengali vowel signs, re's does not; file systems allow 255 bytes
        if not regex.fullmatch(r"\w[\w .+-]{0,99}", name) or len(name.encode()) > 200 or name == "latest":
            raise UserError(
                f"--run-name {name!r} cannot be a folder name",
                "Use up to 100 letters (66 Bengali ones), digits, '.', '_', '+', '-' and spaces, and not 'latest'.",
            )
        output_dir = path_of(output_dir)
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            for number in count(1):
                folder = output_dir / (name if number == 1 else f"{name}-{number}")
                if _new_folder(folder) or (not numbered and _is_unused(folder)):
                    return cls(folder)
                if not numbered:
                    break
        except OSError as error:
            if is_full_disk(error):
                raise
            raise UserError(f"cannot write to {output_dir}: {error}", "Choose another --output-dir.") from error
        raise UserError(
            f"the run {folder} exists already",
            f"Choose another --run-name, or go on with it: python train.py --resume {folder}",
        )

    @classmethod
    def open(cls, folder: str | Path) -> RunDirectory:
        """An existing run folder.

        Raises:
            UserError: it is none.
        """
        path = path_of(folder)
        if not (path / SETTINGS).is_file():
            runs = [*path.glob(f"*/{SETTINGS}")] or [*path.parent.glob(f"*/{SETTINGS}")]
            found = f" Runs there: {', '.join(map(str, sorted(p.parent for p in runs)[:6]))}." if runs else ""
            raise UserError(f"{folder} is no run folder: no config.yaml in it.", f"Give the folder of a run.{found}")
        return cls(path.resolve())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps every other process from training or measuring this run. A killed process leaves no lock behind.

        Raises:
            UserError: another one is at work.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.folder, wait=False))
            except BlockingIOError as error:
                told = f"another process is at work in the run {self.folder}"
                raise UserError(told, "Wait until it has ended.") from error
            yield

    def path(self, *parts: str) -> Path:
        target = self.folder.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def discard_if_empty(self) -> None:
        """Takes the folder away again when nothing of value was written: no checkpoint and no result."""
        if not any((self.folder / name).exists() for name in ("checkpoints", "lora_model", "metrics.json")):
            shutil.rmtree(self.folder)

    def mark_latest(self) -> None:
        """Points `latest` beside the run at it; file systems without symbolic links go without."""
        link = self.folder.parent / "latest"
        scratch = link.with_name(f".{link.name}{UNFINISHED}")
        try:
            scratch.unlink(missing_ok=True)
            scratch.symlink_to(self.folder.name, target_is_directory=True)
            os.replace(scratch, link)
        except OSError:
            scratch.unlink(missing_ok=True)

    def write_splits(self, splits: Mapping[str, Sequence]) -> None:
        """One JSON line a conversation: id, topics, group, rows, messages."""
        for name, conversations in splits.items():
            lines = (
                json.dumps(
                    {"id": c.id, "topics": c.topics, "group": c.group, "rows": c.rows, "messages": c.messages},
                    ensure_ascii=False,
                )
                for c in conversations
            )
            write_atomically(self.path("splits", f"{name}.jsonl"), "".join(f"{line}\n" for line in lines))
        seal(self.folder / "splits", {})

    def read_splits(self) -> dict[str, list]:
        """What `write_splits` wrote, as conversations.

        Raises:
            UserError: a file is missing, or not as it was written.
        """
        from bnft.data import SPLITS, Conversation

        refuse_damaged(self.folder / "splits")
        splits = {}
        for name in SPLITS:
            path = self.folder / "splits" / f"{name}.jsonl"
            try:
                rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
                splits[name] = [
                    Conversation(r["id"], r["topics"], tuple(r["messages"]), r["group"], tuple(r["rows"])) for r in rows
                ]
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(
                    f"the run's split file {path} is missing or damaged: {error}",
                    "Put a copy of it back; without it the run can be neither resumed nor measured.",
                ) from error
        return splits


def _new_folder(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def _is_unused(folder: Path) -> bool:
    """Whether it is of a run that was killed before it had written its settings."""
    begun = {"run.json", *(f".{name}{UNFINISHED}" for name in ("run.json", SETTINGS))}
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= begun


def append_experiment(output_dir: Path, row: Mapping[str, Any]) -> None:
    """Adds a run's line to LLAMAExperiments.csv, or renews it. Runs that end together wait for one another.

    Columns that an older file does not have yet are added to it; its lines are empty there.
    """
    path = output_dir / EXPERIMENTS
    with FileLock(str(output_dir / f".{EXPERIMENTS}.lock")):
        columns, before = _read_experiments(path)
        kept = [line for line in before if not _of_same_run(line, row)]
        columns += [name for name in row if name not in columns]
        write_atomically(path, csv_text([*kept, row], columns))


def _read_experiments(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and lines; a file that is no table any more is put aside, since a finished run must not fail of it."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:  # Excel puts a mark in front
            reader = CsvReader(handle)
            lines = [{name: line[name] for name in reader.fieldnames or ()} for line in reader]
            return list(reader.fieldnames or ()), lines
    except FileNotFoundError:
        return [], []
    except (ValueError, csv.Error) as error:
        aside = path.with_name(f"{path.name}.damaged")
        print(f"{path} cannot be read ({error}): it is now {aside.name}, and a new one begins")
        path.replace(aside)
        return [], []


def _of_same_run(line: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    return all(name in row and line.get(name) == str(row[name]) for name in ("run", "started"))


def environment() -> dict[str, Any]:
    """Versions, machine and code state of this run; names of hosts and users stay out."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_cores": cpu_cores(),
        "versions": versions,
        "git_commit": git_commit(),
    }


def cpu_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory() -> float:
    """Largest memory so far in GiB: of the GPUs where there are any, else of this process."""
    import resource

    import torch

    if torch.cuda.is_available():
        return round(max(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())) / 2**30, 2)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def git_commit() -> str | None:
    """The commit of this program, with "-dirty" when files differ from it; None outside a clone."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
