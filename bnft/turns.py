"""What travels between the page and the model: settings, updates, and messages made safe to use.

A conversation is a list of plain dicts {"role", "content"}; an assistant's may carry "base" (the base model's reply
to the same message) and "notice" (a sentence of this program, never shown to the model). Whatever comes from a
browser passes `read_history` and `clean_message`. Knows nothing about models or the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import regex

from bnft.settings import GenerationConfig
from bnft.text import drop_unseen

MAX_MESSAGE = 4000  # characters of one message, as a person counts them
MAX_REPLY = 16_000  # characters of a reply that comes back from a browser
MAX_MESSAGES = 60  # messages of a conversation; older ones are dropped
MAX_REPLY_TOKENS = 1024

_SAYS_SOMETHING = regex.compile(r"[\p{L}\p{N}\p{S}\p{P}]")


@dataclass(frozen=True)
class Settings:
    """What a visitor chose for one reply. `clamped` brings numbers from outside into their bounds.

    Attributes:
        country: "BD", "IN" or None when the visitor has not said.
        visitor: where the message came from, so that nobody takes the whole line; "" when that is not known.
        base: answer with the base model, the adapter switched off.
    """

    max_new_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    language: str = "bn"
    country: str | None = None
    visitor: str = ""
    base: bool = False

    @classmethod
    def from_defaults(cls, generation: GenerationConfig, **more: Any) -> Settings:
        return cls(
            min(generation.max_new_tokens, MAX_REPLY_TOKENS),
            generation.temperature,
            generation.top_p,
            generation.repetition_penalty,
            **more,
        )

    def clamped(self) -> Settings:
        return replace(
            self,
            max_new_tokens=int(_within(self.max_new_tokens, 8, MAX_REPLY_TOKENS, 256)),
            temperature=_within(self.temperature, 0.1, 2.0, 0.7),
            top_p=_within(self.top_p, 0.05, 1.0, 0.9),
            repetition_penalty=_within(self.repetition_penalty, 1.0, 2.0, 1.0),
            language="en" if self.language == "en" else "bn",
            country=self.country if self.country in ("BD", "IN") else None,
        )


@dataclass(frozen=True)
class Card:
    """What is shown beside a reply to a person who may need more than a reply.

    Attributes:
        lines: the help lines to call.
        grave: somebody may be in danger; otherwise the lines are only offered.
    """

    title: str
    text: str
    lines: tuple
    grave: bool


@dataclass(frozen=True)
class Update:
    """One frame of a reply.

    Attributes:
        text: the whole reply so far.
        card: the card of this turn, or None to leave what is shown.
        finish_reason: None while it grows; "stop", "length" or "stopped" for a reply; "refused", "busy", "error" or
            "withheld" when the text is this program's own sentence in place of one.
        ahead: people who come first; None once it is this visitor's turn.
    """

    text: str = ""
    card: Card | None = None
    finish_reason: str | None = None
    ahead: int | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def is_notice(self) -> bool:
        return self.finish_reason in ("refused", "busy", "error")


def clean_message(message: Any) -> str:
    """A person's message without what no person can see: control characters, lone surrogates, direction marks."""
    if not isinstance(message, str):
        return ""
    # Much longer texts are refused anyway; a regex over a hundred megabytes would hold up everybody.
    shown = message[: 2 * MAX_MESSAGE].replace("\r\n", "\n").replace("\r", "\n")
    return drop_unseen(shown).strip()


def clean_reply(written: str) -> str:
    """A reply without a model's slips: bytes that are no character, and characters that no person can see."""
    return drop_unseen(written.replace("\ufffd", ""))


def says_something(message: str) -> bool:
    """Whether a message holds anything to answer: a letter, a digit, an emoji, a question mark."""
    return _SAYS_SOMETHING.search(message) is not None


def read_history(value: Any) -> list[dict]:
    """A conversation that a browser or an API client sent: only known roles and plain texts, bounded."""
    messages = []
    for entry in value[-MAX_MESSAGES:] if isinstance(value, list) else ():
        if not isinstance(entry, dict) or entry.get("role") not in ("user", "assistant"):
            continue
        if not isinstance(entry.get("content"), str):
            continue
        message = {"role": entry["role"], "content": _bounded(entry["content"])}
        if entry["role"] == "assistant":
            if isinstance(entry.get("base"), str):
                message["base"] = _bounded(entry["base"])
            if entry.get("notice"):
                message["notice"] = True
        messages.append(message)
    return messages


def exchanges(history: Sequence[dict], base: bool = False) -> list[dict]:
    """The answered messages only, alternating as chat templates demand; with the base model's replies if asked."""
    kept = []
    for asked, answered in pairwise(history):
        if asked["role"] != "user" or answered["role"] != "assistant" or answered.get("notice"):
            continue
        reply = answered.get("base", answered["content"]) if base else answered["content"]
        if asked["content"] and reply:
            kept += [{"role": "user", "content": asked["content"]}, {"role": "assistant", "content": reply}]
    return kept


def _bounded(content: str) -> str:
    return drop_unseen(content[:MAX_REPLY])


def _within(value: Any, low: float, high: float, default: float) -> float:
    if not isinstance(value, int | float) or value != value:
        return default
    return min(max(value, low), high)
