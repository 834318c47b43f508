"""What a report says about runs: groups that may be compared, their tables, samples, and the notes that they need.

Turns records into plain strings, numbers and lists. Knows nothing about HTML, files or pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from bnft.plots import amount
from bnft.report_runs import Decoding, Report, Run, number
from bnft.run_facts import MAIN, duration, human_facts, judge_facts, public

HEADLINES = {
    "bits_per_byte": "bits/byte",
    "ended_rate": "ended by itself",
    "bengali_script_rate": "Bengali script",
    "chrf++": "chrF++",
    "bleu": "BLEU (intl)",
    "rougeL": "ROUGE-L",
}
UNITS = {"bits_per_byte": "bits/byte", "ended_rate": "share", "bengali_script_rate": "share"}
SAMPLES = 10


@dataclass(frozen=True)
class Group:
    """Runs that were judged on one test split; `test` is "" for runs that were not judged.

    Attributes:
        test: the first 16 digits of the split's fingerprint, as LLAMAExperiments.csv has them.
        lines: lines of LLAMAExperiments.csv whose run folder is gone.
    """

    test: str
    runs: list[Run]
    lines: list[dict[str, str]]

    @property
    def size(self) -> int:
        return len(self.runs) + len(self.lines)


def groups_of(runs: Sequence[Run], lines: Sequence[Mapping[str, str]]) -> list[Group]:
    """Runs by the test split that they were judged on, the largest group first, the ones not judged last."""
    by_test: dict[str, Group] = {}
    for run in runs:
        test = run.metrics.test.fingerprint[:16] if run.metrics else ""
        by_test.setdefault(test, Group(test, [], [])).runs.append(run)
    for line in lines:
        test = line.get("test_fingerprint", "")
        by_test.setdefault(test, Group(test, [], [])).lines.append(dict(line))
    return sorted(by_test.values(), key=lambda group: (not group.test, -group.size))


def table_of(group: Group) -> list[dict[str, Any]]:
    """One line a run: what it was, and base and tuned for the metrics of the headline."""
    return [_line_of_run(run) for run in group.runs] + [_line_of_experiment(line) for line in group.lines]


def _line_of_run(run: Run) -> dict[str, Any]:
    training, metrics = run.record.training, run.metrics
    values = {}
    for name in HEADLINES:
        if metrics and name in metrics.names:
            values[name] = {
                "base": amount(metrics.base[name].value, metrics.base[name].unit),
                "tuned": amount(metrics.tuned[name].value, metrics.tuned[name].unit),
                "verdict": verdict(run, name),
            }
    memory, evaluation = run.record.peak_memory_gib, run.record.seconds.get("evaluation")
    return {
        "run": run.name,
        "recipe": run.record.recipe,
        "model": public(run.config.model.name) + (" in 4 bit" if run.config.model.load_in_4bit else ""),
        "started": run.record.started[:16].replace("T", " "),
        "data": run.record.data.fingerprint[:8] if run.record.data else "",
        "steps": str(training.steps) if training else "",
        "time": duration(training.seconds) if training else "",
        "evaluation": duration(evaluation) if evaluation is not None else "",
        "memory": f"{memory:.2f}" if memory is not None else "",
        "values": values,
        "gone": False,
    }


def _line_of_experiment(line: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for name in HEADLINES:
        base, tuned = number(line.get(f"base_{name}")), number(line.get(f"tuned_{name}"))
        if base is not None and tuned is not None:
            unit = UNITS.get(name)
            values[name] = {"base": amount(base, unit), "tuned": amount(tuned, unit), "verdict": ""}
    seconds, evaluation = number(line.get("training_seconds")), number(line.get("evaluation_seconds"))
    return {
        "run": line["run"],
        "recipe": line.get("recipe", ""),
        "model": public(line.get("model", "")) + (" in 4 bit" if line.get("load_in_4bit") == "True" else ""),
        "started": line.get("started", "")[:16].replace("T", " "),
        "data": line.get("data_fingerprint", "")[:8],
        "steps": line.get("steps", ""),
        "time": duration(seconds) if seconds is not None else "",
        "evaluation": duration(evaluation) if evaluation is not None else "",
        "memory": line.get("peak_memory_gib", ""),
        "values": values,
        "gone": True,
    }


def verdict(run: Run, name: str) -> str:
    """Whether tuned is better than base; "unclear" unless interval and p agree, "" where no way is the better one."""
    compared = run.metrics.comparison[name]
    if None in (compared.low, compared.high, compared.p, run.metrics.tuned[name].higher_is_better):
        return ""
    if compared.low <= 0 <= compared.high or compared.p >= 0.05:
        return "unclear"
    return "better" if compared.improved else "worse"


def notes_of(group: Group) -> list[str]:
    """Why some numbers of a group's runs must not be set side by side."""
    notes = []
    measured = [run for run in group.runs if run.metrics]
    decodings: dict[Decoding, list[str]] = {}
    for run in measured:
        decodings.setdefault(run.metrics.decoding, []).append(run.name)
    if len(decodings) > 1:
        told = "; ".join(
            f"{', '.join(names)}: {d.method}, at most {d.max_new_tokens} tokens, repetition penalty "
            f"{d.repetition_penalty:g}"
            for d, names in decodings.items()
        )
        notes.append(
            f"Replies were decoded in {len(decodings)} ways ({told}): what is counted on replies is not like for like."
        )
    counts = {run.metrics.test.rows_generated for run in measured}
    rows = {frozenset(row["id"] for row in run.responses) for run in measured if run.responses}
    if max(len(counts), len(rows)) > 1:
        told = ", ".join(f"{run.name} {run.metrics.test.rows_generated}" for run in measured)
        notes.append(
            f"Replies were made to different rows of the split ({told}): between these runs compare only bits/byte, "
            "which all rows are counted for."
        )
    ways = [name for name in HEADLINES if len({_way(run, name) for run in measured if name in run.metrics.names}) > 1]
    if ways:
        notes.append(f"Computed in more than one way: {', '.join(HEADLINES[name] for name in ways)}.")
    if group.lines:
        notes.append(
            "Where the run folder is gone, LLAMAExperiments.csv gives the values, without intervals or replies; how "
            "many rows were replied to is not known."
        )
    return notes


