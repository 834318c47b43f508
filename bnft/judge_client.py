"""The server behind the judge: one question over the OpenAI-compatible chat protocol, asked with patience.

The key comes from BNFT_JUDGE_KEY and goes into one request header, nowhere else. Knows nothing about what is asked.
"""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from bnft.config import from_environment
from bnft.errors import UserError

KEY = "BNFT_JUDGE_KEY"
PATIENCE = 120.0  # seconds for one answer: a reasoning model thinks for a while
PAUSE = 2.0  # seconds before the second try, doubled before each further one
LONGEST_PAUSE = 120.0  # a server that asks for more is asked again after this
TRIES = 4
MAX_BYTES = 2**20  # of one answer
PASSING = (408, 409, 425, 429)  # refusals that another try may outlive; the other 4xx stay as they are
DECODING = {"temperature": 0, "max_tokens": 2048}

T = TypeVar("T")


class Unanswered(Exception):
    """One try brought no usable answer.

    Args:
        problem: what kind of failure, in a few words that can be counted.
        detail: more of it, for the file of raw answers.
        again: whether another try makes sense.
        wait: seconds after which the server wants to be asked again.
    """

    def __init__(self, problem: str, detail: str = "", again: bool = True, wait: float | None = None):
        super().__init__(problem)
        self.problem, self.detail, self.again, self.wait = problem, detail, again, wait


@dataclass(frozen=True)
class Answer:
    """What the model wrote, the model's name as the server tells it, and the decoding that was asked for."""

    text: str
    model: str
    decoding: str


class JudgeClient:
    """A chat model behind a URL.

    Args:
        url: with or without `/v1`; `EvalConfig` has checked it.
        model: its name there; by default the first one that the server lists.
        patience, pause: seconds for one answer, and before the second try.

    Raises:
        UserError: the key in the environment is no key.
    """

    def __init__(self, url: str, model: str | None = None, patience: float = PATIENCE, pause: float = PAUSE):
        self._url = url.rstrip("/")
        if not httpx.URL(url).path.rstrip("/"):
            self._url += "/v1"
        self._model, self._patience, self._pause = model, patience, pause
        self._key = from_environment(KEY).strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(f"{KEY} holds characters that no key has", "Copy the key again, without line breaks.")
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(patience, connect=min(patience, 20)))
        self._decoding: dict[str, Any] = DECODING
        self.stop = threading.Event()

    def find_model(self) -> str:
        """The judge's name.

        Raises:
            Unanswered: none was given, and the server does not say which it has.
        """
        if not self._model:
            listed = self.patiently(lambda: self._request("GET", "/models"))
            self._model = self._name(_string(lambda: listed["data"][0]["id"], "no list of models"))
            if not self._model:
                raise Unanswered("no list of models")
        return self._model

    def complete(self, messages: list[dict[str, str]]) -> Answer:
        """One try at one answer.

        Raises:
            Unanswered: with the reason.
        """
        body = {"model": self.find_model(), "messages": messages}
        decoding = self._decoding
        try:
            reply = self._request("POST", "/chat/completions", body | decoding)
        except Unanswered as error:
            if error.problem not in ("HTTP 400", "HTTP 422") or not decoding:
                raise
            # Some models take no temperature and no max_tokens, and say so with such a status.
            reply = self._request("POST", "/chat/completions", body)
            self._decoding = decoding = {}
        text = _string(lambda: reply["choices"][0]["message"]["content"], "no chat completion")
        served = reply.get("model")
        model = (isinstance(served, str) and self._name(served)) or self.find_model()
        return Answer(self._without_key(text), model, ",".join(f"{k}={v}" for k, v in decoding.items()))

    def patiently(self, work: Callable[[], T]) -> T:
        """Tries again after a pause that doubles, or the one that the server asks for.

        Raises:
            Unanswered: the last try's.
        """
        for attempt in itertools.count(1):
            try:
                return work()
            except Unanswered as error:
                # Several threads that were refused together must not come back together.
                pause = (
                    self._pause * 2 ** (attempt - 1) * random.uniform(0.75, 1.25) if error.wait is None else error.wait
                )
                if not error.again or attempt == TRIES or self.stop.wait(min(pause, LONGEST_PAUSE)):
                    raise

    def _request(self, method: str, path: str, body: dict | None = None) -> dict[str, Any]:
        # httpx's own limit is for one read: a server that sends a byte now and then would hold it for ever.
        deadline = time.monotonic() + self._patience
        data = bytearray()
        try:
            with self._client.stream(method, self._url + path, json=body) as response:
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > MAX_BYTES or time.monotonic() > deadline:
                        raise Unanswered("timeout" if len(data) <= MAX_BYTES else "an answer without end")
        except httpx.TimeoutException as error:
            raise Unanswered("timeout", str(error)) from error
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError) as error:
            raise Unanswered("no connection", self._without_key(f"{type(error).__name__}: {error}")) from error
        text = data.decode("utf-8", "replace")
        if response.status_code != 200:
            again = response.status_code >= 500 or response.status_code in PASSING
            wait = retry_after(response.headers.get("retry-after", ""))
            detail = self._without_key(text)[:500]
            raise Unanswered(f"HTTP {response.status_code}", detail, again, wait)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise Unanswered("no chat completion", self._without_key(text)[:500])
        return value

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text

    def _name(self, text: str) -> str:
        """A server's name for a model, fit for a terminal and a card."""
        shown = "".join(sign for sign in text if sign.isprintable()).strip()
        return self._without_key(shown)[:100]


def retry_after(value: str) -> float | None:
    """Seconds in a Retry-After header: a number, or an HTTP date (RFC 9110, 10.2.3); None where it is neither."""
    if value.strip().isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _string(look: Callable[[], Any], problem: str) -> str:
    try:
        found = look()
    except (LookupError, TypeError):
        found = None
    if not isinstance(found, str):
        raise Unanswered(problem)
    return _plain(found)


def _plain(text: str) -> str:
    """Without half a surrogate pair, which JSON can carry and no file can."""
    return text.encode("utf-8", "replace").decode()
