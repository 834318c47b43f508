"""A run's pictures: loss, learning rate, token lengths, base against tuned; titles and labels in Bengali.

matplotlib 3.11 lays text out with libraqm and HarfBuzz, so conjuncts and vowel signs come out right as long as every
label is set in the bundled font; older releases put the letters down one by one. Knows nothing about models, runs or
how a number was computed: plain lists and dicts come in, one PNG goes out.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnft.whole_files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Hind Siliguri 1.001 by Indian Type Foundry, SIL Open Font License (OFL.txt), as google/fonts has it.
FONTS = Path(__file__).parent / "assets" / "fonts"
FAMILY = "bnft Hind Siliguri"  # a name of our own: a Hind Siliguri that the system has installed is never taken for it
DPI = 120

# Okabe and Ito, "Color Universal Design" (2008): told apart with every common colour blindness.
BLUE, ORANGE, GREEN, RED, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#A6A6A6", "#333333"
STYLE = {
    "font.family": FAMILY,
    "font.size": 11,
    "text.color": INK,
    "text.hinting": "no_hinting",  # hinting moves letters apart by a pixel, which breaks the headline
    "axes.labelcolor": INK,
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 15,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.titlepad": 10,
    "grid.color": "#E4E4E4",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "ytick.alignment": "center",
    "legend.edgecolor": "none",
    "figure.constrained_layout.use": True,
}
SPLITS = {"train": "প্রশিক্ষণ (train)", "validation": "যাচাই (validation)", "test": "পরীক্ষা (test)"}
METRICS = {
    "bits_per_byte": "প্রতি বাইটে বিট",
    "token_perplexity": "টোকেনের পারপ্লেক্সিটি",
    "char_perplexity": "অক্ষরের পারপ্লেক্সিটি",
    "chrf++": "অক্ষর ও শব্দের মিল",
    "chrf": "অক্ষরের মিল",
    "bleu": "শব্দগুচ্ছের মিল",
    "rouge1": "শব্দের মিল",
    "rouge2": "জোড়া শব্দের মিল",
    "rougeL": "শব্দক্রমের মিল",
    "ended_rate": "নিজে থেকে শেষ হওয়া",
    "cut_off_rate": "মাঝপথে কেটে যাওয়া",
    "bengali_script_rate": "বাংলা হরফের অংশ",
    "replacement_char_rate": "ভাঙা অক্ষর",
    "repeated_4grams": "পুনরাবৃত্তি",
    "length_ratio": "দৈর্ঘ্যের অনুপাত",
    "reply_words": "উত্তরে শব্দের সংখ্যা",
    "reply_tokens": "উত্তরে টোকেনের সংখ্যা",
    "reply_chars": "উত্তরে অক্ষরের সংখ্যা",
}
BETTER = {True: "বেশি হলে ভালো", False: "কম হলে ভালো", None: "শুধু তথ্য"}
SYSTEMS = {"base": ("মূল (base)", GREY), "tuned": ("টিউন করা (tuned)", BLUE)}


def plot_loss(history: list[dict], path: str | Path) -> Path:
    """Training and validation loss by step, the step with the lowest validation loss marked.

    Args:
        history: the trainer's log; lines with "step" and "loss", others with "step" and "eval_loss".

    Raises:
        ValueError: no line has a finite value of either.
    """
    curves = (
        (curve_of(history, "loss"), "প্রশিক্ষণের লস (loss)", BLUE, "-"),
        (curve_of(history, "eval_loss"), "যাচাইয়ের লস (eval_loss)", RED, "--"),
    )
    if not any(points for points, *_ in curves):
        raise ValueError(f'no loss to draw: none of {len(history)} history lines has a finite "loss" or "eval_loss"')
    with styled_figure(8, 4.6) as figure:
        axes = step_axes(figure, "প্রশিক্ষণ ও যাচাইয়ের লস (loss)", "লস (loss)")
        for points, label, colour, line in curves:
            if points:
                draw_curve(axes, points, color=colour, ls=line, label=label)
        if evaluated := curves[1][0]:
            step, loss = min(evaluated, key=lambda point: (point[1], point[0]))
            best = f"সবচেয়ে ভালো ধাপ (best step) {step}: {loss:.4g}"
            axes.axvline(step, color=GREEN, lw=1, ls=":")
            axes.plot(step, loss, "*", color=GREEN, ms=15, mec="white", zorder=5, label=best)
        axes.legend()
        return save(figure, path)


def plot_learning_rate(history: list[dict], path: str | Path) -> Path:
    """Learning rate by step, its peak named.

    Args:
        history: the trainer's log; lines with "step" and "learning_rate".

    Raises:
        ValueError: no line has a finite learning rate.
    """
    points = curve_of(history, "learning_rate")
    if not points:
        raise ValueError(f'no learning rate to draw: none of {len(history)} history lines has a finite "learning_rate"')
    with styled_figure(8, 3.8) as figure:
        axes = step_axes(figure, "শেখার হার (learning rate)", "শেখার হার (learning rate)")
        axes.yaxis.set_major_formatter(lambda rate, _: short_rate(rate))
        draw_curve(axes, points, color=BLUE)
        step, peak = max(points, key=lambda point: point[1])
        axes.plot(step, peak, "^", color=ORANGE, ms=9, label=f"সর্বোচ্চ (peak) {short_rate(peak)}, ধাপ (step) {step}")
        axes.set_ylim(bottom=min(0, min(rate for _, rate in points)))
        axes.legend()
        return save(figure, path)


def plot_token_lengths(lengths: Mapping[str, Sequence[int]], limit: int, path: str | Path) -> Path:
    """Each split's share of conversations by length, on a logarithmic axis, and the limit.

    Args:
        lengths: tokens of each conversation, by split.
        limit: max_seq_length.

    Raises:
        ValueError: no split has any length, or a length or the limit is below 1.
    """
    everything = [length for part in lengths.values() for length in part]
    if not everything:
        raise ValueError(f"no token lengths to draw: not one conversation in the splits {list(lengths)}")
    if min(limit, *everything) < 1:
        raise ValueError(f"token lengths and their limit start at 1, got {min(everything)} and the limit {limit}")
    import numpy as np

    edges = np.unique(np.rint(np.geomspace(min(everything), max(everything) + 1, 26))) - 0.5  # between whole lengths
    over = sum(length > limit for length in everything)
    with styled_figure(8, 4.6) as figure:
        axes = figure.subplots()
        axes.set_title("কথোপকথনের দৈর্ঘ্য (token length)")
        axes.set_xlabel("টোকেন (tokens), লগ-স্কেল")
        axes.set_ylabel("কথোপকথনের অংশ (%)")
        looks = itertools.cycle(((BLUE, "-"), (ORANGE, "--"), (GREEN, "-.")))
        for (name, part), (colour, line) in zip(lengths.items(), looks, strict=False):
            share = 100 * np.histogram(part, edges)[0] / max(len(part), 1)
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.15)
            axes.stairs(share, edges, color=colour, ls=line, lw=1.8, label=f"{SPLITS.get(name, name)}, n = {len(part)}")
        beyond = f"সীমা (max_seq_length) {limit}\nসীমার বেশি: {over} ({100 * over / len(everything):.1f} %)"
        axes.axvline(limit, color=RED, label=beyond)
        _powers_of_two(axes, min(limit, *everything), max(limit, *everything))
        axes.legend()
        return save(figure, path)


def plot_comparison(comparisons: Mapping[str, Mapping[str, Mapping[str, Any]]], path: str | Path) -> Path:
    """Base beside tuned with 95 % intervals, one small picture a metric because no two share a scale.

    Args:
        comparisons: `Score.to_dict()` of both systems: {metric: {"base": {...}, "tuned": {...}}}.

    Raises:
        ValueError: no metric, or one without a finite value of both systems.
    """
    if not comparisons:
        raise ValueError("no comparison to draw: not one metric was given")
    for name, pair in comparisons.items():
        for system in SYSTEMS:
            value = pair.get(system, {}).get("value")
            if not is_number(value):
                raise ValueError(f"{name} cannot be drawn: the value of {system} is {value}")
    columns = min(3, len(comparisons))
    rows = math.ceil(len(comparisons) / columns)
    with styled_figure(max(3.5 * columns + 1.2, 6.5), 1.5 * rows + 1.3) as figure:
        figure.suptitle("মূল ও টিউন করা মডেলের তুলনা (base against tuned)", x=0.01, ha="left", weight="bold", size=15)
        figure.supxlabel("দাগ: ৯৫ % আস্থা-ব্যবধান (95 % interval)", size=10, color="#555555", x=0.01, ha="left")
        figure.get_layout_engine().set(h_pad=0.08, w_pad=0.08)
        for number, (name, pair) in enumerate(comparisons.items()):
            axes = figure.add_subplot(rows, columns, number + 1)
            _draw_pair(axes, name, pair, labels=number % columns == 0)
        return save(figure, path)


def _draw_pair(axes: Axes, name: str, pair: Mapping[str, Mapping[str, Any]], labels: bool) -> None:
    """One metric: two bars from zero, their whiskers, their values in figures."""
    axes.set_title(f"{METRICS[name]} ({name})" if name in METRICS else name, size=10.5, pad=19)
    about = BETTER[pair["tuned"].get("higher_is_better")]
    if rows := pair["tuned"].get("n"):
        about += f" · n = {rows}"
    axes.annotate(about, (0, 1), (0, 5), "axes fraction", textcoords="offset points", size=9, color="#666666")
    ends = []
    for y, system in enumerate(SYSTEMS):
        score = pair[system]
        interval = [end for end in (score.get("low"), score.get("high")) if is_number(end)]
        axes.barh(y, score["value"], height=0.62, color=SYSTEMS[system][1])
        axes.plot(interval, [y] * len(interval), color=INK, lw=1.4, marker="|", ms=7, mew=1.4)
        ends.append(max([score["value"], *interval]))
        shown = amount(score["value"], score.get("unit"))
        axes.annotate(shown, (ends[-1], y), (6, 0), textcoords="offset points", va="center", size=10)
    axes.set_xlim(min(0, *ends), 1.35 * max(ends) if max(ends) > 0 else 1)  # room for the figures
    axes.set_ylim(1.5, -0.5)
    axes.set_yticks([0, 1], [label for label, _ in SYSTEMS.values()] if labels else ["", ""])
    axes.tick_params(axis="y", length=0, labelsize=10)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
    axes.grid(False)


def amount(value: float, unit: str | None, sign: str = "") -> str:
    """A value in figures that fit its unit; `sign` "+" writes the sign of a difference always."""
    if unit == "share":
        return f"{100 * value:{sign}.1f} %"
    return f"{value:{sign}.{3 if unit == 'bits/byte' else 2 if abs(value) < 10 else 1}f}"


def is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)


def curve_of(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """The finite values of one key by step; a resumed run's lines may come in any order."""
    return sorted((line["step"], line[key]) for line in history if "step" in line and is_number(line.get(key)))


