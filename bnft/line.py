"""The line in front of a model that can serve so many people at once: first come, first served, place shown.

Knows nothing about what is served.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

HEARTBEAT = 1.0  # seconds between two looks at the line, so that a person who left is noticed


class LineFull(Exception):
    """Too many people wait already."""


class Place:
    """One person's place. `wait` yields how many come first, until it is this one's turn or `stop` is set."""

    def __init__(self, line: Line):
        self._line = line

    def wait(self, stop: threading.Event) -> Iterator[int]:
        while not stop.is_set():
            ahead = self._line.ahead(self)
            if ahead == 0:
                return
            yield ahead
            self._line.wait_for_change(self, ahead)


class Line:
    """People in the order in which they came.

    Args:
        seats: how many are served at the same time.
        longest: how many may wait; one more is turned away with `LineFull`.
    """

    def __init__(self, seats: int = 1, longest: int = 50):
        self.seats = seats
        self.longest = longest
        self._places: list[Place] = []
        self._changed = threading.Condition()

    @contextmanager
    def join(self) -> Iterator[Place]:
        """A place at the end; it is given up when the block is left, in whatever way."""
        place = Place(self)
        with self._changed:
            if len(self._places) >= self.seats + self.longest:
                raise LineFull
            self._places.append(place)
        try:
            yield place
        finally:
            with self._changed:
                self._places.remove(place)
                self._changed.notify_all()

    def ahead(self, place: Place) -> int:
        """How many must leave before it is this place's turn."""
        with self._changed:
            return self._ahead(place)

    def wait_for_change(self, place: Place, ahead: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ahead(place) != ahead, timeout=HEARTBEAT)

    def __len__(self) -> int:
        return len(self._places)

    def _ahead(self, place: Place) -> int:
        return max(0, self._places.index(place) - self.seats + 1)
