"""Which reply is being written for which open page, so that a stop, a new message or a closed tab ends that one only.

Knows nothing about what a reply is.
"""

from __future__ import annotations

import threading

PATIENCE = 15.0  # seconds that a new message waits for the one before it to end


class Visit:
    """One reply in the making.

    Attributes:
        stop: set to end it.
        superseded: a newer message of the same page has taken over; nothing more may be shown for this one.
        history: the conversation with what was written so far.
    """

    def __init__(self):
        self.stop = threading.Event()
        self.done = threading.Event()
        self.superseded = False
        self.history: list[dict] | None = None


class Visits:
    """The replies in the making, by page."""

    def __init__(self):
        self._running: dict[str, Visit] = {}
        self._lock = threading.Lock()

    def begin(self, page: str) -> tuple[Visit, list[dict] | None]:
        """Starts a reply; one that was still being written is ended first, and its conversation handed on."""
        visit = Visit()
        with self._lock:
            before = self._running.get(page)
            self._running[page] = visit
            if before:
                before.superseded = True
        if before is None:
            return visit, None
        before.stop.set()
        before.done.wait(PATIENCE)
        return visit, before.history

    def end(self, page: str, visit: Visit) -> None:
        visit.stop.set()
        visit.done.set()
        with self._lock:
            if self._running.get(page) is visit:
                del self._running[page]

    def stop(self, page: str) -> None:
        with self._lock:
            visit = self._running.get(page)
        if visit:
            visit.stop.set()

    def __len__(self) -> int:
        return len(self._running)
