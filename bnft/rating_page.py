"""The rating page: a conversation, two unnamed replies, thirteen answers, the next one. Bengali, help always in sight.

The browser holds the rater's name and the token of what it shows, nothing more: a page goes on when its server was
killed and started again. Everything that it sends is checked here. Knows nothing about statistics.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from bnft.crisis_cards import help_lines
from bnft.errors import UserError
from bnft.rating_form import (
    LONGEST_NAME,
    NATIVE,
    PREFERENCES,
    QUESTIONS,
    REGIONS,
    Question,
    say,
    valid_answers,
)
from bnft.rating_items import Comparison, Item, of_these, plan, read_rater
from bnft.rating_store import RatingStore, Row, key_of
from bnft.records import now
from bnft.ui_look import ASSETS, head, style_sheet
from bnft.ui_parts import help_strip, status

ANSWERS = [f"{question.key}_{side}" for side in ("a", "b") for question in QUESTIONS] + ["preference"]
MOST_NAMED = 3  # open questions that are told by name
log = logging.getLogger("bnft.rating")


class RatingPage:
    """The components and what they do.

    Args:
        items: what is rated.
        seed: decides orders and sides, with the rater's name.
        store: keeps the ratings.
        decoding, build: recorded with every rating.
    """

    def __init__(self, items: Sequence[Item], seed: int, store: RatingStore, decoding: str, build: str):
        self.items, self.seed, self.store = items, seed, store
        self.fixed = {"decoding": decoding, "build": build}

    def lay_out(self) -> None:
        self.who = gr.BrowserState({}, storage_key="bnft-rater", secret="kept-in-this-browser")
        self.token = gr.Textbox("", visible=False)
        gr.HTML(help_strip(help_lines(None), "bn"), elem_id="help", padding=False)
        gr.HTML(
            f'<header class="head"><h1>{say("title")}</h1>'
            f'<p class="notice" lang="en">{say("english_title")}</p></header>',
            padding=False,
        )
        with gr.Column(elem_id="start-form") as self.start_form:
            gr.HTML("".join(f"<p>{say(key)}</p>" for key in ("intro", "heavy", "kept")), elem_id="intro", padding=False)
            self.rater = gr.Textbox(
                label=say("rater"), info=say("rater_hint"), max_lines=1, max_length=LONGEST_NAME, elem_id="rater"
            )
            self.native = gr.Radio(_choices(NATIVE), label=say("native"), elem_id="native")
            self.region = gr.Radio(_choices(REGIONS), label=say("region"), elem_id="region")
            self.start = gr.Button(say("start"), variant="primary", elem_id="start")
        with gr.Column(elem_id="rating", visible=False) as self.rating:
            self.progress = gr.HTML("", elem_id="progress", padding=False)
            self.said = gr.HTML("", elem_id="said", padding=False)
            self.replies, self.answers = [], []
            with gr.Row(elem_id="pair", equal_height=False):
                for side in ("a", "b"):
                    with gr.Column(min_width=300, elem_classes="side"):
                        self.replies.append(gr.HTML("", elem_id=f"reply-{side}", padding=False))
                        self.answers += [_radio(question, side) for question in QUESTIONS]
            preference = gr.Radio(
                _choices(PREFERENCES), label=say("preference"), elem_id="preference", elem_classes="ask"
            )
            self.answers.append(preference)
            self.send = gr.Button(say("send"), variant="primary", elem_id="send-rating")
        self.status = gr.HTML(status(""), elem_id="status", padding=False)
        with gr.Column(elem_id="foot", visible=False) as self.foot:
            gr.HTML(f'<p class="keys">{say("keys")}</p>', padding=False)
            self.other_rater = gr.Button(say("other_rater"), size="sm", elem_id="other-rater")

    def wire(self, demo: gr.Blocks) -> None:
        shown = [self.start_form, self.rating, self.foot, self.progress, self.said, *self.replies, *self.answers]
        shown += [self.token, self.status, self.who]
        quick = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
        told = {"js": "() => window.bnftRated && window.bnftRated()", **quick}
        entered = [self.rater, self.native, self.region]
        gr.on([self.start.click, self.rater.submit], self.on_start, entered, shown, **quick).then(None, **told)
        sent = [self.who, self.token, *self.answers]
        self.send.click(self.on_send, sent, [*shown, *entered], **quick).then(None, **told)
        self.other_rater.click(self.on_other_rater, None, [*shown, *entered], **quick)
        demo.load(self.on_load, self.who, shown, **quick).then(None, **told)

    def on_load(self, who: Any) -> dict:
        """Goes on where this browser's rater stopped."""
        known = _read_who(who)
        if not known:
            return {self.status: status("")}
        count = len(self._done(known["rater"]))
        return self._next(known, "welcome", rater=known["rater"], count=count) if count else self._next(known)

    def on_start(self, rater: Any, native: Any, region: Any) -> dict:
        name = read_rater(rater)
        if not name:
            return self._say("bad_rater", most=LONGEST_NAME)
        known = _read_who({"rater": name, "native": native, "region": region})
        return self.on_load(known) | {self.who: known} if known else self._say("missing_rater")

    def on_other_rater(self) -> dict:
        return {
            self.start_form: gr.update(visible=True),
            self.rating: gr.update(visible=False),
            self.foot: gr.update(visible=False),
            self.token: "",
            self.who: {},
            self.status: status(""),
            **dict.fromkeys([self.rater, self.native, self.region], None),
        }

    def on_send(self, who: Any, token: Any, *answers: Any) -> dict:
        """Keeps one comparison; what is incomplete, impossible or not on this rater's screen is not kept."""
        known = _read_who(who)
        if not known:
            return self.on_other_rater()
        comparison = self._first_open(known["rater"], self._done(known["rater"]))
        if comparison is None or token != comparison.token(known["rater"]):
            return self._next(known, "moved_on")
        kept, missing = valid_answers(dict(zip(ANSWERS, answers, strict=False)))
        if missing:
            few = len(missing) <= MOST_NAMED
            return (
                self._say("missing", names=", ".join(missing)) if few else self._say("many_missing", count=len(missing))
            )
        try:
            self.store.append(comparison.columns(known["rater"]) | known | kept | self.fixed | {"time": now()})
        except (OSError, UserError):
            log.exception("a rating could not be kept")
            return self._say("failed")
        return self._next(known, "round_done" if comparison.place == comparison.of else "kept_one")

    def _done(self, rater: str) -> set[tuple]:
        """What this rater has rated."""
        rows = of_these(self.store.read(), self.items)
        return {key_of(row) for row in rows if row["rater"] == rater}

    def _first_open(self, rater: str, done: set[tuple]) -> Comparison | None:
        return next((c for c in plan(self.items, rater, self.seed) if key_of(c.columns(rater)) not in done), None)

    def _next(self, known: Row, sentence: str = "", **values: object) -> dict:
        """The rater's next screen with that sentence; where all is rated, with the thanks for all."""
        rater = known["rater"]
        done = self._done(rater)
        comparison = self._first_open(rater, done)
        changes: dict[Any, Any] = {
            self.start_form: gr.update(visible=False),
            self.rating: gr.update(visible=comparison is not None),
            self.foot: gr.update(visible=True),
            self.token: comparison.token(rater) if comparison else "",
            **dict.fromkeys(self.answers, None),
        }
        if comparison is None:
            return changes | self._say("all_done")
        where = say("progress", rater=rater, place=comparison.place, of=comparison.of)
        changes[self.progress] = f"<p>{escape(where)} · {say('rated', count=len(done))}</p>"
        changes[self.said] = _conversation(comparison.item.said)
        for box, key, text in zip(self.replies, ("reply_a", "reply_b"), comparison.texts(), strict=True):
            changes[box] = f'<article class="reply"><h2>{say(key)}</h2>{_written(text)}</article>'
        return changes | (self._say(sentence, **values) if sentence else {self.status: status("")})

    def _say(self, key: str, **values: object) -> dict:
        return {self.status: status(say(key, **values))}


