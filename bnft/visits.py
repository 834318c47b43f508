"""Who asks, and which reply is being written for which page: a stop, a new message or a closed tab ends that one only.

However many messages a page sends at once, one of them is answered and one waits: threads are few.
Knows nothing about what a reply is.
"""

from __future__ import annotations

import threading
from ipaddress import ip_address
from typing import Any

PATIENCE = 15.0  # seconds that a new message waits for the one before it to end


def visitor_of(request: Any) -> str:
    """The address that a request came from; where a proxy on this network stands between, the one that it tells."""
    host = request.client.host if request.client else ""
    told = request.headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
    try:
        return told if told and not ip_address(host).is_global else host
    except ValueError:  # no address: a socket of this machine
        return host


class Visit:
    """One reply in the making.

    Attributes:
        stop: set to end it.
        superseded: a newer message of the same page has taken over; nothing more may be shown for this one.
        history: the conversation with what was written so far; before anything was, that of the reply before it.
    """

    def __init__(self):
        self.stop = threading.Event()
        self.superseded = False
        self.history: list[dict] | None = None

    def supersede(self) -> None:
        self.superseded = True
        self.stop.set()


class Visits:
    """The replies in the making, by page."""

    def __init__(self):
        self._running: dict[str, Visit] = {}
        self._next: dict[str, Visit] = {}  # a page's newest message, while the reply before it comes to its end
        self._changed = threading.Condition()

    def begin(self, page: str) -> Visit:
        """Starts a reply; one that was still being written is ended first, and its conversation handed on.

        The visit is superseded already where a still newer message came while it waited.
        """
        visit = Visit()
        with self._changed:
            before = self._running.get(page)
            if before is None:
                self._running[page] = visit
                return visit
            before.supersede()
            if page in self._next:
                self._next[page].supersede()
            self._next[page] = visit
            self._changed.notify_all()
            self._changed.wait_for(lambda: visit.superseded or self._running.get(page) is visit, PATIENCE)
            if self._next.get(page) is visit:  # the one before it does not end
                self._hand_over(page, before)
        return visit

    def end(self, page: str, visit: Visit) -> None:
        visit.stop.set()
        with self._changed:
            if self._running.get(page) is visit:
                self._hand_over(page, visit)

    def _hand_over(self, page: str, before: Visit) -> None:
        """Lets the message that waits take the place of `before`."""
        del self._running[page]
        if following := self._next.pop(page, None):
            following.history = before.history
            self._running[page] = following
            self._changed.notify_all()

    def stop(self, page: str) -> None:
        with self._changed:
            visit = self._running.get(page)
        if visit:
            visit.stop.set()

    def __len__(self) -> int:
        return len(self._running)
