"""The run directory: what a run was, saw, did and measured, written so that nothing is ever half there.

Every file goes to a temporary name beside its place and is renamed. Never holds a token or another secret. Knows
nothing about models; it is handed plain values.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import regex
from filelock import FileLock

from bnft.config import REPOSITORY
from bnft.errors import UserError

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


def write_atomically(path: Path, data: str | bytes) -> None:
    """Writes a whole file or none: to a temporary name in the same folder, flushed, then renamed."""
    if isinstance(data, str):
        data = data.encode("utf-8")
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """A JSON file of a run.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}", "Give the folder of a finished run of train.py.") from error


class RunDirectory:
    """One run's folder, `<output_dir>/<name>`.

    Args:
        folder: must exist; `create` makes a new one.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def create(cls, output_dir: str | Path, name: str) -> RunDirectory:
        """A new, empty run folder.

        Raises:
            UserError: the name is no plain folder name, or a run of that name exists.
        """
        # regex's \w holds Bengali vowel signs, re's does not; file systems allow 255 bytes
        if not regex.fullmatch(r"\w[\w .+-]{0,99}", name) or len(name.encode()) > 200 or name == "latest":
            raise UserError(
                f"--run-name {name!r} cannot be a folder name",
                "Use up to 100 letters (66 Bengali ones), digits, '.', '_', '+', '-' and spaces, and not 'latest'.",
            )
        folder = Path(output_dir).expanduser() / name
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            if folder.exists():
                raise UserError(
                    f"the run {folder} exists already",
                    f"Choose another --run-name, or go on with it: python train.py --resume {folder}",
                ) from error
            raise UserError(f"cannot write to {folder.parent}: {error}", "Choose another --output-dir.") from error
        return cls(folder)

    @classmethod
    def open(cls, folder: str | Path) -> RunDirectory:
        """An existing run folder.

        Raises:
            UserError: it is none.
        """
        path = Path(folder).expanduser()
        if not (path / "config.yaml").is_file():
            found = sorted(p.parent.name for p in path.parent.glob("*/config.yaml")) if path.parent.is_dir() else []
            beside = f" Runs beside it: {', '.join(found[:6])}." if found else ""
            raise UserError(f"{folder} is no run folder: no config.yaml in it.", f"Give the folder of a run.{beside}")
        return cls(path.resolve())

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
        scratch = self.folder.parent / f".latest-{os.getpid()}"
        try:
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

    def read_splits(self) -> dict[str, list]:
        """What `write_splits` wrote, as conversations."""
        from bnft.data import SPLITS, Conversation

        splits = {}
        for name in SPLITS:
            path = self.folder / "splits" / f"{name}.jsonl"
            try:
                rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
                splits[name] = [
                    Conversation(r["id"], r["topics"], tuple(r["messages"]), r["group"], tuple(r["rows"])) for r in rows
                ]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(f"the run's split file {path} is missing or damaged: {error}") from error
        return splits


def csv_text(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], header: bool = True) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def append_experiment(output_dir: Path, row: Mapping[str, Any]) -> None:
    """Adds one line to LLAMAExperiments.csv. Runs that end together wait for one another.

    Columns that an older file does not have yet are added to it; its lines are empty there.
    """
    path = output_dir / EXPERIMENTS
    with FileLock(str(output_dir / f".{EXPERIMENTS}.lock")):
        before: list[dict] = []
        columns = list(row)
        if path.exists():
            with path.open(encoding="utf-8-sig", newline="") as handle:  # Excel puts a mark in front
                reader = csv.DictReader(handle)
                before = list(reader)
                columns = [*(reader.fieldnames or []), *(name for name in row if name not in (reader.fieldnames or []))]
        write_atomically(path, csv_text([*before, row], columns))


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
