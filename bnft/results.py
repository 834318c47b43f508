"""What a run measured: metrics.json, GeneratedResponses.csv, plots, the experiment's line and what is printed.

metrics.json is written last and says which adapter and which replies it is of; whoever tells its numbers on reads them
here, where what does not belong together is refused.
Knows nothing about models or decoding; it is handed scores and replies.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnft.csv_files import CsvReader, csv_text
from bnft.errors import UserError
from bnft.metrics import Comparison
from bnft.records import RESPONSES, RunDirectory, append_experiment, now, peak_memory, read_json
from bnft.settings import RunConfig
from bnft.whole_files import file_sha256, locked, write_atomically, write_json

if TYPE_CHECKING:
    from rich.table import Table

METRICS = "metrics.json"
JUDGE = "judge"
ADAPTER = Path("lora_model", "adapter_model.safetensors")
# Columns of GeneratedResponses.csv that people, judges and cards go by.
TOLD = ("id", "question", "reference", "base_reply", "tuned_reply", "base_finish_reason", "tuned_finish_reason")
SHOWN = ("bits_per_byte", "token_perplexity", "char_perplexity", "ended_rate", "cut_off_rate", "bengali_script_rate")
SHOWN += ("replacement_char_rate", "repeated_4grams", "distinct1", "distinct2", "reply_words", "length_ratio")
SHOWN += ("chrf++", "chrf", "bleu", "bleu_13a", "rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class Outcome:
    """Base against tuned.

    Attributes:
        test: the conversations of the test split.
        rows: its exchanges that were replied to; each has an id, a question and a reference.
        base, tuned: each has scores by name, and replies in the order of the rows.
    """

    test: Sequence[Any]
    rows: Sequence[Any]
    base: Any
    tuned: Any
    comparisons: Mapping[str, Comparison]


def write_results(directory: RunDirectory, config: RunConfig, record: dict[str, Any], outcome: Outcome) -> None:
    """All files of the outcome; `record`, which becomes run.json, gets the time and the memory."""
    metrics, responses, folder = _metrics(config, outcome), _responses(outcome), directory.folder
    metrics |= {"adapter": _adapter_of(folder), "replies": replies_fingerprint(responses)}
    record |= {"finished": now(), "peak_memory_gib": max(peak_memory(), record.get("peak_memory_gib", 0.0))}
    with changing_metrics(folder):
        write_atomically(directory.path(RESPONSES), csv_text(responses, list(responses[0])))
        write_json(directory.path("run.json"), record)
        _draw(directory, config, record, metrics)
        write_json(directory.path(METRICS), metrics | _judgement_of_these(folder, metrics))
    append_experiment(directory.folder.parent, _experiment(directory.folder.name, config, record, metrics))
    directory.mark_latest()


def changing_metrics(folder: Path) -> AbstractContextManager:
    """Held from reading metrics.json until it is written anew, so that nobody takes back what another wrote."""
    return locked(folder / "splits")  # the run's own folder is held by whoever trains or measures


def _judgement_of_these(folder: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a judge has said before, where the replies are those that it read."""
    try:
        before = read_json(folder / METRICS)
    except UserError:
        return {}
    if JUDGE in before and before.get("replies") != metrics["replies"]:
        print("the replies have changed: what a judge said of the earlier ones is no longer told")
        return {}
    return {JUDGE: before[JUDGE]} if JUDGE in before else {}


