"""The page of a report: its runs' tables, plots, samples and data in a single file that asks nobody.

Reads records through bnft/report_runs.py, never a model. Runs that were judged on different test splits are kept apart.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bnft import plots
from bnft.config import path_of
from bnft.errors import ENVIRONMENT, UserError
from bnft.records import now
from bnft.report_figures import plot_learning_rates, plot_losses, plot_runs
from bnft.report_runs import Found, Run, read_runs
from bnft.report_tables import (
    HEADLINES,
    Group,
    data_of,
    groups_of,
    metrics_of,
    notes_of,
    opinions_of,
    samples_of,
    table_of,
)
from bnft.results import SHOWN
from bnft.run_facts import duration, public
from bnft.whole_files import write_atomically

ASSETS = Path(__file__).parent / "assets"
FOLDER, PAGE = "report", "report.html"
FONT_FILES = {"400": "HindSiliguri-Regular.woff2", "700": "HindSiliguri-Bold.woff2"}


def write_report(folder: Path, progress: Callable[[str, int, int], None] | None = None) -> tuple[Path, list[str]]:
    """Writes the page and its pictures; returns the page's path and what it had to leave out or could not trust.

    Raises:
        UserError: there is no run to tell of, or the report cannot be written.
    """
    folder = path_of(folder).resolve()
    found = read_runs(folder)
    target = folder / FOLDER
    try:
        target.mkdir(exist_ok=True)
        page = render(_context(folder, found, Album(target), progress or (lambda *done: None)))
        # A text may hold half of a surrogate pair, which no encoding takes.
        write_atomically(target / PAGE, page.encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(
            f"cannot write to {target}: {error.strerror or error}", "Make room, or move the runs.", ENVIRONMENT
        ) from error
    problems = [f"{run.name}: {problem}" for run in found.runs for problem in run.problems]
    return target / PAGE, [*found.left_out, *problems]


class Album:
    """Pictures as files of a folder, and as what a page without any file beside it can show."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, place: str, draw: Callable[..., Path | None], *what: Any) -> str | None:
        path = draw(*what, self.folder / place)
        return path and f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def render(context: dict[str, Any]) -> str:
    """The page. Texts of people and models are escaped, and even markup that got through could load nothing."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(ASSETS, encoding="utf-8"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    fonts = {
        weight: base64.b64encode((plots.FONTS / name).read_bytes()).decode() for weight, name in FONT_FILES.items()
    }
    style = (ASSETS / "report.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(context, fonts=fonts, style=style)


def _context(folder: Path, found: Found, album: Album, progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    groups = groups_of(found.runs, found.lines)
    runs = []
    for done, run in enumerate(found.runs):
        progress("pictures", done, len(found.runs))
        runs.append(_run(run, album))
    progress("pictures", len(found.runs), len(found.runs))
    return {
        "title": folder.name,
        "made": now()[:16].replace("T", " "),
        "groups": [_group(group, album) for group in groups],
        "judged": sum(bool(group.test) for group in groups),
        "headlines": HEADLINES,
        "together": _together(found.runs, album),
        "runs": runs,
        "data": data_of(found.runs),
        "left_out": found.left_out,
    }


def _together(runs: Sequence[Run], album: Album) -> dict[str, str | None]:
    """Pictures of all runs' training; of a single run they would be its own once more."""
    logs = {run.name: run.record.training.log() for run in runs if run.record.training and run.record.training.history}
    if len(logs) < 2:
        return {}
    return {
        "loss": album.add("loss.png", plot_losses, logs),
        "learning rate": album.add("learning_rate.png", plot_learning_rates, logs),
    }


