"""The chat as a named endpoint for programs: `/chat`, with its schema taken from the types below.

Annotations here are real types, not strings, for Gradio reads them. Knows nothing about the page.
"""

import inspect
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal, TypedDict

from bnft.conversation import Unread, paced
from bnft.turns import MAX_REPLY_TOKENS, Settings, Update, read_history
from bnft.visits import visitor_of


class HelpLineJson(TypedDict):
    name: str
    number: str
    hours: str


class CardJson(TypedDict):
    """Shown before and beside the reply when a message may be a sign of crisis; `grave` if someone is in danger."""

    title: str
    text: str
    grave: bool
    lines: list[HelpLineJson]


class ReplyJson(TypedDict):
    """One frame; `text` is the whole reply so far."""

    text: str
    finished: bool
    finish_reason: str | None
    people_ahead: int | None
    crisis_card: CardJson | None


def make_chat_endpoint(
    reply: Callable[..., Iterator[Update]], defaults: Settings, unread: Unread, forget: Callable[[str], None]
) -> Callable[..., Iterator[ReplyJson]]:
    """The function behind `/chat`; calls `forget` when a call is over."""
    from gradio import Request

    def chat(
        message: str,
        history: list[dict[str, str]] | None = None,
        language: Literal["bn", "en"] = "bn",
        country: Literal["BD", "IN"] | None = None,
        max_new_tokens: int = min(defaults.max_new_tokens, MAX_REPLY_TOKENS),
        temperature: float = defaults.temperature,
        top_p: float = defaults.top_p,
        request: Request = None,
    ) -> Iterator[ReplyJson]:
        """Answers one message of a conversation, frame by frame; nothing is stored.

        Args:
            message: what the person writes, at most 4000 characters.
            history: the conversation so far, [{"role": "user"|"assistant", "content": text}, ...].
            language: of help lines and notices; replies are in Bengali.
            country: decides which help lines a crisis card shows.
            max_new_tokens: longest reply.
            temperature: 0.1 to 2.
            top_p: 0.05 to 1.
        """
        settings = replace(
            defaults,
            language=language,
            country=country,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            visitor=visitor_of(request),
        )
        stop = threading.Event()
        try:
            updates = reply(message, read_history(history), settings, stop)
            for update in paced(updates, request.session_hash, unread):
                yield to_json(update, language)
        finally:
            stop.set()
            forget(request.session_hash)

    # Gradio takes the schema of a frame from the return type, of which a generator has none.
    chat.__signature__ = inspect.signature(chat).replace(return_annotation=ReplyJson)
    return chat


def to_json(update: Update, language: str) -> ReplyJson:
    card = update.card and {
        "title": update.card.title,
        "text": update.card.text,
        "grave": update.card.grave,
        "lines": [
            {
                "name": line.name_en if language == "en" else line.name_bn,
                "number": line.tel,
                "hours": line.hours_en if language == "en" else line.hours_bn,
            }
            for line in update.card.lines
        ],
    }
    return {
        "text": update.text,
        "finished": update.finished,
        "finish_reason": update.finish_reason,
        "people_ahead": update.ahead,
        "crisis_card": card,
    }
