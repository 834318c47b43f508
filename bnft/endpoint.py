"""Replies from any OpenAI-compatible server (vLLM, TGI, `transformers serve`, llama.cpp), streamed by whole clusters.

The reading thread never outlives its request for longer than one time limit. Knows nothing about prompts or the page.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

import httpx
from huggingface_hub import InferenceClient, get_session
from huggingface_hub.errors import OfflineModeIsEnabled

from bnft.errors import UserError
from bnft.streaming import Piece, Sampling
from bnft.text import drop_torn_tail, grapheme_clusters

FIRST_WORD = 120.0  # seconds until the first piece: the server may have to load the model
NEXT_WORD = 30.0  # seconds between two pieces
LOOK = 0.1  # seconds between two looks at the stop event
MAX_PROMPT_CHARACTERS = 24_000  # of history and message; a server's own tokenizer is not known here
FAILURES = (httpx.HTTPError, httpx.StreamError, OSError, ValueError, KeyError, TypeError, AttributeError)


class EndpointError(Exception):
    """The server could not be reached, refused, or fell silent."""


class EndpointSource:
    """A chat model behind a URL. Many people are served at once, for the server has a queue of its own.

    Args:
        url: with or without `/v1`.
        model: its name there; by default the first one that the server lists.

    Raises:
        UserError: the URL is none, or nothing answers there.
    """

    seats = 64
    can_compare = False

    def __init__(
        self, url: str, model: str | None = None, first_word: float = FIRST_WORD, next_word: float = NEXT_WORD
    ):
        # The address is printed and logged, so nothing in it may be a secret; such a one is not repeated here either.
        if "@" in url or "?" in url or "#" in url:
            raise UserError("--endpoint holds more than an address", "Give it like http://127.0.0.1:8000/v1")
        try:
            httpx.URL(url)  # refuses more than urlsplit does
            parts = urlsplit(url)
            whole = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
        except (ValueError, httpx.InvalidURL):
            whole = False
        if not whole:
            raise UserError(f"--endpoint {url!r} is no URL", "Give it like http://127.0.0.1:8000/v1")
        self.url = url.rstrip("/")
        if not parts.path.rstrip("/"):
            self.url += "/v1"
        # The Hub's token goes to Hugging Face only; another server gets no credentials.
        trusted = parts.scheme == "https" and parts.hostname.endswith((".huggingface.cloud", ".huggingface.co"))
        self._headers = {} if trusted else {"authorization": None}
        self._first_word, self._next_word = first_word, next_word
        self.model = model or self._first_model()

    def _first_model(self) -> str:
        try:
            response = get_session().get(f"{self.url}/models", timeout=10)
            response.raise_for_status()
            names = [entry["id"] for entry in response.json()["data"]]
        except OfflineModeIsEnabled as error:
            raise UserError(f"HF_HUB_OFFLINE is set, so {self.url} is not asked", "Unset it for --endpoint.") from error
        except httpx.TransportError as error:
            raise UserError(f"nothing answers at {self.url}: {error}", "Start the server first.") from error
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            names = []
        return names[0] if names else "default"

    def stream(
        self, messages: Sequence[dict], sampling: Sampling, stop: threading.Event, base: bool = False
    ) -> Iterator[Piece]:
        """The text so far, each time it has grown by a whole cluster; the last piece carries the finish reason.

        Raises:
            EndpointError: the request failed or the server fell silent.
        """
        arrived: queue.Queue = queue.Queue()
        gone = threading.Event()
        threading.Thread(target=self._read, args=(_fitting(messages), sampling, arrived, gone), daemon=True).start()
        raw, shown, tokens, reason = "", "", 0, None
        try:
            while reason is None:
                item = self._next(arrived, stop, self._next_word if tokens else self._first_word)
                if item is None:
                    reason = "stopped"
                    break
                if isinstance(item, BaseException):
                    raise EndpointError(f"{self.url}: {item}") from item
                text, reason = item
                raw, tokens = raw + text, tokens + 1
                if (settled := settle(raw)) != shown and reason is None:
                    shown = settled
                    yield Piece(shown, tokens, None)
        finally:
            gone.set()
        whole = raw.replace("\ufffd", "").strip()
        yield Piece(whole if reason == "stop" else drop_torn_tail(whole), tokens, reason)

    def _next(self, arrived: queue.Queue, stop: threading.Event, patience: float):
        """The next item; None when stopped."""
        give_up = time.monotonic() + patience
        while not stop.is_set():
            try:
                return arrived.get(timeout=LOOK)
            except queue.Empty:
                if time.monotonic() > give_up:
                    raise EndpointError(f"{self.url} said nothing for {patience:.0f} seconds") from None
        return None

    def _read(self, messages: list[dict], sampling: Sampling, arrived: queue.Queue, gone: threading.Event) -> None:
        timeout = max(self._first_word, self._next_word)
        try:
            with InferenceClient(base_url=self.url, timeout=timeout, headers=self._headers) as client:
                chunks = client.chat_completion(
                    messages,
                    model=self.model,
                    stream=True,
                    max_tokens=sampling.max_new_tokens,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    seed=sampling.seed,
                )
                reason = None
                for chunk in chunks:
                    if gone.is_set():
                        return  # leaving the block closes the connection, which ends the server's work
                    for choice in chunk.choices[:1]:
                        arrived.put((choice.delta.content or "", None))
                        reason = choice.finish_reason or reason
                arrived.put(("", "length" if reason == "length" else "stop"))
        except FAILURES as error:
            arrived.put(error)


def settle(text: str) -> str:
    """The part of a growing text that can no longer change how it looks: all but its last, unfinished cluster."""
    text = text.replace("\ufffd", "")
    clusters = grapheme_clusters(text)
    if not clusters:
        return ""
    last = clusters[-1]
    if last.isspace() or (len(last) == 1 and not last.isalnum() and ord(last) < 0x3000):
        return text.strip()
    return drop_torn_tail(text[: len(text) - len(last)]).lstrip()


def _fitting(messages: Sequence[dict]) -> list[dict]:
    """System text and as many of the newest whole exchanges as fit."""
    system = [m for m in messages if m["role"] == "system"]
    turns = [m for m in messages if m["role"] != "system"]
    while len(turns) > 2 and sum(len(m["content"]) for m in turns) > MAX_PROMPT_CHARACTERS:
        turns = turns[2:]
    return [*system, *turns]
