"""The components of the page, where they stand, and what they are called in each language.

Knows nothing about what they do.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from bnft import ui_parts
from bnft.crisis_cards import help_lines
from bnft.turns import MAX_REPLY_TOKENS, Settings
from bnft.ui_strings import LANGUAGES, text

EXAMPLES = ("example_1", "example_2", "example_3", "example_4")

# What is said in two languages: attribute of Page -> {property of the component: key of the sentence}
TRANSLATED = {
    "chat": {"label": "chat", "placeholder": "empty_chat"},
    "base_chat": {"label": "base_chat"},
    "message": {"label": "message", "placeholder": "message_hint"},
    "send": {"value": "send"},
    "stop": {"value": "stop"},
    "retry": {"value": "retry"},
    "undo": {"value": "undo"},
    "clear": {"value": "clear"},
    "settings": {"label": "settings"},
    "temperature": {"label": "temperature", "info": "temperature_info"},
    "top_p": {"label": "top_p", "info": "top_p_info"},
    "reply_length": {"label": "reply_length", "info": "reply_length_info"},
    "country": {"label": "country", "info": "country_info"},
    "compare": {"label": "compare", "info": "compare_info"},
    "feedback": {"label": "feedback"},
    "consent": {"label": "consent", "info": "consent_info"},
    "better": {"label": "better", "placeholder": "better_hint"},
    "send_better": {"value": "send_better"},
}


def words(name: str, language: str) -> dict[str, Any]:
    """The properties of one component that hold sentences."""
    shown: dict[str, Any] = {prop: text(key, language) for prop, key in TRANSLATED[name].items()}
    if name == "chat":
        shown["examples"] = [{"text": text(key, language)} for key in EXAMPLES]
    if name == "country":
        shown["choices"] = country_choices(language)
    return shown


def country_choices(language: str) -> list[tuple[str, str]]:
    return [(text(f"country_{code or 'none'}", language), code) for code in ("", "BD", "IN")]


class Layout:
    """Draws the page; every component is an attribute.

    Args:
        about: what is said about the model.
        defaults: settings of a reply until the visitor changes them.
        can_compare: the base model can answer beside the tuned one.
        takes_feedback: whether judgements can be stored.
    """

    def __init__(self, about: ui_parts.About, defaults: Settings, can_compare: bool, takes_feedback: bool):
        self.about_model, self.defaults = about, defaults
        self.can_compare, self.takes_feedback = can_compare, takes_feedback

    def lay_out(self) -> None:
        """Draws everything, in Bengali."""
        bn = "bn"
        self.history = gr.BrowserState([], storage_key="bnft-history", secret="kept-in-this-browser")
        self.saved_language = gr.BrowserState(bn, storage_key="bnft-language", secret="kept-in-this-browser")
        self.help = gr.HTML(ui_parts.help_strip(help_lines(None), bn), elem_id="help", padding=False)
        with gr.Row(elem_id="top", equal_height=False):
            self.header = gr.HTML(ui_parts.header(bn), padding=False)
            self.language = gr.Radio(
                [(name, code) for code, name in LANGUAGES.items()],
                value=bn,
                show_label=False,
                label="ভাষা / Language",
                container=False,
                elem_id="language",
            )
        with gr.Row(elem_id="chats"):
            self.chat = self._chatbot(elem_id="chat", show_label=False, editable="user", **words("chat", bn))
            self.base_chat = self._chatbot(elem_id="base-chat", visible=False, **words("base_chat", bn))
        self.card = gr.HTML("", elem_id="card", padding=False)
        self.status = gr.HTML(ui_parts.status(""), elem_id="status", padding=False)
        with gr.Row(elem_id="write", equal_height=True):
            self.message = gr.Textbox(
                lines=1,
                max_lines=6,
                show_label=False,
                container=False,
                scale=8,
                elem_id="message",
                **words("message", bn),
            )
            self.send = gr.Button(variant="primary", scale=1, min_width=80, elem_id="send", **words("send", bn))
            self.stop = gr.Button(
                variant="stop", scale=1, min_width=80, elem_id="stop", visible=False, **words("stop", bn)
            )
        with gr.Row(elem_id="again"):
            for name in ("retry", "undo", "clear"):
                button = gr.Button(size="sm", min_width=90, elem_id=name, **words(name, bn))
                setattr(self, name, button)
        self._lay_out_settings(bn)
        self.about = gr.HTML(ui_parts.about(self.about_model, bn), elem_id="about", padding=False)

    def _chatbot(self, **options: Any) -> gr.Chatbot:
        return gr.Chatbot(
            render_markdown=False,
            sanitize_html=True,
            allow_tags=False,
            latex_delimiters=[],
            allow_file_downloads=False,
            buttons=["copy"],
            layout="bubble",
            group_consecutive_messages=False,
            height="min(56vh, 34rem)",
            elem_classes="chat-log",
            **options,
        )

    def _lay_out_settings(self, language: str) -> None:
        def slider(name: str, low: float, high: float, step: float, value: float) -> gr.Slider:
            return gr.Slider(low, high, value=value, step=step, elem_id=name, **words(name, language))

        with gr.Accordion(open=False, elem_id="settings", **words("settings", language)) as self.settings:
            self.temperature = slider("temperature", 0.1, 1.5, 0.05, self.defaults.temperature)
            self.top_p = slider("top_p", 0.1, 1.0, 0.05, self.defaults.top_p)
            self.reply_length = slider("reply_length", 8, MAX_REPLY_TOKENS, 8, self.defaults.max_new_tokens)
            self.country = gr.Dropdown(value="", elem_id="country", filterable=False, **words("country", language))
            self.compare = gr.Checkbox(
                value=False, visible=self.can_compare, elem_id="compare", **words("compare", language)
            )
        with gr.Accordion(
            open=False, elem_id="feedback", visible=self.takes_feedback, **words("feedback", language)
        ) as self.feedback:
            self.consent = gr.Checkbox(value=False, elem_id="consent", **words("consent", language))
            self.better = gr.Textbox(lines=2, max_lines=8, elem_id="better", **words("better", language))
            self.send_better = gr.Button(size="sm", elem_id="send-better", **words("send_better", language))
