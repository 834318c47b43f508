"""How much of a server one visitor may take, so that something is left for others: an ASGI layer in front of Gradio.

Generous enough for a class behind one address, which is one visitor here. Knows nothing about what is served.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from bnft.visits import visitor_of

MOST_OPEN = 200  # requests of one visitor at a time; an open page keeps one, and one more while it is answered
BURST, REFILL = 300, 10.0  # requests that change something: at once, and in each second after that
REMEMBERED = 5_000  # visitors

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass
class _Visitor:
    left: float = BURST
    seen: float = 0.0
    open: int = 0

    def may(self, writes: bool) -> bool:
        now = time.monotonic()
        self.left = min(BURST, self.left + REFILL * (now - self.seen)) if self.seen else BURST
        self.seen = now
        if self.open >= MOST_OPEN or (writes and self.left < 1):
            return False
        self.left -= writes
        return True


class HttpLimits:
    """The layer; whoever asks for more is told 429.

    Args:
        app: what is behind it.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app
        self._visitors: OrderedDict[str, _Visitor] = OrderedDict()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        visitor = self._visitor(visitor_of(Request(scope)))
        if not visitor.may(writes=scope["method"] == "POST"):
            start = {"type": "http.response.start", "status": 429, "headers": [(b"retry-after", b"10")]}
            await send(start)
            return await send({"type": "http.response.body", "body": b""})
        visitor.open += 1
        try:
            await self.app(scope, receive, send)
        finally:
            visitor.open -= 1

    def _visitor(self, name: str) -> _Visitor:
        visitor = self._visitors.setdefault(name, _Visitor())
        self._visitors.move_to_end(name)
        if len(self._visitors) > REMEMBERED:
            self._visitors.popitem(last=False)
        return visitor
