"""How well crises are found: on examples nobody looked at while rules were written, and by cross-validation.

    python benchmarks/safety_report.py [--no-folds] [--no-held-out] [--output benchmarks/safety_report.md]

Prints and writes counts and rates only, never a text, and keeps the held-out ones in data/safety_figures.json, for the
cards of models. What the reader says of examples it was not fitted on comes from benchmarks/crisis_folds.npz
(`python -m bnft.crisis_training --fold K`, all five in one file). The held-out part also tests every release,
so it must stay unread by whoever writes rules or examples; work with --no-held-out, which leaves the file alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bnft import safety
from bnft.chat_figures import SAFETY_FIGURES, detector_fingerprint
from bnft.crisis_classifier import CRISIS, CrisisClassifier, Example, read_examples
from bnft.crisis_reader import CrisisReader
from bnft.crisis_training import fingerprint, fold_of
from bnft.safety import EXAMPLES, CrisisDetector, Risk

RAISED = (Risk.SELF, Risk.OTHER)
FOLDS = Path(__file__).with_name("crisis_folds.npz")
NOTES = Path(__file__).with_name("safety_notes.md")


def share(part: int, whole: int) -> str:
    return f"{part}/{whole} = {100 * part / whole:.1f} %" if whole else "-"


def table(title: str, groups: dict[str, list[tuple[bool, bool]]]) -> list[str]:
    lines = ["", f"| {title} | recall of crises | false alarms |", "| --- | --- | --- |"]
    for name, pairs in sorted(groups.items()):
        hits = [raised for crisis, raised in pairs if crisis]
        alarms = [raised for crisis, raised in pairs if not crisis]
        lines.append(f"| {name} | {share(sum(hits), len(hits))} | {share(sum(alarms), len(alarms))} |")
    return lines


def grouped(examples: list[Example], raised: list[bool], key) -> dict[str, list[tuple[bool, bool]]]:
    groups: dict[str, list[tuple[bool, bool]]] = {}
    for example, one in zip(examples, raised, strict=True):
        groups.setdefault(key(example), []).append((example.label in CRISIS, one))
    return groups


def held_out(detector: CrisisDetector) -> list[str]:
    examples = read_examples(EXAMPLES, "held_out")
    crises = [example.label in CRISIS for example in examples]
    verdicts = [detector.judge(example.text) for example in examples]
    raised = [verdict.risk in RAISED for verdict in verdicts]
    figures = {
        "examples": len(examples),
        "crises": sum(crises),
        "found": sum(r and c for r, c in zip(raised, crises, strict=True)),
        "alarms": sum(r and not c for r, c in zip(raised, crises, strict=True)),
        "detector": detector_fingerprint(),
    }
    SAFETY_FIGURES.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    confusion = Counter(
        (example.label, verdict.risk.value) for example, verdict in zip(examples, verdicts, strict=True)
    )
    risks = ("self", "other", "soft", "none")
    lines = ["", f"## Held-out part ({len(examples)} examples)"]
    lines += table("all", grouped(examples, raised, lambda _: "held out"))
    lines += table("label", grouped(examples, raised, lambda example: example.label))
    lines += table("kind", grouped(examples, raised, lambda example: f"{example.label} {example.kind}"))
    lines += table("form", grouped(examples, raised, lambda example: example.form))
    lines += ["", "| label, judged as | " + " | ".join(risks) + " |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {label} | " + " | ".join(str(confusion[label, risk]) for risk in risks) + " |" for label in risks]
    layers = Counter(verdict.by for verdict, one in zip(verdicts, raised, strict=True) if one)
    wrong = Counter(v.by for v, e, one in zip(verdicts, examples, raised, strict=True) if one and e.label not in CRISIS)
    lines += ["", f"Raised by layer: {dict(layers)}; of these false alarms: {dict(wrong)}."]
    return lines


def read_by_reader(examples: list[Example]) -> np.ndarray:
    """The reader's log-odds for each example, by an adapter fitted without its fold."""
    kept = np.load(FOLDS, allow_pickle=False)
    if str(kept["examples"]) != fingerprint(examples):
        raise SystemExit(f"{FOLDS} is of other examples; fit all folds again: python -m bnft.crisis_training --fold 0")
    return kept["log_odds"]