def draw_curve(axes: Axes, points: list[tuple[int, float]], **look: Any) -> None:
    """A line; a short one with a dot a point, as one point alone makes no line; a long one thin, as it jumps."""
    marker = "o" if len(points) <= 60 else None
    axes.plot(*zip(*points, strict=True), marker=marker, ms=4, lw=2 if len(points) <= 200 else 1, **look)


def short_rate(rate: float) -> str:
    """0.0005 as 5e-4, 0.00025 as 2.5e-4."""
    digits, _, exponent = f"{rate:.2e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}" if rate else "0"


def step_axes(figure: Figure, title: str, label: str) -> Axes:
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel("ধাপ (step)")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    return axes


def _powers_of_two(axes: Axes, low: int, high: int) -> None:
    """A logarithmic x axis from `low` to `high` with plain numbers on it."""
    ticks = [2**k for k in range(64) if low / 1.15 <= 2**k <= high * 1.15] or sorted({low, high})
    axes.set_xscale("log", base=2)
    axes.set_xlim(low / 1.15, high * 1.15)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()


@contextmanager
def styled_figure(width: float, height: float) -> Iterator[Figure]:
    """A figure, in inches, and for as long as it is drawn our style instead of whatever matplotlibrc says."""
    import matplotlib
    from matplotlib.figure import Figure

    _register_fonts()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield Figure((width, height), dpi=DPI)


@functools.cache
def _register_fonts() -> None:
    """Makes the bundled files known as `FAMILY`; `addfont` would file them under the name that the system's share."""
    from dataclasses import replace

    from matplotlib.font_manager import fontManager, ttfFontProperty
    from matplotlib.ft2font import FT2Font

    for path in sorted(FONTS.glob("*.ttf")):
        fontManager.ttflist.append(replace(ttfFontProperty(FT2Font(str(path))), name=FAMILY))


def save(figure: Figure, path: str | Path) -> Path:
    """Writes the PNG, whole or not at all, and makes its folder."""
    path = Path(path)
    figure.savefig(picture := io.BytesIO(), format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, picture.getvalue())
    return path
