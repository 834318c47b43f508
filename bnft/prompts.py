"""Conversations -> token ids, the same way for training, evaluation and chat.

The template's own text may hold control tokens, what a person or the corpus wrote may not: the two are tokenised
apart, so a typed `<|eot_id|>` stays plain text. Works with any chat template, because the contents are put into the
rendered text as marks and found again. Knows nothing about models; the tokenizer is given.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import TemplateError

from bnft.errors import UserError

IGNORED = -100  # label of a token that carries no loss, as in torch.nn.CrossEntropyLoss

# Noncharacters: no text holds them after cleaning, no template produces them.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_TOKENIZER_LOCK = threading.Lock()  # the switch that _ids turns is the tokenizer's, and chats run in threads
_MARK = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


@dataclass(frozen=True)
class Encoded:
    """Token ids of a conversation, and the same with `IGNORED` wherever no loss is taken."""

    input_ids: list[int]
    labels: list[int]


def chat_template(name: str) -> str:
    """The text of a template of this package: "llama-3.1" or "gemma-3"."""
    return files("bnft").joinpath(f"chat_templates/{name}.jinja").read_text(encoding="utf-8")


def with_system(messages: Sequence[dict], system_prompt: str) -> list[dict]:
    """The conversation with the system text in front, in place of any other."""
    return [{"role": "system", "content": system_prompt}, *(m for m in messages if m["role"] != "system")]


def encode(tokenizer, messages: Sequence[dict], max_length: int | None = None) -> Encoded:
    """Ids and labels of a whole conversation: every reply token and the token that ends the reply carry loss.

    A conversation longer than `max_length` is cut at its end; then the last reply has no end token in it.
    """
    ids: list[int] = []
    labels: list[int] = []
    after_reply = False
    for text, role in _pieces(tokenizer, messages, add_generation_prompt=False):
        piece = _ids(tokenizer, text, plain=bool(role))
        ids += piece
        if role == "assistant":
            labels += piece
        elif after_reply:  # the template's first token after a reply ends the turn
            labels += piece[:1] + [IGNORED] * (len(piece) - 1)
        else:
            labels += [IGNORED] * len(piece)
        after_reply = role == "assistant"
    return Encoded(ids[:max_length], labels[:max_length])


def encode_prompt(tokenizer, messages: Sequence[dict]) -> list[int]:
    """Ids of a conversation that waits for the assistant's next reply."""
    ids: list[int] = []
    for text, role in _pieces(tokenizer, messages, add_generation_prompt=True):
        ids += _ids(tokenizer, text, plain=bool(role))
    return ids


def end_token_ids(tokenizer) -> list[int]:
    """The tokens at which a reply of this template ends: the one after a reply, and the tokenizer's end token."""
    conversation = [{"role": "user", "content": "ক"}, {"role": "assistant", "content": "খ"}]
    text, role = _pieces(tokenizer, conversation, add_generation_prompt=False)[-1]
    after = [] if role else _ids(tokenizer, text, plain=False)[:1]
    return sorted({*after, tokenizer.eos_token_id} - {None})


def trim_history(tokenizer, messages: Sequence[dict], max_tokens: int) -> list[dict]:
    """Drops the oldest exchanges until the prompt fits; the system text and the newest message always stay.

    Raises:
        UserError: the newest message alone is longer than `max_tokens`.
    """
    system = [m for m in messages if m["role"] == "system"]
    turns = [m for m in messages if m["role"] != "system"]
    while True:
        length = len(encode_prompt(tokenizer, system + turns))
        if length <= max_tokens:
            return system + turns
        if len(turns) <= 1:
            raise UserError(f"the message is {length} tokens long, {max_tokens} fit", "Send a shorter message.")
        turns = turns[1:]
        while turns[0]["role"] == "assistant" and len(turns) > 1:
            turns = turns[1:]


def _pieces(tokenizer, messages: Sequence[dict], add_generation_prompt: bool) -> list[tuple[str, str]]:
    """The rendered conversation as (text, role) pieces; the role is empty for the template's own text."""
    if not tokenizer.chat_template:
        raise UserError(
            "the tokenizer has no chat template", "Take an instruct model, or give its tokenizer a chat template."
        )
    marked = [{**m, "content": f"{_OPEN}{i}{_CLOSE}"} for i, m in enumerate(messages)]
    try:
        rendered = tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=add_generation_prompt)
    except (TemplateError, TypeError) as error:
        raise UserError(
            f"the tokenizer's chat template cannot be used: {error}", "Take a model with another chat template."
        ) from error
    pieces = []
    position = 0
    for mark in _MARK.finditer(rendered):
        message = messages[int(mark.group(1))]
        pieces.append((rendered[position : mark.start()], ""))
        pieces.append((message["content"].strip(), message["role"]))
        position = mark.end()
    pieces.append((rendered[position:], ""))
    return [(text, role) for text, role in pieces if text or role == "assistant"]


def _ids(tokenizer, text: str, plain: bool) -> list[int]:
    """Ids of `text`; where it is plain, nothing in it is read as a control token."""
    backend = tokenizer.backend_tokenizer
    with _TOKENIZER_LOCK:
        backend.encode_special_tokens = plain
        try:
            return backend.encode(text, add_special_tokens=False).ids
        finally:
            backend.encode_special_tokens = False