def print_results(folder: Path, outcome: Outcome, seed: int) -> None:
    print_table(outcome.comparisons)
    print_samples(outcome, seed)
    print(f"\nrun: {folder}")
    if len(outcome.rows) < sum(len(conversation.messages) // 2 for conversation in outcome.test):
        print(f"next, replies to every test row:\n  python train.py --eval-only {folder} --eval-samples all")


def read_metrics(folder: Path) -> dict[str, Any]:
    """metrics.json of a run.

    Raises:
        UserError: it is not there, or measured on another test split or adapter than the run's own.
    """
    if not (folder / METRICS).is_file():
        raise UserError(
            f"the run {folder} has no {METRICS}, so there is no number to tell",
            f"Measure it first: python train.py --eval-only {folder}",
        )
    metrics = read_json(folder / METRICS)
    test = metrics.get("test")
    for name in ("rows", "rows_generated", "fingerprint"):
        if not isinstance(test, dict) or name not in test:
            raise UserError(f"{folder / METRICS} lacks {name!r} of the test split", _again(folder))
    of_metrics, of_split = test["fingerprint"], fingerprint(RunDirectory(folder).read_splits()["test"])
    if of_metrics != of_split:
        raise UserError(
            f"{folder / METRICS} was measured on another test split ({str(of_metrics)[:12]}) than the one in "
            f"{folder / 'splits'} ({of_split[:12]})",
            _again(folder),
        )
    if metrics.get("adapter") and _adapter_of(folder) not in (None, metrics["adapter"]):
        raise UserError(
            f"{folder / METRICS} was measured with other weights than those in {folder / ADAPTER.parent}",
            _again(folder),
        )
    return metrics


def read_responses(folder: Path) -> list[dict[str, str]]:
    """The rows of GeneratedResponses.csv, each of the test split, none twice, as many as the metrics were made of.

    Raises:
        UserError: it is not so.
    """
    metrics, path = read_metrics(folder), folder / RESPONSES
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel puts a mark in front
            rows = list(CsvReader(file))
        found = Counter(row["id"] for row in rows)
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}", _again(folder)) from error
    test = RunDirectory(folder).read_splits()["test"]
    own = {f"{c.id}-{turn + 1}" for c in test for turn in range(len(c.messages) // 2)}
    expected = metrics["test"]["rows_generated"]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])})"
        for what, names in (
            ("ids are there more than once", [name for name, count in found.items() if count > 1]),
            ("ids are none of the test split's", [str(name) for name in found if name not in own]),
            ("rows are torn", [str(row["id"]) for row in rows if None in row.values() or None in row]),
        )
        if names
    ]
    if len(rows) != expected:
        problems.append(f"{len(rows)} rows, where the metrics were made of {expected}")
    if not problems and metrics.get("replies", replies_fingerprint(rows)) != replies_fingerprint(rows):
        problems.append("a reply has changed since")
    if problems:
        raise UserError(f"{path} cannot be what the metrics were made of: {'; '.join(problems)}", _again(folder))
    return rows


def _again(folder: Path) -> str:
    return f"Measure the run again: python train.py --eval-only {folder}"


def fingerprint(conversations: Sequence) -> str:
    """Hash of what a split holds, so that numbers from different splits are never set side by side unseen."""
    return hashlib.sha256("\n".join(c.id for c in conversations).encode()).hexdigest()


def replies_fingerprint(rows: Sequence[Mapping[str, Any]]) -> str:
    """Hash of the replies and of what they answer; a spreadsheet that saved the table anew leaves it as it is."""
    return hashlib.sha256(json.dumps([[row.get(name) for name in TOLD] for row in rows]).encode()).hexdigest()


def _adapter_of(folder: Path) -> str | None:
    """Checksum of a run's adapter; None where somebody has taken it away."""
    return file_sha256(folder / ADAPTER) if (folder / ADAPTER).is_file() else None


