"""Pictures of several runs together: losses, learning rates, and base against tuned run by run.

Pictures of one run are in bnft/plots.py, whose look they share. Knows nothing about files of runs: plain lists and
dicts come in, one PNG goes out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnft.plots import (
    BETTER,
    BLUE,
    GREEN,
    INK,
    METRICS,
    ORANGE,
    RED,
    SYSTEMS,
    amount,
    curve_of,
    draw_curve,
    is_number,
    save,
    short_rate,
    step_axes,
    styled_figure,
)
from bnft.text import grapheme_clusters

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"  # the rest of Okabe and Ito's, told apart with every eye
LOOKS = [(colour, line) for line in ("-", "--", ":") for colour in (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK)]
LONGEST_NAME = 34


def plot_losses(histories: Mapping[str, Sequence[dict]], path: str | Path) -> Path | None:
    """Training and validation loss of all runs, side by side on one scale; None where no run logged a loss."""
    return _plot_curves(
        histories,
        {"loss": "প্রশিক্ষণের লস (training loss)", "eval_loss": "যাচাইয়ের লস (validation loss)"},
        "লস (loss)",
        path,
    )


def plot_learning_rates(histories: Mapping[str, Sequence[dict]], path: str | Path) -> Path | None:
    """The learning rate of all runs; None where no run logged one."""
    return _plot_curves(histories, {"learning_rate": "শেখার হার (learning rate)"}, "শেখার হার (learning rate)", path)


def plot_runs(runs: Mapping[str, Mapping[str, Mapping[str, Any]]], names: Sequence[str], path: str | Path) -> Path:
    """Base and tuned of every run as points with 95 % intervals, one small picture a metric.

    Args:
        runs: by run, then metric, then system: `Score.to_dict()`; a run may lack a metric.
        names: the metrics, in order.
    """
    columns = 2
    rows = math.ceil(len(names) / columns)
    with styled_figure(11, 1.7 + rows * (0.95 + 0.42 * len(runs))) as figure:
        _plain_names()
        figure.suptitle("সব রানের তুলনা (all runs, base against tuned)", x=0.01, ha="left", weight="bold", size=15)
        figure.supxlabel("দাগ: ৯৫ % আস্থা-ব্যবধান (95 % interval)", size=10, color="#555555", x=0.01, ha="left")
        figure.get_layout_engine().set(h_pad=0.08, w_pad=0.08)
        for place, name in enumerate(names):
            axes = figure.add_subplot(rows, columns, place + 1)
            _draw_metric(axes, name, runs, labels=place % columns == 0)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper right", ncols=2, frameon=False)
        return save(figure, path)


def _draw_metric(axes: Axes, name: str, runs: Mapping, labels: bool) -> None:
    """A line a run: grey for base, blue for tuned, the value beside its point."""
    found = [scores[name] for scores in runs.values() if name in scores]
    better = BETTER[found[0]["tuned"].get("higher_is_better")] if found else ""
    axes.set_title(f"{METRICS.get(name, name)} ({name})", size=11, pad=19)
    axes.annotate(better, (0, 1), (0, 5), "axes fraction", textcoords="offset points", size=9, color="#666666")
    for y, scores in enumerate(runs.values()):
        for system, (label, colour) in SYSTEMS.items():
            if name in scores:
                _draw_point(axes, y + (0.17 if system == "tuned" else -0.17), scores[name][system], label, colour)
    axes.set_ylim(len(runs) - 0.5, -0.5)
    axes.set_yticks(range(len(runs)), [_short_name(run) for run in runs] if labels else [""] * len(runs))
    axes.tick_params(axis="y", length=0, labelsize=10)
    axes.tick_params(axis="x", labelsize=9)
    axes.margins(x=0.16)
    axes.grid(axis="x")
    axes.grid(False, axis="y")
    if found and found[0]["tuned"].get("unit") == "share":
        axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")


def _draw_point(axes: Axes, y: float, score: Mapping[str, Any], label: str, colour: str) -> None:
    interval = [end for end in (score.get("low"), score.get("high")) if is_number(end)]
    axes.plot(interval, [y] * len(interval), color=INK, lw=1.3, marker="|", ms=6, mew=1.3)
    first = label not in axes.get_legend_handles_labels()[1]
    axes.plot(score["value"], y, "o", color=colour, ms=8, mec=INK, mew=0.6, label=label if first else None, zorder=3)
    end = max([score["value"], *interval])
    told = amount(score["value"], score.get("unit"))
    axes.annotate(told, (end, y), (9, 0), textcoords="offset points", va="center", size=9)


def _plot_curves(
    histories: Mapping[str, Sequence[dict]], keys: Mapping[str, str], label: str, path: str | Path
) -> Path | None:
    """One panel a key, one line a run; runs keep their look from panel to panel and picture to picture."""
    curves = {key: {run: curve_of(history, key) for run, history in histories.items()} for key in keys}
    drawn = [key for key in keys if any(curves[key].values())]
    if not drawn:
        return None
    legend_rows = math.ceil(len(histories) / 2)
    with styled_figure(11, 4.4 + 0.26 * legend_rows) as figure:
        _plain_names()
        for panel, part in zip(drawn, figure.subfigures(1, len(drawn), squeeze=False)[0], strict=True):
            axes = step_axes(part, keys[panel], label)
            for points, look in zip(curves[panel].values(), cycle(LOOKS), strict=False):
                if points:
                    draw_curve(axes, points, color=look[0], ls=look[1])
            if panel == "learning_rate":
                axes.yaxis.set_major_formatter(lambda rate, _: short_rate(rate))
                axes.set_ylim(bottom=0)
        _name_runs(figure, histories)
        return save(figure, path)


def _name_runs(figure: Figure, runs: Mapping) -> None:
    """One legend below all panels."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=colour, ls=line, lw=2) for (colour, line), _ in zip(cycle(LOOKS), runs, strict=False)]
    figure.legend(lines, [_short_name(run) for run in runs], loc="outside lower left", ncols=2, frameon=False)


def _plain_names() -> None:
    """A dollar sign in a folder's name is no formula."""
    import matplotlib

    matplotlib.rcParams["text.parse_math"] = False


def _short_name(run: str) -> str:
    """A run's name with its middle left out where it is long, the time at its end kept."""
    letters = grapheme_clusters(run)
    if len(letters) > LONGEST_NAME:
        letters = [*letters[:15], "…", *letters[-18:]]
    return " " + "".join(letters) if run.startswith("_") else "".join(letters)  # matplotlib hides names with "_"