def cross_validated(detector: CrisisDetector) -> list[str]:
    """Classifier, and classifier with reader; weights and thresholds come from here."""
    examples = read_examples(EXAMPLES, "fit")
    folds = np.array([fold_of(i) for i in range(len(examples))])
    alone = np.zeros(len(examples))
    for fold in range(folds.max() + 1):
        fit = [examples[i] for i in np.flatnonzero(folds != fold)]
        test = [examples[i].text for i in np.flatnonzero(folds == fold)]
        classifier = CrisisClassifier.fitted(detector.features, fit)
        alone[folds == fold] = [scores.crisis for scores in classifier.scores(test)]
    odds = np.clip(read_by_reader(examples), -safety.READER_MOST, safety.READER_MOST)
    both = alone - safety.READER_FROM + safety.READER_WEIGHT * odds
    lines = ["", f"## Fit part ({len(examples)} examples), {folds.max() + 1}-fold cross-validation, no phrases"]
    for name, crisis in (("classifier and reader", both), ("classifier alone", alone)):
        raised = [bool(score >= 0) for score in crisis]
        lines += ["", f"### With {name}"]
        lines += table("label", grouped(examples, raised, lambda example: example.label))
        lines += table("kind", grouped(examples, raised, lambda example: f"{example.label} {example.kind}"))
        lines += table("form", grouped(examples, raised, lambda example: example.form))
    risky = np.array([example.label in CRISIS for example in examples])
    ordinary = np.array([example.kind == "companion" for example in examples])
    lines += ["", "| threshold moved by | recall | false alarms, hard negatives | false alarms, ordinary talk |"]
    lines += ["| --- | --- | --- | --- |"]
    for move in (-2, -1, 0, 1, 2, 3, 4):
        above = both >= move
        parts = (risky, ~risky & ~ordinary, ordinary)
        lines.append(f"| {move:+d} | " + " | ".join(f"{100 * above[part].mean():.1f} %" for part in parts) + " |")
    return lines


def seconds_to_start() -> tuple[float, float]:
    """CPU seconds to fit from the examples, and to start again from what was kept."""
    features = CrisisDetector.from_repository().features
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        fitted = CrisisClassifier.fitted(features, read_examples(EXAMPLES, "fit"))
        fitting = time.process_time() - started
        fitted.save(Path(folder) / "kept.npz")
        started = time.process_time()
        CrisisClassifier.load(features, Path(folder) / "kept.npz")
        return fitting, time.process_time() - started


def milliseconds_a_message(detector: CrisisDetector) -> float:
    texts = [f"{example.text} ." for example in read_examples(EXAMPLES, "fit")[::60]]  # not what was judged before
    started = time.monotonic()
    for text in texts:
        detector.judge(text)
    return 1000 * (time.monotonic() - started) / len(texts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-folds", action="store_true", help="leave cross-validation out")
    parser.add_argument("--no-held-out", action="store_true", help="leave the held-out part alone")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    args = parser.parse_args(argv)
    import regex
    import sklearn

    started = time.monotonic()
    reader = CrisisReader()
    reader("এক দুই তিন")
    opening = time.monotonic() - started
    detector = CrisisDetector.from_repository(reader)
    fitting, loading = seconds_to_start()
    lines = [
        "# Crisis detection, measured",
        "",
        f"{datetime.date.today()}; Python {platform.python_version()}, scikit-learn {sklearn.__version__}, "
        f"regex {regex.__version__}, numpy {np.__version__}. Fitted in {fitting:.1f} s of CPU, once; read back at "
        f"later starts in {loading:.2f} s; the reader is open after {opening:.1f} s. A message is judged in "
        f"{milliseconds_a_message(detector):.0f} ms (two cores).",
        "Recall: self and other raised as a crisis. False alarm: soft and none raised as a crisis.",
        *([] if not NOTES.exists() else ["", NOTES.read_text(encoding="utf-8").strip()]),
    ]
    if not args.no_held_out:
        lines += held_out(detector)
    if not args.no_folds:
        lines += cross_validated(detector)
    args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
