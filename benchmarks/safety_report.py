"""How well crises are found: on examples nobody looked at while rules were written, and by cross-validation.

    python benchmarks/safety_report.py [--folds 5] [--no-held-out] [--output benchmarks/safety_report.md]

Prints and writes counts and rates only, never a text. The held-out part also tests every release,
so it must stay unread by whoever writes rules or examples; work with --no-held-out, which leaves the file alone.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bnft import safety
from bnft.crisis_classifier import CRISIS, CrisisClassifier, Example, read_examples
from bnft.safety import EXAMPLES, CrisisDetector, Risk

RAISED = (Risk.SELF, Risk.OTHER)
NEIGHBOURS = 12  # rows of the corpus that stay in one fold: they share a theme, often a talk
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
    verdicts = [detector.judge(example.text) for example in examples]
    raised = [verdict.risk in RAISED for verdict in verdicts]
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


def places_in_corpus() -> dict[str, int]:
    with (safety.DATA / "corpus.csv").open(encoding="utf-8", newline="") as file:
        return {row["Questions"].strip(): i for i, row in enumerate(csv.DictReader(file))}


def folds_of(examples: list[Example], corpus: dict[str, int], folds: int):
    """Rows to fit on and rows to test on; neighbouring rows of the corpus are never on both sides."""
    from sklearn.model_selection import StratifiedGroupKFold

    kinds = [f"{example.label} {example.kind}" for example in examples]
    places = [corpus.get(example.text.strip()) for example in examples]
    groups = [-1 - i if place is None else place // NEIGHBOURS for i, place in enumerate(places)]
    return StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(kinds, kinds, groups)


def cross_validated(detector: CrisisDetector, folds: int) -> list[str]:
    """The classifier alone; this is where its threshold comes from."""
    examples, corpus = read_examples(EXAMPLES, "fit"), places_in_corpus()
    crisis = np.zeros(len(examples))
    for fit, test in folds_of(examples, corpus, folds):
        classifier = CrisisClassifier.fitted(detector.features, [examples[i] for i in fit])
        crisis[test] = [scores.crisis for scores in classifier.scores([examples[i].text for i in test])]
    raised = [bool(score >= 0) for score in crisis]
    lines = ["", f"## Fit part ({len(examples)} examples), {folds}-fold cross-validation, classifier alone"]
    lines += table("label", grouped(examples, raised, lambda example: example.label))
    lines += table("kind", grouped(examples, raised, lambda example: f"{example.label} {example.kind}"))
    lines += table("form", grouped(examples, raised, lambda example: example.form))
    risky = np.array([example.label in CRISIS for example in examples])
    ordinary = np.array([example.kind == "companion" for example in examples])
    of_corpus = np.array([example.text.strip() in corpus for example in examples]) & ordinary
    lines += ["", "| threshold moved by | recall | false alarms, hard negatives | false alarms, ordinary talk |"]
    lines += ["| --- | --- | --- | --- |"]
    for move in (-2, -1, 0, 1, 2, 3, 4):
        above = crisis >= move
        parts = (risky, ~risky & ~ordinary, ordinary)
        lines.append(f"| {move:+d} | " + " | ".join(f"{100 * above[part].mean():.1f} %" for part in parts) + " |")
    known = np.array([detector.judge(example.text).risk in RAISED for example in examples])
    lines += ["", "## Ordinary talk", ""]
    lines += [
        "| turns | not fitted on, nor their neighbours in the corpus | as shipped: fitted on |",
        "| --- | --- | --- |",
    ]
    for name, part in (("the bundled corpus outside crisis", of_corpus), ("openers, answers", ordinary & ~of_corpus)):
        counts = (share((above & part).sum(), part.sum()) for above in (crisis >= 0, known))
        lines.append(f"| {name} | " + " | ".join(counts) + " |")
    lines += ["", "False alarms; the first column is what to expect of a theme that the examples do not have."]
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
    texts = [f"{example.text} ." for example in read_examples(EXAMPLES, "fit")[:500]]  # not what was judged before
    started = time.process_time()
    for text in texts:
        detector.judge(text)
    return 1000 * (time.process_time() - started) / len(texts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folds", type=int, default=5, help="0 leaves cross-validation out")
    parser.add_argument("--no-held-out", action="store_true", help="leave the held-out part alone")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    args = parser.parse_args(argv)
    import regex
    import sklearn

    detector = CrisisDetector.from_repository()
    fitting, loading = seconds_to_start()
    lines = [
        "# Crisis detection, measured",
        "",
        f"{datetime.date.today()}; Python {platform.python_version()}, scikit-learn {sklearn.__version__}, "
        f"regex {regex.__version__}, numpy {np.__version__}. Fitted in {fitting:.1f} s of CPU, once; read back at "
        f"later starts in {loading:.2f} s. A message is judged in {milliseconds_a_message(detector):.1f} ms of CPU.",
        "Recall: self and other raised as a crisis. False alarm: soft and none raised as a crisis. Two thirds of the",
        "`none` examples were written to be mistaken for a crisis.",
        *([] if not NOTES.exists() else ["", NOTES.read_text(encoding="utf-8").strip()]),
    ]
    if not args.no_held_out:
        lines += held_out(detector)
    if args.folds:
        lines += cross_validated(detector, args.folds)
    args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