def _choices(words: dict[str, str]) -> list[tuple[str, str]]:
    return [(shown, value) for value, shown in words.items()]


def _radio(question: Question, side: str) -> gr.Radio:
    return gr.Radio(
        question.choices,
        label=f"{question.label} ({question.english})",
        info=question.hint,
        elem_id=f"{question.key}-{side}",
        elem_classes="ask",
    )


def _written(text: str) -> str:
    return f'<p class="written" dir="auto">{escape(text or say("nothing"))}</p>'


def _conversation(said: Sequence[dict]) -> str:
    """The message that was replied to, and before it what had been said."""
    *before, last = said
    earlier = "".join(
        f'<p class="who">{say("person" if message["role"] == "user" else "reply_was")}</p>'
        f"{_written(message['content'])}"
        for message in before
    )
    title = f"<h3>{say('earlier')}</h3>" if earlier else ""
    return (
        f'<section class="said" tabindex="-1">{title}{earlier}<h2>{say("person")}</h2>'
        f"{_written(last['content'])}</section>"
    )


def _read_who(sent: Any) -> Row:
    """A rater as the browser tells of them; {} where a value cannot be."""
    if not isinstance(sent, dict):
        return {}
    name, native, region = read_rater(sent.get("rater")), sent.get("native"), sent.get("region")
    known = isinstance(native, str) and native in NATIVE and isinstance(region, str) and region in REGIONS
    return {"rater": name, "native": native, "region": region} if name and known else {}


def build_rating_page(items: Sequence[Item], seed: int, store: RatingStore, decoding: str, build: str) -> gr.Blocks:
    """The whole page, ready for `ui_look.serve` with `rating_look()`. The arguments are those of `RatingPage`."""
    page = RatingPage(items, seed, store, decoding, build)
    with gr.Blocks(title=say("title"), analytics_enabled=False, fill_width=False) as demo:
        page.lay_out()
        page.wire(demo)
    return demo


def rating_look() -> dict[str, Any]:
    """What this page adds to the look of all pages."""
    css, script = ((ASSETS / f"rating.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return {"css": style_sheet() + css, "head": f"{head()}<script>{script}</script>"}