def _way(run: Run, name: str) -> str:
    """A metric's signature without the bootstrap's part, which makes intervals and no values."""
    parts = run.metrics.tuned[name].signature.split("|")
    return "|".join(part for part in parts if not part.startswith(("bs:", "seed:")))


def metrics_of(run: Run) -> list[dict[str, Any]]:
    """Base against tuned, a line a metric."""
    lines = []
    for name in (name for name in MAIN if name in run.metrics.names):
        base, tuned, compared = run.metrics.base[name], run.metrics.tuned[name], run.metrics.comparison[name]
        lines.append(
            {
                "label": MAIN[name],
                "n": tuned.n,
                "base": amount(base.value, base.unit),
                "base_interval": _interval(base.low, base.high, base.unit),
                "tuned": amount(tuned.value, tuned.unit),
                "tuned_interval": _interval(tuned.low, tuned.high, tuned.unit),
                "difference": _points(amount(compared.difference, tuned.unit, "+")),
                "difference_interval": _points(_interval(compared.low, compared.high, tuned.unit, "+")),
                "p": "" if compared.p is None else f"{compared.p:.3f}",
                "verdict": verdict(run, name),
                "signature": tuned.signature,
            }
        )
    return lines


def _points(difference: str) -> str:
    """The difference of two shares is in percentage points."""
    return difference.replace(" %", " pp")


def _interval(low: float | None, high: float | None, unit: str, sign: str = "") -> str:
    return "" if low is None or high is None else f"[{amount(low, unit, sign)}, {amount(high, unit, sign)}]"


def opinions_of(run: Run) -> tuple[dict | None, dict | None, list[str]]:
    """What people said and what a language model said of a run's replies, and what of it is damaged."""
    problems: list[str] = []

    def attempt(what: str, read, told):
        try:
            return read(told) if told else None
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            problems.append(f"{what} in metrics.json is damaged: {type(error).__name__} {error}")

    human = attempt("the summary of people's ratings", human_facts, run.metrics.human)
    judge = attempt("the judge's summary", judge_facts, run.metrics.judge)
    if judge:
        judge |= {"what": str(run.metrics.judge["what"])}  # as it was written, no Markdown
    return human, judge, problems


def samples_of(group: Group, seed: int) -> list[dict[str, Any]]:
    """Questions drawn by the seed, with every run's reply to each; ones that more runs replied to come before others.

    Runs of one base often say the same when untuned: equal replies stand there once, with all their names.
    """
    replies: dict[str, list[tuple[str, Mapping[str, str]]]] = {}
    for run in group.runs:
        for row in run.responses:
            replies.setdefault(row["id"], []).append((run.name, row))
    drawn = sorted(replies)
    Random(seed).shuffle(drawn)
    drawn.sort(key=lambda name: -len(replies[name]))
    several = len(group.runs) > 1
    return [_sample(name, replies[name], several) for name in drawn[:SAMPLES]]


def _sample(name: str, rows: Sequence[tuple[str, Mapping[str, str]]], several: bool) -> dict[str, Any]:
    said: dict[tuple[str, str, bool], list[str]] = {}
    for system in ("base", "tuned"):
        for run, row in rows:
            cut = row.get(f"{system}_finish_reason") == "length"
            said.setdefault((system, row.get(f"{system}_reply", ""), cut), []).append(run)
    first = rows[0][1]
    return {
        "id": name,
        "later_turn": not name.endswith("-1"),
        "question": first.get("question", ""),
        "reference": first.get("reference", ""),
        "replies": [
            {"system": system, "runs": ", ".join(runs) if several else "", "text": text, "cut": cut}
            for (system, text, cut), runs in said.items()
        ],
    }


def data_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The data reports, each with the runs that were trained on just that data and split."""
    found: dict[str, tuple[Report, list[str]]] = {}
    for run in runs:
        if run.data:
            test = run.metrics.test.fingerprint if run.metrics else run.name
            found.setdefault(run.data.model_dump_json() + test, (run.data, []))[1].append(run.name)
    return [
        {"runs": names, "source": public(report.source), "report": report, "kept": _share(report)}
        for report, names in found.values()
    ]


def _share(report: Report) -> str:
    return f"{100 * report.rows_kept / report.rows_read:.1f} %" if report.rows_read else ""
