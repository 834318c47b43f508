"""The page: a thin skin over `reply`. Bengali first, nothing fetched from anywhere else, history in the browser only.

The chat component is only ever written to, never read: what a browser sends back is plain JSON and passes
`read_history`. Knows nothing about models.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr
from gradio.utils import LRUCache

from bnft import ui_parts
from bnft.api import make_chat_endpoint
from bnft.conversation import Conversations, Frame, Reply, take_back
from bnft.crisis_cards import help_lines
from bnft.feedback import FeedbackFull, FeedbackStore
from bnft.line import LineFull
from bnft.prompts import with_system
from bnft.turns import Settings, clean_message, exchanges, read_history
from bnft.ui_layout import TRANSLATED, Layout, words
from bnft.ui_strings import text
from bnft.visits import visitor_of

JS_LANGUAGE = "(language, ...more) => { window.bnftLanguage(language); return [language, ...more]; }"
# The clock tells the country, so that the right help lines come first; nobody else is told.
JS_LOAD = """(history, language, country) => {
  const zones = {"Asia/Dhaka": "BD", "Asia/Kolkata": "IN", "Asia/Calcutta": "IN"};
  return [history, language, zones[Intl.DateTimeFormat().resolvedOptions().timeZone] || ""];
}"""
GIVEN_UP = 200  # messages on their way to a page; one that reads none of them is not answered any more
log = logging.getLogger("bnft.ui")


class Page(Layout):
    """The components and what they do.

    Args:
        reply: `Chat.reply`.
        is_sensitive: whether a conversation is too personal to be stored, whatever its visitor agreed to.
        about: what is said about the model.
        defaults: settings of a reply until the visitor changes them.
        system_prompt: stored with feedback, so that it trains what was asked.
        store: keeps feedback; None offers none.
        can_compare: the base model can answer beside the tuned one.
    """

    def __init__(
        self,
        reply: Reply,
        is_sensitive,
        about: ui_parts.About,
        defaults: Settings,
        system_prompt: str,
        store: FeedbackStore | None,
        can_compare: bool,
    ):
        super().__init__(about, defaults, can_compare, takes_feedback=store is not None)
        self.conversations = Conversations(reply, self.unread)
        self.reply, self.is_sensitive, self.system_prompt, self.store = reply, is_sensitive, system_prompt, store

    def wire(self, demo: gr.Blocks) -> None:
        """Ties the components to what they do; nothing but `/chat` is offered to programs."""
        self._demo = demo
        chosen = [self.language, self.temperature, self.top_p, self.reply_length, self.country, self.compare]
        shown = [
            self.chat, self.base_chat, self.history, self.card, self.status, self.message, self.send, self.stop
        ]  # fmt: skip
        talk = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
        talk |= {"trigger_mode": "multiple", "outputs": shown}
        quick = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
        gr.on([self.message.submit, self.send.click], self.on_message, [self.message, self.history, *chosen], **talk)
        self.retry.click(self.on_retry, [self.history, *chosen], **talk)
        self.chat.edit(self.on_edit, [self.history, *chosen], **talk)
        self.chat.example_select(self.on_example, [self.history, *chosen], **talk)
        self.undo.click(self.on_undo, [self.history, self.language], shown, **quick)
        self.clear.click(self.on_clear, [self.language], shown, **quick)
        self.stop.click(self.on_stop, None, None, **quick)
        self.chat.like(self.on_like, [self.history, self.consent, self.language], self.status, **quick)
        feedback = [self.better, self.history, self.consent, self.language]
        self.send_better.click(self.on_better, feedback, [self.status, self.better], **quick)
        self.compare.change(self.on_compare, [self.compare, self.language], [self.base_chat, self.chat], **quick)
        spoken = [getattr(self, name) for name in TRANSLATED] + [self.header, self.help, self.about]
        words_in = [self.language, self.country, self.compare]
        self.language.change(self.on_language, words_in, [*spoken, self.saved_language], js=JS_LANGUAGE, **quick)
        self.country.change(self.on_country, [self.country, self.language], self.help, **quick)
        kept = [self.history, self.saved_language, self.country]
        demo.load(self.on_load, kept, [self.chat, self.base_chat, self.language, self.country], js=JS_LOAD, **quick)
        demo.unload(self.on_unload)
        chat = make_chat_endpoint(self.reply, self.defaults, self.unread, self.forget)
        gr.api(chat, api_name="chat", concurrency_limit=None)

    def unread(self, page: str) -> int:
        """How much Gradio keeps for a page that has not taken it yet; it would keep any number."""
        kept = self._demo._queue.pending_messages_per_session.get(page)
        return kept.qsize() if kept else 0

    def forget(self, page: str) -> None:
        """Gradio keeps what a page sent and was shown last; of a page that is closed nothing is to stay."""
        for kept in (self._demo.state_holder.session_data, self._demo.state_holder.time_last_used):
            kept.pop(page, None)

    def on_message(self, request: gr.Request, message, history, *chosen) -> Iterator[dict]:
        yield from self._talk(request, message, read_history(history), chosen)

    def on_example(self, request: gr.Request, event: gr.SelectData, history, *chosen) -> Iterator[dict]:
        said = event.value.get("text") if isinstance(event.value, dict) else event.value
        yield from self._talk(request, said, read_history(history), chosen)

    def on_retry(self, request: gr.Request, history, *chosen) -> Iterator[dict]:
        before, said = take_back(read_history(history))
        if said:
            yield from self._talk(request, said, before, chosen)
        else:
            yield self._unchanged()

    def on_edit(self, request: gr.Request, event: gr.EditData, history, *chosen) -> Iterator[dict]:
        said = ui_parts.not_inert(event.value) if isinstance(event.value, str) else ""
        yield from self._talk(request, said, read_history(history)[: event.index], chosen)

    def _talk(self, request: gr.Request, message: Any, before: list[dict], chosen: Sequence) -> Iterator[dict]:
        language, temperature, top_p, reply_length, country, compare = chosen
        settings = Settings(
            reply_length,
            temperature,
            top_p,
            self.defaults.repetition_penalty,
            language,
            country or None,
            visitor_of(request),
        ).clamped()
        compare, page, frame = bool(compare) and self.can_compare, _page_of(request), None
        if self.unread(page) < GIVEN_UP:
            try:
                for frame in self.conversations.converse(page, message, before, settings, compare):
                    yield self._shown(frame, settings.language)
            except GeneratorExit:  # nobody reads any more
                self.forget(page)
                raise
        if frame is None:
            yield self._unchanged()

    def _unchanged(self) -> dict:
        """Without any frame Gradio would empty every component."""
        return {self.status: gr.skip()}

    def _shown(self, frame: Frame, language: str) -> dict:
        changes: dict[Any, Any] = {
            self.chat: ui_parts.bubbles(frame.history),
            self.base_chat: ui_parts.bubbles(frame.history, base=True),
            self.status: ui_parts.status(frame.status),
            self.send: gr.update(visible=not frame.running),
            self.stop: gr.update(visible=frame.running),
        }
        if frame.card is not None:
            changes[self.card] = ui_parts.crisis(frame.card, language)
        if frame.box is not None:
            changes[self.message] = frame.box
        if frame.settled:
            changes[self.history] = frame.history
        return changes

    def on_undo(self, request: gr.Request, history, language) -> dict:
        self.conversations.visits.stop(_page_of(request))
        before, said = take_back(read_history(history))
        return self._shown(Frame(before, box=said, settled=True), language)

    def on_clear(self, request: gr.Request, language) -> dict:
        self.conversations.visits.stop(_page_of(request))
        changes = self._shown(Frame([], text("cleared", language), box="", settled=True), language)
        return changes | {self.card: ""}

    def on_stop(self, request: gr.Request) -> None:
        self.conversations.visits.stop(_page_of(request))

    def on_unload(self, request: gr.Request) -> None:
        page = _page_of(request)
        self.conversations.visits.stop(page)
        self.forget(page)
        self._demo._queue.pending_event_ids_session.pop(page, None)

    def on_like(self, request: gr.Request, event: gr.LikeData, history, consent, language) -> str:
        index = event.index if isinstance(event.index, int) else event.index[0]
        if event.liked not in (True, False):  # a thumb taken back; rows are only ever added
            return ui_parts.status("")
        talk = read_history(history)[: index + 1]
        return ui_parts.status(self._keep(request, talk, consent, language, liked=event.liked))

    def on_better(self, request: gr.Request, better, history, consent, language) -> tuple[str, Any]:
        sentence = self._keep(request, read_history(history), consent, language, better=clean_message(better))
        kept = sentence == text("thanks", language)
        return ui_parts.status(sentence), "" if kept else gr.skip()

    def _keep(
        self,
        request: gr.Request,
        history: list[dict],
        consent,
        language: str,
        liked: bool = False,
        better: str | None = None,
    ) -> str:
        """Stores one judgement of the last reply in `history`, if it may; returns what to tell the visitor."""
        if consent is not True or self.store is None:
            return text("feedback_needs_consent", language)
        if not history or history[-1]["role"] != "assistant" or history[-1].get("notice") or better == "":
            return text("feedback_nothing", language)
        before, said = take_back(history)
        prompt = with_system([*exchanges(before), {"role": "user", "content": said}], self.system_prompt)
        reply = history[-1]["content"]
        if better == reply:
            return text("feedback_same", language)
        try:
            if self.is_sensitive(history, visitor_of(request)):
                return text("feedback_private", language)
            if better is None:
                self.store.rate(prompt, reply, liked)
            else:
                self.store.improve(prompt, reply, better)
        except (FeedbackFull, LineFull, OSError):
            log.exception("feedback could not be stored")
            return text("feedback_failed", language)
        return text("thanks", language)

    def on_compare(self, compare, language) -> tuple[Any, Any]:
        label = text("tuned_chat" if compare else "chat", language)
        return gr.update(visible=bool(compare)), gr.update(label=label, show_label=bool(compare))

    def on_country(self, country, language) -> str:
        return ui_parts.help_strip(help_lines(country or None), language)

    def on_language(self, language, country, compare) -> list:
        language = "en" if language == "en" else "bn"
        spoken: list[Any] = [gr.update(**words(name, language)) for name in TRANSLATED]
        if compare:
            spoken[0] = gr.update(**words("chat", language) | {"label": text("tuned_chat", language)})
        return [
            *spoken,
            ui_parts.header(language),
            self.on_country(country, language),
            ui_parts.about(self.about_model, language),
            language,
        ]

    def on_load(self, history, language, country) -> tuple:
        """What this browser kept from the last visit, and the country that its clock tells."""
        kept = read_history(history)
        language = "en" if language == "en" else "bn"
        country = country if country in ("BD", "IN") else ""
        return ui_parts.bubbles(kept), ui_parts.bubbles(kept, base=True), language, country


def _page_of(request: gr.Request) -> str:
    return request.session_hash or "no page"


def build_demo(
    reply: Reply,
    is_sensitive,
    about: ui_parts.About,
    defaults: Settings,
    system_prompt: str,
    store: FeedbackStore | None = None,
    can_compare: bool = False,
) -> gr.Blocks:
    """The whole page, ready for `serve`. The arguments are those of `Page`."""
    page = Page(reply, is_sensitive, about, defaults, system_prompt, store, can_compare)
    with gr.Blocks(title=text("title", "bn"), analytics_enabled=False, fill_width=False) as demo:
        page.lay_out()
        page.wire(demo)
    demo.queue(default_concurrency_limit=None, max_size=500, api_open=False)  # nobody goes past the queue
    # Of calls, whose every one is a session, it would remember each for ever; so many as it keeps messages of will do.
    demo._queue.pending_event_ids_session = LRUCache(demo._queue.pending_messages_per_session.max_size)
    return demo
