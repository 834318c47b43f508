"""The line in front of the model, and which reply belongs to which page."""

import threading
import time

import pytest

from bnft.line import Line, LineFull
from bnft.visits import Visits


def serve(line, name, order, places, go=None):
    with line.join() as place:
        for ahead in place.wait(threading.Event()):
            places[name].append(ahead)
        order.append(name)
        if go:
            go.wait(10)


def test_first_come_first_served_and_the_place_is_told():
    line, order, go = Line(seats=1), [], threading.Event()
    places = {name: [] for name in range(4)}
    threads = []
    for name in range(4):
        threads.append(threading.Thread(target=serve, args=(line, name, order, places, go if name == 0 else None)))
        threads[-1].start()
        while len(line) <= name:
            time.sleep(0.001)
    time.sleep(0.05)
    go.set()
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2, 3]
    assert places[0] == []
    assert [places[name][0] for name in (1, 2, 3)] == [1, 2, 3]
    for seen in places.values():
        assert seen == sorted(seen, reverse=True)
    assert len(line) == 0


def test_as_many_as_there_are_seats_are_served_together():
    line = Line(seats=2)
    with line.join() as first, line.join() as second, line.join() as third:
        assert [line.ahead(place) for place in (first, second, third)] == [0, 0, 1]


def test_one_too_many_is_turned_away_and_the_line_goes_on():
    line = Line(seats=1, longest=1)
    with line.join(), line.join():
        with pytest.raises(LineFull), line.join():
            pass
        assert len(line) == 2
    assert len(line) == 0


def test_who_stops_waiting_gives_the_place_up():
    line, stop = Line(), threading.Event()
    with line.join():
        with line.join() as second:
            waiting = second.wait(stop)
            assert next(waiting) == 1
            stop.set()
            assert list(waiting) == []
        assert len(line) == 1


def test_a_generator_that_nobody_reads_any_more_gives_the_place_up():
    line = Line()

    def reply():
        with line.join() as place:
            yield from place.wait(threading.Event())
            yield "text"

    reading = reply()
    next(reading)
    assert len(line) == 1
    reading.close()
    assert len(line) == 0


def test_a_new_message_ends_the_reply_before_it_and_takes_its_conversation_over():
    visits = Visits()
    first, inherited = visits.begin("page")
    assert inherited is None
    first.history = ["so far"]

    def write():
        first.stop.wait(10)
        visits.end("page", first)

    writer = threading.Thread(target=write)
    writer.start()
    second, inherited = visits.begin("page")
    writer.join()
    assert inherited == ["so far"]
    assert first.superseded
    assert not second.stop.is_set()
    visits.end("page", second)
    assert len(visits) == 0


def test_stop_is_for_one_page_only():
    visits = Visits()
    one, _ = visits.begin("one")
    two, _ = visits.begin("two")
    visits.stop("one")
    visits.stop("nobody")
    assert (one.stop.is_set(), two.stop.is_set()) == (True, False)
