"""What a served page answers to, and the headers of every answer: an ASGI layer in front of Gradio.

Gradio offers much that these pages have no use for: uploads, files, a proxy, a reader of other servers' addresses. Here
stands what is needed; all else is not found. Knows nothing about what is on the pages.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from bnft.config import from_environment

MAX_BODY = 8 * 2**20  # bytes of a request: the longest conversation that `read_history` keeps, twice, with its names
_READ = (
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/pwa_icon(/\d+)?|/(assets|static|svelte)/.+|"
    r"/gradio_api/(info/?|openapi\.json|app_id/?|theme\.css|startup-events|queue/(data|status)|heartbeat/\w+|"
    r"user/?|login_check/?|call/\w+/\w+)"
)
_WRITE = r"/gradio_api/(queue/join|run/\w+/?|api/\w+/?|call/(v2/)?\w+/?|cancel|reset/?)"
_OPEN = {"GET": re.compile(_READ), "HEAD": re.compile(_READ), "POST": re.compile(_WRITE)}
_FONT = re.compile(r"/fonts/([\w-]+\.woff2)")

# Nothing but this server is ever asked for anything, whatever a reply or a message holds.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self'; base-uri 'self'; form-action 'none'; object-src 'none'; "
    "frame-ancestors 'self'"
)
_SPACES = " https://huggingface.co https://*.hf.space"  # a Space is a frame in the Hub's page

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def headers() -> dict[str, str]:
    """What every answer tells the browser."""
    return {
        "content-security-policy": _POLICY + (_SPACES if from_environment("SPACE_ID") else ""),
        "permissions-policy": "camera=(), geolocation=(), microphone=()",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }


class HttpGuard:
    """The layer.

    Args:
        app: what is behind it.
        fonts: their folder. Pages know it as `fonts/`, which tells nobody where it lies on the server.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], fonts: Path):
        self.app, self.fonts = app, fonts
        self._headers = [(name.encode(), value.encode()) for name, value in headers().items()]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                named = {name for name, _ in self._headers}
                kept = [(name, value) for name, value in message.get("headers", ()) if name.lower() not in named]
                message = {**message, "headers": [*kept, *self._headers]}
            await send(message)

        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if scope["method"] in ("GET", "HEAD") and (font := _FONT.fullmatch(path)):
                path = f"/gradio_api/file={(self.fonts / font[1]).as_posix()}"
                return await self.app({**scope, "path": path}, receive, with_headers)
            if (pattern := _OPEN.get(scope["method"])) and pattern.fullmatch(path):
                return await self.app(scope, receive, with_headers)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        await with_headers({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