def _metrics(config: RunConfig, outcome: Outcome) -> dict[str, Any]:
    return {
        "test": {
            "rows": sum(len(conversation.messages) // 2 for conversation in outcome.test),
            "rows_generated": len(outcome.rows),
            "fingerprint": fingerprint(outcome.test),
        },
        "decoding": {
            "method": "greedy",
            "max_new_tokens": config.generation.max_new_tokens,
            "repetition_penalty": config.generation.repetition_penalty,
        },
        "base": {name: score.to_dict() for name, score in outcome.base.scores.items()},
        "tuned": {name: score.to_dict() for name, score in outcome.tuned.scores.items()},
        "comparison": {name: comparison.to_dict() for name, comparison in outcome.comparisons.items()},
    }


def _responses(outcome: Outcome) -> list[dict[str, Any]]:
    return [
        {
            "id": row.id,
            "question": row.question,
            "reference": row.reference,
            "base_reply": b.text,
            "tuned_reply": t.text,
            "base_tokens": b.tokens,
            "tuned_tokens": t.tokens,
            "base_seconds": round(b.seconds, 3),
            "tuned_seconds": round(t.seconds, 3),
            "base_finish_reason": b.finish_reason,
            "tuned_finish_reason": t.finish_reason,
        }
        for row, b, t in zip(outcome.rows, outcome.base.replies, outcome.tuned.replies, strict=True)
    ]


def _draw(directory: RunDirectory, config: RunConfig, record: dict, metrics: dict) -> None:
    from bnft import plots

    training = record.get("training")
    if training and training["history"]:
        plots.plot_loss(training["history"], directory.path("plots", "loss.png"))
        plots.plot_learning_rate(training["history"], directory.path("plots", "learning_rate.png"))
        lengths = {
            name: [int(length) for length, count in counts.items() for _ in range(count)]
            for name, counts in training["token_lengths"].items()
        }
        plots.plot_token_lengths(lengths, config.model.max_seq_length, directory.path("plots", "token_lengths.png"))
    drawn = [name for name in SHOWN if name in plots.METRICS]
    both = {name: {"base": metrics["base"][name], "tuned": metrics["tuned"][name]} for name in drawn}
    plots.plot_comparison(both, directory.path("plots", "base_against_tuned.png"))


def _experiment(name: str, config: RunConfig, record: dict, metrics: dict) -> dict[str, Any]:
    training = record.get("training", {})
    row = {
        "run": name,
        "started": record["started"],
        "finished": record["finished"],
        "recipe": record["recipe"],
        "model": config.model.name,
        "load_in_4bit": config.model.load_in_4bit,
        "dtype": record.get("dtype"),
        "strategy": record.get("strategy"),
        "data_fingerprint": record.get("data", {}).get("fingerprint", "")[:16],
        "test_fingerprint": metrics["test"]["fingerprint"][:16],
        "seed": config.seed,
        "steps": training.get("steps"),
        "rows_a_step": config.train.batch_size * config.train.accumulation,
        "learning_rate": config.train.learning_rate,
        "lora_r": config.lora.r,
        "lora_alpha": config.lora.alpha,
        "best_step": training.get("best_step"),
        "best_eval_loss": training.get("best_eval_loss"),
        "training_seconds": training.get("seconds"),
        "evaluation_seconds": record["seconds"].get("evaluation"),
        "peak_memory_gib": record["peak_memory_gib"],
        "git_commit": record.get("git_commit"),
    }
    for system in ("base", "tuned"):
        row |= {f"{system}_{name}": round(score["value"], 5) for name, score in metrics[system].items()}
    return row


def print_table(
    comparisons: Mapping[str, Comparison],
    title: str = "base against tuned, same held-out rows, same decoding",
    names: Sequence[str] = SHOWN,
) -> None:
    from rich.table import Table

    table = Table(title=title)
    for heading in ("metric", "base", "tuned", "difference [95 %]", "p"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name in names:
        c = comparisons[name]
        interval = "" if c.low is None else f" [{c.low:+.3g}, {c.high:+.3g}]"
        p = "" if c.p is None else f"{c.p:.3f}"
        table.add_row(name, f"{c.base:.4g}", f"{c.tuned:.4g}", f"{c.difference:+.4g}{interval}", p)
    print_wide(table)


def print_wide(table: Table) -> None:
    """Prints it without wrapping its cells where nobody watches: a log file or a pipe has no width of its own."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)


def print_samples(outcome: Outcome, seed: int, count: int = 3) -> None:
    """Unpicked samples: drawn by the seed."""
    rows, base, tuned = outcome.rows, outcome.base.replies, outcome.tuned.replies
    for i in sorted(random.Random(seed).sample(range(len(rows)), min(count, len(rows)))):
        print(f"\n  person: {rows[i].question}\n  base:   {base[i].text}\n  tuned:  {tuned[i].text}")
