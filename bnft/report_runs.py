"""The runs of a report: found, read, and checked; what cannot be trusted is left out with a word.

Every record is taken for what anybody may have written: it has the form below or its run is passed over. Knows nothing
about pages or pictures.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from bnft.config import resolve
from bnft.csv_files import CsvReader
from bnft.errors import UserError
from bnft.records import EXPERIMENTS, read_json
from bnft.results import METRICS, read_metrics, read_responses
from bnft.settings import RunConfig


class Part(BaseModel):
    """A piece of a record; what newer programs add to it is no error."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, protected_namespaces=())


class Value(Part):
    """As `bnft.metrics.Score` is written."""

    value: float
    signature: str
    n: int
    unit: str
    low: float | None = None
    high: float | None = None
    higher_is_better: bool | None = None


class Difference(Part):
    """As `bnft.metrics.Comparison` is written."""

    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    improved: bool | None = None


class Test(Part):
    rows: int
    rows_generated: int
    fingerprint: str


class Decoding(Part):
    method: str
    max_new_tokens: int
    repetition_penalty: float


class Metrics(Part):
    test: Test
    decoding: Decoding
    base: dict[str, Value]
    tuned: dict[str, Value]
    comparison: dict[str, Difference]
    human: dict[str, Any] | None = None
    judge: dict[str, Any] | None = None

    @property
    def names(self) -> list[str]:
        """The metrics of which all is there."""
        return [name for name in self.tuned if name in self.base and name in self.comparison]


class Logged(Part):
    """One line of the trainer's log; a loss that is no number is a finding, not damage."""

    model_config = ConfigDict(allow_inf_nan=True)

    step: int
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None


class Training(Part):
    steps: int
    seconds: float
    best_step: int | None = None
    best_eval_loss: float | None = None
    stopped_by: str = ""
    history: list[Logged] = []
    token_lengths: dict[str, dict[PositiveInt, NonNegativeInt]] = {}

    def log(self) -> list[dict[str, Any]]:
        """The trainer's log as plots take it."""
        return [line.model_dump(exclude_none=True) for line in self.history]


class Data(Part):
    fingerprint: str


class Record(Part):
    """run.json; a run that was ended early lacks its later parts."""

    recipe: str
    started: str
    finished: str | None = None
    seconds: dict[str, float] = {}
    dtype: str | None = None
    strategy: str | None = None
    gpus: list[str] = []
    cpu_cores: int | None = None
    versions: dict[str, str] = {}
    git_commit: str | None = None
    peak_memory_gib: float | None = None
    parameters: dict[str, int] = {}
    data: Data | None = None
    training: Training | None = None


class Report(Part):
    """data_report.json."""

    source: str
    sha256: str
    rows_read: int
    rows_kept: int
    conversations: int
    talks: int | None = None
    repaired: dict[str, int] = {}
    dropped: dict[str, int] = {}
    duplicates: dict[str, int] = {}
    groups: int | None = None
    splits: dict[str, dict[str, int]] = {}


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        metrics: None where there is none to trust, and `problems` says why.
        responses: rows of GeneratedResponses.csv, empty where they are not what was measured.
    """

    folder: Path
    config: RunConfig
    record: Record
    data: Report | None
    metrics: Metrics | None
    responses: Sequence[Mapping[str, str]]
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.folder.name


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Attributes:
        runs: oldest first.
        lines: lines of LLAMAExperiments.csv whose run folder is gone.
        left_out: what could not be read, in sentences.
    """

    runs: list[Run]
    lines: list[dict[str, str]]
    left_out: list[str]


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.yaml", "run.json", METRICS))


def read_runs(folder: Path) -> Found:
    """The run in a folder, or all runs in the folders below it.

    Raises:
        UserError: there is no run, or none that can be read.
    """
    if is_run(folder):
        return Found([read_run(folder)], [], [])
    try:
        below = sorted(child for child in folder.iterdir() if child.is_dir() and not child.is_symlink())
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}", "Give the folder of your runs.") from error
    runs, left_out = [], []
    for child in filter(is_run, below):
        try:
            runs.append(read_run(child))
        except UserError as error:
            left_out.append(f"{child.name} is left out: {plain(error, child)}")
    lines, problems = read_experiments(folder / EXPERIMENTS, {child.name for child in below})
    left_out += problems
    if not runs and not lines:
        if left_out:
            raise UserError("; ".join(left_out), "Give the folder of a run of train.py, or of several.")
        raise UserError(
            f"there is no run in {folder}", "Give the folder of your runs, or of one: python -m bnft.report outputs"
        )
    return Found(sorted(runs, key=lambda run: (run.record.started, run.name)), lines, left_out)


def read_run(folder: Path) -> Run:
    """One run, its numbers only where they are of its own test split.

    Raises:
        UserError: its settings or run.json are missing or damaged.
    """
    config, _ = resolve(str(folder / "config.yaml"), {})
    record = _read(folder / "run.json", Record)
    problems: list[str] = []

    def attempt(read, *arguments):
        try:
            return read(*arguments)
        except UserError as error:
            problems.append(plain(error, folder))

    data = attempt(_read, folder / "data_report.json", Report)
    metrics, responses = None, None
    if (folder / METRICS).is_file():
        metrics = attempt(_read, folder / METRICS, Metrics)
        if metrics and not attempt(read_metrics, folder):
            metrics = None
    else:
        problems.append(f"not measured yet: python train.py --eval-only {_short(folder)}")
    if metrics:
        responses = attempt(read_responses, folder)
    return Run(folder, config, record, data, metrics, responses or (), tuple(problems))


def read_experiments(path: Path, folders: set[str]) -> tuple[list[dict[str, str]], list[str]]:
    """The newest line of every run that has no folder any more, and what was wrong with the file."""
    if not path.exists():
        return [], []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel puts a mark in front
            lines = list(CsvReader(file))
    except (OSError, ValueError, csv.Error) as error:
        return [], [f"{path.name} cannot be read: {error}"]
    problems = []
    by_run: dict[str, dict[str, str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.get("run") or None in line or None in line.values():
            problems.append(f"line {number} of {path.name} is passed over: it is torn or names no run")
        else:
            by_run[line["run"]] = line
    return [line for name, line in by_run.items() if name not in folders], problems


def number(text: str | None) -> float | None:
    """A number of LLAMAExperiments.csv; None for an empty field and for what a spreadsheet made of it."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def plain(error: UserError, folder: Path) -> str:
    """An error in one line, without where the run lies on somebody's disk."""
    told = f"{error.message.rstrip('.')}. {error.hint}"
    return " ".join(told.replace(f"{folder}/", "").replace(str(folder), _short(folder)).split())


def _short(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _read(path: Path, form: type[Part]) -> Any:
    try:
        return form.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise UserError(f"{path} is damaged: {where}: {first['msg']} ({error.error_count()} such problems)") from error
