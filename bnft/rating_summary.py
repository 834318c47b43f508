"""What raters said, in numbers: means, preferences, agreement; recorded in metrics.json as `human`, without a name.

The first time that a rater sees a pair counts for means, preferences and agreement; the repeats are for
self-agreement. Knows nothing about pages.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bnft.errors import UserError
from bnft.metrics import Measure, ratio
from bnft.rating_form import QUESTIONS
from bnft.rating_items import PAIRS, of_these, read_items
from bnft.rating_store import SYSTEMS, RatingStore, Row, key_of
from bnft.results import METRICS, changing_metrics, print_wide, read_metrics
from bnft.whole_files import write_json

HUMAN = "human"
CUT = "replies that met the length limit were shown up to their last whole sentence or word"
TEST = (
    "two-sided exact sign test over items; an item goes to the system that more of its raters preferred, ties are out"
)
AGREEMENT = (
    "Krippendorff's alpha (nltk), interval for scales, nominal for the preference; units with two raters or more"
)


def record_summary(folder: Path, bootstrap: int, seed: int) -> dict[str, Any]:
    """Summarises ratings.csv into metrics.json.

    Raises:
        UserError: there are no ratings of this run's replies.
    """
    with changing_metrics(folder):
        metrics, ratings = read_metrics(folder), RatingStore(folder).read()
        current = of_these(ratings, read_items(folder))
        if not current:
            others = f" ({len(ratings)} are of replies that the run had before)" if ratings else ""
            raise UserError(
                f"nobody has rated the replies of {folder}{others}",
                f"Let people rate them: python -m bnft.rate {folder}",
            )
        summary = summarise(current, bootstrap, seed) | {"ratings_of_earlier_replies": len(ratings) - len(current)}
        write_json(folder / METRICS, metrics | {HUMAN: summary})
    return summary


def summarise(ratings: Sequence[Row], bootstrap: int, seed: int) -> dict[str, Any]:
    """All numbers about ratings of one set of replies."""
    first = [row for row in ratings if row["repeat"] == "0"]
    raters = {row["rater"]: row for row in ratings}
    return {
        "raters": len(raters),
        "native_speakers": sum(row["native"] == "yes" for row in raters.values()),
        "items": len({row["item"] for row in ratings}),
        "ratings": len(first),
        "repeats": len(ratings) - len(first),
        "scores": {
            system: {q.key: _mean(first, system, q.key, bootstrap, seed) for q in QUESTIONS} for system in SYSTEMS
        },
        "preferences": [_preference(first, pair) for pair in PAIRS],
        "agreement": {name: _agreement(first, name) for name in (*(q.key for q in QUESTIONS), "preference")},
        "self_agreement": _self_agreement(ratings),
        "shown": CUT,
        "preference_test": TEST,
        "agreement_measure": AGREEMENT,
    }


def _values(ratings: Sequence[Row], name: str):
    """(rating, system, value) of every reply on every screen."""
    for row in ratings:
        for side in ("a", "b"):
            yield row, row[f"system_{side}"], int(row[f"{name}_{side}"])


def _mean(ratings: Sequence[Row], system: str, name: str, bootstrap: int, seed: int) -> dict[str, Any] | None:
    """The mean over ratings, resampled by item, since ratings of one item are alike; None without a rating."""
    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
    for row, of, value in _values(ratings, name):
        if of == system:
            sums[row["item"]] += (value, 1)
    if not sums:
        return None
    scale = next(f"{q.low}-{q.high}" for q in QUESTIONS if q.key == name)
    rows = np.array([sums[item] for item in sorted(sums)])
    return Measure(name, rows, ratio, f"{name}|mean over ratings|by item", scale, True).score(bootstrap, seed).to_dict()


def _winner(row: Row) -> str:
    return {"A": row["system_a"], "B": row["system_b"], "tie": "tie"}[row["preference"]]


def _preference(ratings: Sequence[Row], pair: tuple[str, str]) -> dict[str, Any]:
    from scipy.stats import binomtest

    first, second = pair
    winners = [(row["item"], _winner(row)) for row in ratings if {row["system_a"], row["system_b"]} == set(pair)]
    balance: dict[str, int] = defaultdict(int)
    for item, winner in winners:
        balance[item] += (winner == first) - (winner == second)
    for_first, for_second = sum(b > 0 for b in balance.values()), sum(b < 0 for b in balance.values())
    decided = for_first + for_second
    return {
        "first": first,
        "second": second,
        "first_preferred": sum(winner == first for _, winner in winners),
        "second_preferred": sum(winner == second for _, winner in winners),
        "ties": sum(winner == "tie" for _, winner in winners),
        "items_for_first": for_first,
        "items_for_second": for_second,
        "p": float(binomtest(for_first, decided).pvalue) if decided else None,
    }


def _agreement(ratings: Sequence[Row], name: str) -> dict[str, Any]:
    from nltk.metrics.distance import binary_distance, interval_distance

    if name == "preference":
        data = [(row["rater"], key_of(row)[1:], _winner(row)) for row in ratings]
        return krippendorff_alpha(data, binary_distance)
    data = [(row["rater"], (*key_of(row)[1:], system), value) for row, system, value in _values(ratings, name)]
    return krippendorff_alpha(data, interval_distance)


def krippendorff_alpha(data: Sequence[tuple], distance: Callable) -> dict[str, Any]:
    """Alpha of (rater, unit, value) triples, and the number of units that two raters or more have in common.

    It is None where it is not defined: nothing in common, or one value throughout.
    """
    from nltk.metrics.agreement import AnnotationTask

    raters: dict[Any, int] = defaultdict(int)
    for _, unit, _ in data:
        raters[unit] += 1
    shared = [triple for triple in data if raters[triple[1]] > 1]
    defined = len({value for _, _, value in shared}) > 1
    return {
        "alpha": float(AnnotationTask(shared, distance).alpha()) if defined else None,
        "units": sum(count > 1 for count in raters.values()),
    }


def _self_agreement(ratings: Sequence[Row]) -> dict[str, Any]:
    """How often a rater said the same about the same pair the second time: shares of the repeated pairs."""
    seen: dict[tuple, dict[str, Row]] = defaultdict(dict)
    for row in ratings:
        rater, item, repeat, *texts = key_of(row)
        seen[rater, item, *texts][repeat] = row
    pairs = [(views["0"], views["1"]) for views in seen.values() if len(views) == 2]
    told: dict[str, Any] = {"pairs": len(pairs)}
    if not pairs:
        return told
    told["preference"] = float(np.mean([_winner(a) == _winner(b) for a, b in pairs]))
    for question in QUESTIONS:
        apart = [abs(_of(a, question.key, s) - _of(b, question.key, s)) for a, b in pairs for s in _systems(a)]
        told[question.key] = {"same": float(np.mean(np.equal(apart, 0))), "mean_difference": float(np.mean(apart))}
    return told


def _systems(row: Row) -> tuple[str, str]:
    return row["system_a"], row["system_b"]


def _of(row: Row, name: str, system: str) -> int:
    return int(row[f"{name}_{'a' if row['system_a'] == system else 'b'}"])


def table_of(summary: dict[str, Any]) -> list[dict[str, str]]:
    """The lines of the table of means and agreement, ready to be read."""
    again = summary["self_agreement"]
    lines = []
    for question in QUESTIONS:
        line = {"name": f"{question.english} {question.low}-{question.high}"}
        line |= {system: _with_interval(summary["scores"][system][question.key]) for system in SYSTEMS}
        line["alpha"] = _number(summary["agreement"][question.key]["alpha"])
        line["again"] = f"{again[question.key]['same']:.0%}" if again["pairs"] else "-"
        lines.append(line)
    last = {"name": "Preference", **dict.fromkeys(SYSTEMS, "")}
    last["alpha"] = _number(summary["agreement"]["preference"]["alpha"])
    last["again"] = f"{again['preference']:.0%}" if again["pairs"] else "-"
    return [*lines, last]


def preferences_of(summary: dict[str, Any]) -> list[str]:
    """The preferences as sentences."""
    return [
        f"{told['first']} preferred to {told['second']} {told['first_preferred']} times, {told['second']} to "
        f"{told['first']} {told['second_preferred']} times, {told['ties']} ties; items {told['items_for_first']} to "
        f"{told['items_for_second']}, p = {_number(told['p'])}"
        for told in summary["preferences"]
    ]


def print_summary(summary: dict[str, Any]) -> None:
    from rich.table import Table

    raters = f"{summary['raters']} raters ({summary['native_speakers']} native speakers)"
    print(f"{summary['ratings']} pairs rated by {raters}, {summary['items']} items, {summary['repeats']} pairs twice")
    if passed := summary["ratings_of_earlier_replies"]:
        print(f"passed over: {passed} ratings of replies that the run had before")
    table = Table(title="means [95 %, bootstrap over items]")
    for heading in ("", *SYSTEMS, "alpha", "same again"):
        table.add_column(heading, justify="right" if heading else "left")
    for line in table_of(summary):
        table.add_row(*line.values())
    print_wide(table)
    print("\n".join(preferences_of(summary)))


def _with_interval(score: dict[str, Any] | None) -> str:
    if score is None:
        return "-"
    interval = "" if score["low"] is None else f" [{score['low']:.2f}, {score['high']:.2f}]"
    return f"{score['value']:.2f}{interval}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
