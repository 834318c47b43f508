"""What is said to a person who may be at risk: the card with the help lines of a country, and the written replies.

Everything that can be edited lies in data/: crisis_cards.yaml, help_lines.yaml, and the countries' words in
crisis_phrases.yaml. Knows nothing about how a risk is found.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import cache

from bnft.crisis_words import fold
from bnft.safety import MOST_READ, Risk, phrases, read_yaml


@dataclass(frozen=True)
class HelpLine:
    """A line to call; `number` is for reading (Bengali digits), `tel` for the tel: link."""

    name_bn: str
    name_en: str
    number: str
    tel: str
    hours_bn: str
    hours_en: str
    country: str
    status: str
    source: str
    checked: date


@dataclass(frozen=True)
class CrisisCard:
    title: str
    text: str
    lines: tuple[HelpLine, ...]


@cache
def _cards() -> dict:
    return read_yaml("crisis_cards.yaml")


@cache
def _all_lines() -> tuple[HelpLine, ...]:
    return tuple(HelpLine(**line) for line in read_yaml("help_lines.yaml"))


def help_lines(country: str | None) -> tuple[HelpLine, ...]:
    """The lines of a country ("BD" or "IN"); all of them where the country is not known."""
    return tuple(line for line in _all_lines() if line.country == country) or _all_lines()


def _words_for(language: str) -> dict:
    return _cards().get(language, _cards()["bn"])


def crisis_card(risk: Risk, country: str | None, language: str = "bn") -> CrisisCard:
    """The card shown before a reply: to the person at risk, to a friend of one, or one soft sentence with the lines."""
    words = _words_for(language)[(Risk.SOFT if risk is Risk.NONE else risk).value]
    return CrisisCard(words["title"], words["text"], help_lines(country))


def safe_reply(risk: Risk, language: str = "bn") -> str:
    """What is said instead of a reply that was withheld."""
    return _words_for(language)[risk.value]["reply"]


@cache
def _country_words() -> dict[str, tuple[tuple[str, int], ...]]:
    return {
        country: tuple(
            (fold(word), weight) for key, weight in (("places", 2), ("words", 1)) for word in told[key].split()
        )
        for country, told in phrases()["countries"].items()
    }


def guess_country(message: str) -> str | None:
    """ "BD" or "IN" by place names and vocabulary; None unless the signs are at least two and all of one country."""
    words = set(fold(message[:MOST_READ]).split())
    points = {
        country: sum(weight for stem, weight in known if any(word.startswith(stem) for word in words))
        for country, known in _country_words().items()
    }
    sure = [country for country, sum_ in points.items() if sum_ >= 2]
    return sure[0] if len(sure) == 1 and sum(points.values()) == points[sure[0]] else None
