"""The line in front of the model, and which reply belongs to which page."""

import threading
import time
from contextlib import ExitStack

import pytest
from starlette.requests import Request

from bnft.line import Line, LineFull
from bnft.visits import Visits, visitor_of


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


@pytest.mark.parametrize(
    ("a_turn", "came", "served"),
    [
        (1, "aab", "aba"),  # a's second message comes after b's first
        (1, "aaaabbc", "abcabaa"),
        (2, "aaaabbc", "aabbcaa"),
        (1, "a..a", "a..a"),  # who is not known stands alone
        (1, "abc", "abc"),
    ],
)
def test_nobody_keeps_others_waiting_with_many_messages(a_turn, came, served):
    line, order = Line(seats=1, a_turn=a_turn), ""
    stays = [(ExitStack(), visitor) for visitor in came]
    places = [stay.enter_context(line.join(visitor.strip("."))) for stay, visitor in stays]
    for _ in came:
        ahead = [line.ahead(place) if place in line._places else None for place in places]
        stay, visitor = stays[ahead.index(0)]
        order += visitor
        stay.close()
    assert order == served


def test_when_the_line_is_full_the_greediest_gives_up_the_newest_place():
    line = Line(seats=1, longest=3, a_turn=1)
    with line.join("a"), line.join("a") as second, line.join("a") as third, line.join("b"):
        line.ahead(second)
        with line.join("c") as place:
            assert line.ahead(place) == 2
            assert len(line) == 4
            with pytest.raises(LineFull):
                list(third.wait(threading.Event()))
            assert line.ahead(second) == 3, "it came before b and c, but it is a's second"
            with pytest.raises(LineFull), line.join("a"):
                pass
    assert len(line) == 0


def test_nobody_is_turned_away_who_is_served():
    line = Line(seats=2, longest=0)
    with line.join("a") as first, line.join("a") as second:
        assert line.ahead(first) == line.ahead(second) == 0
        with pytest.raises(LineFull), line.join("b"):
            pass


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
    first = visits.begin("page")
    assert first.history is None
    first.history = ["so far"]

    def write():
        first.stop.wait(10)
        visits.end("page", first)

    writer = threading.Thread(target=write)
    writer.start()
    second = visits.begin("page")
    writer.join()
    assert second.history == ["so far"]
    assert first.superseded
    assert not second.stop.is_set()
    visits.end("page", second)
    assert len(visits) == 0


def test_of_many_messages_at_once_the_newest_is_answered_and_none_waits_for_long():
    visits, begun = Visits(), []
    first = visits.begin("page")

    def send():
        visit = visits.begin("page")
        begun.append(visit)
        if visit.superseded:
            visits.end("page", visit)

    senders = [threading.Thread(target=send) for _ in range(100)]
    for sender in senders:
        sender.start()
    while len(begun) < 99:  # all but the newest give up although the first is still being written
        time.sleep(0.001)
    assert first.stop.is_set()
    visits.end("page", first)
    for sender in senders:
        sender.join(10)
    (last,) = [visit for visit in begun if not visit.superseded]
    assert not last.stop.is_set()
    visits.end("page", last)
    assert len(visits) == 0
    assert visits._next == {}


def test_a_reply_that_does_not_end_is_passed_by(monkeypatch):
    monkeypatch.setattr("bnft.visits.PATIENCE", 0.01)
    visits = Visits()
    stuck = visits.begin("page")
    stuck.history = ["so far"]
    second = visits.begin("page")
    assert (second.superseded, second.history) == (False, ["so far"])
    visits.end("page", stuck)
    visits.stop("page")
    assert second.stop.is_set()


@pytest.mark.parametrize(
    ("peer", "told", "visitor"),
    [
        ("8.8.8.8", "", "8.8.8.8"),
        ("8.8.8.8", "1.2.3.4", "8.8.8.8"),  # only a proxy on this network is believed
        ("10.0.0.7", "6.6.6.6, 1.2.3.4", "1.2.3.4"),  # what comes before the last one anybody may have written
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", "2001:db8::1", "2001:db8::1"),
        ("testclient", "1.2.3.4", "testclient"),
        (None, "1.2.3.4", ""),
    ],
)
def test_who_asks(peer, told, visitor):
    headers = [(b"x-forwarded-for", told.encode())] if told else []
    request = Request({"type": "http", "client": peer and (peer, 1), "headers": headers})
    assert visitor_of(request) == visitor


def test_stop_is_for_one_page_only():
    visits = Visits()
    one, two = visits.begin("one"), visits.begin("two")
    visits.stop("one")
    visits.stop("nobody")
    assert (one.stop.is_set(), two.stop.is_set()) == (True, False)
