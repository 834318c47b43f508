"""The requests that a page and a program make of the chat's server, for benchmarks/chat_people.py.

A page is a heartbeat for as long as it is open, messages that join the queue, and one stream that brings changes of
the components.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
from gradio_client.utils import apply_diff

API = "/gradio_api"
PATIENCE = 900.0  # seconds after which a reply is lost


@dataclass
class Shown:
    """What a page shows: the values of the components, by the order in which a message changes them."""

    values: list = field(default_factory=list)
    frames: int = 0

    def change(self, data: list, whole: bool) -> None:
        if whole or not self.values:
            self.values = data
        else:
            self.values = [apply_diff(old, new) for old, new in zip(self.values, data, strict=True)]
        self.frames += 1

    def bubbles(self) -> list[tuple[str, str]]:
        shown = self.values[0] if self.values and isinstance(self.values[0], list) else []
        return [(message["role"], _plain(message["content"])) for message in shown]

    @property
    def status(self) -> str:
        return next((value for value in self.values if isinstance(value, str) and "status" in value), "")


class Wire:
    """One way to the server.

    Args:
        config: the server's description of its components and events.
        tokens: longest reply that is asked for.
    """

    def __init__(self, http: httpx.AsyncClient, config: dict, tokens: int):
        self.http, self.tokens = http, tokens
        ids = {component["props"].get("elem_id"): component["id"] for component in config["components"]}
        steps = {tuple(target): one for one in config["dependencies"] for target in one["targets"]}
        self.on_message = steps[ids["message"], "submit"]["id"]
        self.on_stop = steps[ids["stop"], "click"]["id"]

    async def ask(
        self, message: object, history: list[dict], place: Callable[[int], None] = lambda ahead: None
    ) -> tuple[str, str]:
        """The reply of `/chat` and how it ended; `place` is told how many are ahead."""
        data = [message, history, "bn", None, self.tokens, 0.1, 0.1]
        called = await self._post("/call/chat", {"data": data})
        text = ""
        async with self.http.stream("GET", f"{API}/call/chat/{called['event_id']}") as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: [") and (frame := json.loads(line[6:])[0]):
                    if not frame["text"].startswith(text) and not frame["finished"]:
                        return frame["text"], "shrank"
                    text = frame["text"]
                    place(frame["people_ahead"] or 0)
                    if frame["finished"]:
                        return text, frame["finish_reason"]
        return text, "lost"

    @asynccontextmanager
    async def page(self):
        """An open page: its name, and a heartbeat until it is closed."""
        name = f"{random.getrandbits(52):x}"
        beating = asyncio.create_task(self._beat(name))
        try:
            yield name
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _beat(self, name: str) -> None:
        async with self.http.stream("GET", f"{API}/heartbeat/{name}", timeout=None) as beats:
            async for _ in beats.aiter_raw():
                pass

    async def send(self, page: str, message: object, history: object) -> str:
        chosen = ["bn", 0.1, 0.1, self.tokens, "", False]
        body = {"data": [message, history, *chosen], "fn_index": self.on_message, "session_hash": page}
        return (await self._post("/queue/join", body | {"event_data": None, "trigger_id": None}))["event_id"]

    async def frames(self, page: str):
        """What the page shows, after every change, until the reply is over."""
        shown, started = Shown(), time.monotonic()
        async with self.http.stream("GET", f"{API}/queue/data", params={"session_hash": page}) as stream:
            async for line in stream.aiter_lines():
                if time.monotonic() - started > PATIENCE:  # the server's own beats let us look
                    raise TimeoutError("a reply was lost")
                frame = json.loads(line[6:]) if line.startswith("data: ") else {}
                if frame.get("msg") in ("process_generating", "process_completed"):
                    if not frame["success"]:
                        raise RuntimeError(f"the page was told of an error: {frame}")
                    last = frame["msg"] == "process_completed"
                    shown.change(frame["output"]["data"], whole=last)
                    yield shown
                if frame.get("msg") == "close_stream":
                    return

    async def stop(self, page: str) -> None:
        body = {"data": [], "fn_index": self.on_stop, "session_hash": page, "event_data": None, "trigger_id": None}
        await self._post("/run/predict", body)

    async def _post(self, path: str, body: dict) -> dict:
        # Escapes: half of a surrogate pair stays alone.
        content = json.dumps(body).encode()
        answer = await self.http.post(API + path, content=content, headers={"content-type": "application/json"})
        answer.raise_for_status()
        return answer.json()


def _plain(content: object) -> str:
    parts = content if isinstance(content, list) else [content]
    return "".join(part if isinstance(part, str) else part.get("text", "") for part in parts)
