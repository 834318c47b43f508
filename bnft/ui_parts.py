"""The parts of the page that are plain HTML, and texts made inert: nothing that anyone wrote is ever live markup.

Knows nothing about events or models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import regex

from bnft.crisis_cards import HelpLine
from bnft.turns import Card
from bnft.ui_strings import LANGUAGES, digits, keys, number, text

NUMBERS_SHOWN = {"bits_per_byte": "bits/byte", "chrf++": "chrF++"}  # of metrics.json, in the one line about the model
# A tag or entity begins only where its sign is followed by one of these; a word joiner between them is not seen.
_LIVE = regex.compile(r"(<)(?=[A-Za-z/!?])|(&)(?=[#A-Za-z])")
_MADE_INERT = regex.compile("([<&])\u2060")


@dataclass(frozen=True)
class About:
    """What the page says about its model.

    Attributes:
        name: what was loaded, as a person would call it.
        base: the base model's name, or "".
        licence: "gemma", "llama3.1" or "".
        metrics: the run's metrics.json, or None.
        train_command: shown when the model was not trained, else "".
    """

    name: str
    base: str = ""
    licence: str = ""
    metrics: dict | None = None
    train_command: str = ""


def inert(written: str) -> str:
    """A text that shows the same and holds no tag or entity; the chat component would bring `<img>` to life."""
    return _LIVE.sub(lambda m: f"{m.group()}\u2060", written)


def not_inert(shown: str) -> str:
    """The text as it was written, from what the page sends back of it."""
    return _MADE_INERT.sub(r"\1", shown)


def bubbles(history: Sequence[dict], base: bool = False) -> list[dict]:
    """The conversation as the chat component takes it; with the base model's replies where asked."""
    shown = []
    for message in history:
        content = message.get("base", "") if base and message["role"] == "assistant" else message["content"]
        if content:
            shown.append({"role": message["role"], "content": inert(content)})
    return shown


def header(language: str) -> str:
    return (
        f'<header class="head"><h1>{text("title", language)}</h1><p class="tagline">{text("tagline", language)}</p>'
        f'<p class="notice">{text("notice", language)}</p></header>'
    )


def help_strip(lines: Sequence[HelpLine], language: str) -> str:
    """The help lines, always in sight, to be tapped."""
    links = "".join(_call(line, language) for line in lines)
    title = text("help_title", language)
    return f'<nav class="help" aria-label="{title}"><strong>{title}</strong><div>{links}</div></nav>'


def crisis(card: Card | None, language: str) -> str:
    """The card of a turn: loud when somebody may be in danger, quiet when help is only offered."""
    if card is None:
        return ""
    links = "".join(_call(line, language, hours=True) for line in card.lines)
    look, role = ("card", "alert") if card.grave else ("card soft", "note")
    return (
        f'<section class="{look}" role="{role}"><h2>{escape(card.title)}</h2><p>{escape(card.text)}</p>'
        f"<div>{links}</div></section>"
    )


def status(sentence: str) -> str:
    return f'<p class="status" role="status" aria-live="polite">{escape(sentence)}</p>'


def about(model: About, language: str) -> str:
    """Which model this is, its licence and numbers, and where conversations stay."""
    rows = [f"<b>{text('model', language)}:</b> {escape(model.name)}"]
    if model.base:
        rows.append(f"<b>{text('base_model', language)}:</b> {escape(model.base)}")
    licence = f"licence_{model.licence or 'unknown'}"
    named = text(licence, language) if licence in keys() else escape(model.licence)  # any id that the Hub knows
    rows.append(f"<b>{text('licence', language)}:</b> {named}")
    items = " · ".join(rows)
    parts = [f"<p>{items}</p>"]
    if numbers := measured(model.metrics, language):
        parts.append(f"<p><b>{text('numbers', language)}:</b> {numbers}</p>")
    if model.train_command:
        parts.append(f"<p>{text('untrained', language)} <code>{escape(model.train_command)}</code></p>")
    parts.append(f"<p>{text('privacy', language)}</p>")
    parts.append(f'<p><a href="?view=api">{text("for_programs", language)}</a></p>')
    return f'<footer class="about">{"".join(parts)}</footer>'


def measured(metrics: dict | None, language: str) -> str:
    """The numbers of a run in one line: base, then tuned; "" where there are none."""
    shown = []
    for name, label in NUMBERS_SHOWN.items():
        base, tuned = (_score(metrics, system, name) for system in ("base", "tuned"))
        if base and tuned:
            values = (number(float(base["value"]), language), number(float(tuned["value"]), language))
            rows = text("numbers_rows", language, rows=int(tuned["n"]))
            shown.append(f"{label} {values[0]} → {values[1]} ({rows})")
    return f"{' · '.join(shown)}; {text('numbers_of', language)}" if shown else ""


def _score(metrics: dict | None, system: str, name: str) -> dict | None:
    """One score of a metrics.json, which may have come with a model from anywhere."""
    scores = (metrics or {}).get(system)
    score = scores.get(name) if isinstance(scores, dict) else None
    if not isinstance(score, dict):
        return None
    values = [score.get(key) for key in ("value", "n")]
    # JSON as Python reads it holds NaN, Infinity and whole numbers too large for a float.
    return score if all(isinstance(value, int | float) and abs(value) < 1e9 for value in values) else None


def script_strings() -> str:
    """The words that the page's script puts on buttons which the chat component labels in English only."""
    names = {
        "Copy message": "copy",
        "Copied message": "copied",
        "Edit": "edit",
        "Like": "good",
        "Dislike": "bad",
        "clicked like": "good",
        "clicked dislike": "bad",
        "Clear": "clear",
        "chatbot conversation": "chat",
        "Submit": "send",
        "Cancel": "cancel",
        "user's message: ": "you_said",
        "bot's message: ": "it_said",
    }
    words: dict[str, Any] = {code: {n: text(key, code) for n, key in names.items()} for code in LANGUAGES}
    return json.dumps(words, ensure_ascii=False).replace("<", "\\u003c")


def _call(line: HelpLine, language: str, hours: bool = False) -> str:
    name, open_hours = (line.name_bn, line.hours_bn) if language == "bn" else (line.name_en, line.hours_en)
    shown = digits(line.number, language)
    spoken = text("help_call", language, name=name, number=shown, hours=open_hours)
    extra = f"<small>{escape(open_hours)}</small>" if hours else ""
    return (
        f'<a href="tel:{escape(line.tel)}" aria-label="{escape(spoken)}" title="{escape(spoken)}">'
        f"<b>{escape(shown)}</b> <span>{escape(name)}</span>{extra}</a>"
    )