def _group(group: Group, album: Album) -> dict[str, Any]:
    measured = [run for run in group.runs if run.metrics]
    seed = measured[-1].config.seed if measured else None
    figure = None
    if len(measured) > 1:
        scores = {run.name: _pairs(run) for run in measured}
        names = [name for name in HEADLINES if any(name in pairs for pairs in scores.values())]
        figure = album.add(f"test_{group.test}.png", plot_runs, scores, names) if names else None
    return {
        "test": group.test,
        "rows": measured[0].metrics.test.rows if measured else None,
        "lines": table_of(group),
        "notes": notes_of(group),
        "figure": figure,
        "seed": seed,
        "samples": samples_of(group, seed),
    }


def _pairs(run: Run) -> dict[str, dict[str, dict]]:
    metrics = run.metrics
    return {
        name: {"base": metrics.base[name].model_dump(), "tuned": metrics.tuned[name].model_dump()}
        for name in metrics.names
    }


def _run(run: Run, album: Album) -> dict[str, Any]:
    human, judge, damaged = opinions_of(run) if run.metrics else (None, None, [])
    training = run.record.training
    return {
        "name": run.name,
        "problems": [*run.problems, *damaged],
        "facts": _facts(run),
        "metrics": metrics_of(run) if run.metrics else [],
        "test": run.metrics and run.metrics.test,
        "decoding": run.metrics and run.metrics.decoding,
        "human": human,
        "judge": judge,
        "stopped_by": training.stopped_by if training else "",
        "pictures": _pictures(run, album),
    }


def _pictures(run: Run, album: Album) -> dict[str, str]:
    """The run's own pictures, drawn from its records."""
    found, training, place = {}, run.record.training, f"runs/{run.name}"
    pairs = _pairs(run) if run.metrics else {}
    drawn = {name: pair for name, pair in pairs.items() if name in SHOWN and name in plots.METRICS}
    if drawn:
        found["base against tuned"] = album.add(f"{place}/base_against_tuned.png", plots.plot_comparison, drawn)
    log = training.log() if training else []
    if plots.curve_of(log, "loss") or plots.curve_of(log, "eval_loss"):
        found["loss"] = album.add(f"{place}/loss.png", plots.plot_loss, log)
    if plots.curve_of(log, "learning_rate"):
        found["learning rate"] = album.add(f"{place}/learning_rate.png", plots.plot_learning_rate, log)
    counted = training.token_lengths if training else {}
    lengths = {
        split: [length for length, count in counts.items() for _ in range(count)] for split, counts in counted.items()
    }
    if any(lengths.values()):
        limit = run.config.model.max_seq_length
        found["token lengths"] = album.add(f"{place}/token_lengths.png", plots.plot_token_lengths, lengths, limit)
    return found


def _facts(run: Run) -> dict[str, str]:
    """What it was, in short."""
    config, record = run.config, run.record
    training, train = record.training, config.train
    batch = f"{train.batch_size * train.accumulation} conversations a step"
    facts = {
        "model": public(config.model.name) + (" in 4 bit" if config.model.load_in_4bit else ""),
        "recipe": record.recipe,
        "back end": ", ".join(filter(None, (record.strategy, record.dtype))),
        "LoRA": f"r {config.lora.r}, alpha {config.lora.alpha}",
        "learning rate": f"{train.learning_rate:g} {train.scheduler}, {batch}",
        "seed": str(config.seed),
        "machine": f"{', '.join(record.gpus) or 'no GPU'}, {record.cpu_cores or '?'} CPU cores",
        "started": record.started,
    }
    if training:
        facts["training"] = f"{training.steps} steps in {duration(training.seconds)}"
    if training and training.best_step is not None and training.best_eval_loss is not None:
        facts["best step"] = f"{training.best_step}, validation loss {training.best_eval_loss:.4f}"
    if record.parameters.get("trained") and record.parameters.get("all"):
        facts["trained"] = f"{record.parameters['trained']:,} of {record.parameters['all']:,} parameters"
    if record.git_commit:
        facts["program"] = record.git_commit[:12] + ("-dirty" if record.git_commit.endswith("-dirty") else "")
    facts["libraries"] = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return facts
