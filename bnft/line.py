"""The line in front of what can serve so many people at once, and every place in it is told.

First come, first served, but nobody takes the whole line: what is more than a few messages waits for all others'.
When the line is full, whoever holds most of it gives up the newest place. Knows nothing about what is served.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

HEARTBEAT = 2.0  # seconds between two looks at the line: often enough to notice who left; each look costs the page


class LineFull(Exception):
    """Too many people wait already."""


class Place:
    """One person's place. `wait` yields how many come first, until it is this one's turn or `stop` is set.

    Attributes:
        turn: places of a lower turn come first.
        served: its turn has come, and nobody takes it away.
    """

    def __init__(self, line: Line, visitor: str, turn: int):
        self._line, self.visitor, self.turn, self.served = line, visitor, turn, False

    def wait(self, stop: threading.Event) -> Iterator[int]:
        """Raises LineFull where the place was given to somebody who held fewer."""
        while not stop.is_set():
            ahead = self._line.ahead(self)
            if ahead == 0:
                return
            yield ahead
            self._line.wait_for_turn(self)

    def wait_silently(self) -> None:
        """Waits until the turn has come, telling nobody."""
        for _ in self.wait(threading.Event()):
            pass


class Line:
    """People by turns, and within a turn in the order in which they came.

    This is start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996).

    Args:
        seats: how many are served at the same time.
        longest: how many may wait; one more is turned away with `LineFull`.
        a_turn: how many places of one visitor are of the same turn; mobile networks give many people one address.
    """

    def __init__(self, seats: int = 1, longest: int = 50, a_turn: int = 5):
        self.seats, self.longest, self.a_turn = seats, longest, a_turn
        self._places: list[Place] = []  # as they came
        self._turn = 0  # of whoever is served
        self._had: dict[str, int] = {}  # places of each visitor until now, those of turns that it missed among them
        self._changed = threading.Condition()

    @contextmanager
    def join(self, visitor: str = "") -> Iterator[Place]:
        """A place at the end; it is given up when the block is left, in whatever way.

        Args:
            visitor: whose place it is; without a name everybody is somebody else.
        """
        with self._changed:
            if len(self._places) >= self.seats + self.longest:
                self._turn_away(visitor)
            had = max(self._turn * self.a_turn, self._had.get(visitor, 0))
            place = Place(self, visitor, had // self.a_turn)
            if visitor:
                self._had[visitor] = had + 1
            self._places.append(place)
        try:
            yield place
        finally:
            with self._changed:
                if place in self._places:
                    self._places.remove(place)
                if not self._places:
                    self._had.clear()
                self._changed.notify_all()

    def ahead(self, place: Place) -> int:
        """How many must leave before it is this place's turn."""
        with self._changed:
            ahead = self._ahead(place)
            if ahead == 0 and not place.served:
                place.served, self._turn = True, max(self._turn, place.turn)
                self._had = {name: had for name, had in self._had.items() if had > self._turn * self.a_turn}
            return ahead

    def wait_for_turn(self, place: Place) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ahead(place) == 0, timeout=HEARTBEAT)

    def __len__(self) -> int:
        return len(self._places)

    def _ahead(self, place: Place) -> int:
        if place not in self._places:
            raise LineFull
        order = sorted(self._places, key=lambda one: (not one.served, one.turn))
        return max(0, order.index(place) - self.seats + 1)

    def _turn_away(self, visitor: str) -> None:
        """Frees the newest place of whoever holds most, or raises LineFull where nobody holds two more than this."""
        held = Counter(place.visitor for place in self._places if place.visitor)
        (most, number), *_ = held.most_common(1) or [("", 0)]
        newest = next((one for one in reversed(self._places) if one.visitor == most and not one.served), None)
        if newest is None or number < held[visitor] + 2:
            raise LineFull
        self._places.remove(newest)
        self._changed.notify_all()
