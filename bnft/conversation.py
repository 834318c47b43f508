"""What one open page does with a reply as it is written: the history grows, the status line tells, a stop ends it.

Yields neutral frames, which the page turns into components. Knows nothing about components or models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bnft.turns import MAX_MESSAGES, Card, Settings, Update, clean_message
from bnft.ui_strings import text
from bnft.visits import Visit, Visits

FRAME_GAP = 0.04  # seconds: more frames than 25 a second only cost time
MOST_UNREAD = 8  # frames that wait for a slow reader; each holds the whole reply so far, so none need be kept

Reply = Callable[..., Iterator[Update]]
Unread = Callable[[str], int]


@dataclass(frozen=True)
class Frame:
    """What the page shows now.

    Attributes:
        card: a card to show; None leaves what is shown.
        box: new content of the message box; None leaves it.
        running: a reply is being written, so Stop is offered.
        settled: the history has come to rest and is worth keeping in the browser.
    """

    history: list[dict]
    status: str = ""
    card: Card | None = None
    box: str | None = None
    running: bool = False
    settled: bool = False


class Conversations:
    """Every page's talk with the model.

    Args:
        reply: `Chat.reply`.
        unread: how many frames are on their way to a page.
    """

    def __init__(self, reply: Reply, unread: Unread = lambda page: 0):
        self.reply = reply
        self.unread = unread
        self.visits = Visits()

    def converse(
        self, page: str, message: Any, before: Sequence[dict], settings: Settings, compare: bool = False
    ) -> Iterator[Frame]:
        """Frames of one exchange; with `compare` the base model answers after the tuned one."""
        visit = self.visits.begin(page)
        # With this exchange it is as long as `read_history` takes it, so that a bubble's number is its message's.
        history = list(before if visit.history is None else visit.history)[2 - MAX_MESSAGES :]
        visit.history = history
        try:
            if visit.superseded:
                return
            for frame in self._exchange(page, visit, message, history, settings, compare):
                if visit.superseded:
                    return
                visit.history = frame.history
                yield frame
        finally:
            self.visits.end(page, visit)

    def _exchange(
        self, page: str, visit: Visit, message: Any, before: list[dict], settings: Settings, compare: bool
    ) -> Iterator[Frame]:
        updates = self.reply(message, before, settings, visit.stop)
        first = next(updates)
        if first.finish_reason == "refused":
            yield Frame(before, first.text, first.card, settled=True)
            return
        asked = [*before, {"role": "user", "content": clean_message(message)}]  # half a pair would break the stream
        yield Frame(asked, text("thinking", settings.language), first.card, box="", running=True, settled=True)
        last = first
        for last in paced(updates, page, self.unread):
            yield Frame(_with_reply(asked, last), _status(last, settings.language, "thinking"), last.card, running=True)
        answered = _with_reply(asked, last)
        if compare and last.finish_reason in ("stop", "length"):
            yield from self._base_reply(page, visit, message, before, answered, settings)
        else:
            yield Frame(answered, _status(last, settings.language), last.card, settled=True)

    def _base_reply(
        self, page: str, visit: Visit, message: str, before: list[dict], answered: list[dict], settings: Settings
    ) -> Iterator[Frame]:
        language = settings.language
        yield Frame(answered, text("thinking_base", language), running=True, settled=True)
        update = Update()
        updates = self.reply(message, before, replace(settings, base=True), visit.stop)
        for update in paced(updates, page, self.unread):
            yield Frame(_with_base(answered, update), _status(update, language, "thinking_base"), running=True)
        yield Frame(_with_base(answered, update), _status(update, language), settled=True)


def take_back(history: Sequence[dict]) -> tuple[list[dict], str]:
    """The conversation before the newest message of the person, and that message."""
    for i in range(len(history) - 1, -1, -1):
        if history[i]["role"] == "user":
            return list(history[:i]), history[i]["content"]
    return list(history), ""


def paced(updates: Iterator[Update], page: str, unread: Unread) -> Iterator[Update]:
    """The updates without those that come faster than anyone can see or this page reads; a finished one passes."""
    shown = 0.0
    for update in updates:
        if update.finished or (time.monotonic() - shown >= FRAME_GAP and unread(page) < MOST_UNREAD):
            shown = time.monotonic()
            yield update


def _with_reply(asked: list[dict], update: Update) -> list[dict]:
    if not update.text:
        return asked
    reply: dict[str, Any] = {"role": "assistant", "content": update.text}
    if update.is_notice:
        reply["notice"] = True
    return [*asked, reply]


def _with_base(answered: list[dict], update: Update) -> list[dict]:
    if not update.text or answered[-1]["role"] != "assistant":
        return answered
    return [*answered[:-1], answered[-1] | {"base": update.text}]


def _status(update: Update, language: str, thinking: str = "") -> str:
    if update.ahead:
        return text("waiting", language, people=update.ahead)
    if update.finish_reason == "length":
        return text("cut_off", language)
    if update.finish_reason == "stopped":
        return text("was_stopped", language)
    if not update.finished and not update.text and thinking:
        return text(thinking, language)
    return ""
