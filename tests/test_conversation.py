"""What one page shows while a reply is written: from a scripted `reply`, frame by frame."""

import threading
import time

import pytest

from bnft.conversation import FRAME_GAP, MOST_UNREAD, Conversations, take_back
from bnft.turns import MAX_MESSAGES, Settings, Update, read_history
from bnft.ui_strings import text

SETTINGS = Settings()


def said(content):
    return {"role": "user", "content": content}


def answered(content, **more):
    return {"role": "assistant", "content": content, **more}


class Script:
    """A reply that follows a script and remembers what it was asked."""

    def __init__(self, *updates, base=()):
        self.updates, self.base, self.asked = updates, base, []

    def __call__(self, message, history, settings, stop):
        self.asked.append((message, list(history), settings.base))
        yield from self.base if settings.base else self.updates


def talk(script, message="ক", before=(), compare=False):
    return list(Conversations(script).converse("page", message, list(before), SETTINGS, compare))


def test_the_question_stands_there_at_once_and_the_reply_grows_under_it():
    frames = talk(Script(Update(), Update("খ"), Update("খ গ", finish_reason="stop")), before=[said("১"), answered("২")])
    assert frames[0].history == [said("১"), answered("২"), said("ক")]
    assert (frames[0].box, frames[0].running, frames[0].settled) == ("", True, True)
    assert frames[0].status == text("thinking", "bn")
    assert frames[-1].history[-1] == answered("খ গ")
    assert (frames[-1].running, frames[-1].settled, frames[-1].status) == (False, True, "")


def test_a_long_talk_keeps_as_many_messages_as_are_read_again():
    """Else the bubble that somebody edits or rates would be another message by the time it has come back."""
    talked = [said("১"), answered("২")] * MAX_MESSAGES
    frame = talk(Script(Update(), Update("খ", finish_reason="stop")), before=read_history(talked))[-1]
    assert len(frame.history) == MAX_MESSAGES
    assert read_history(frame.history) == frame.history


def test_the_question_is_shown_without_what_no_stream_can_carry():
    frames = talk(Script(Update(), Update("খ", finish_reason="stop")), message=" ক\ud800\x00খ ")
    assert frames[-1].history[0] == said("কখ")


def test_a_refused_message_stays_in_its_box():
    (frame,) = talk(Script(Update("ছোট করে লিখুন", card="card", finish_reason="refused")), before=[said("১")])
    assert frame.history == [said("১")]
    assert (frame.box, frame.status, frame.card, frame.running) == (None, "ছোট করে লিখুন", "card", False)


def test_the_card_comes_with_the_first_frame():
    frames = talk(Script(Update(card="card"), Update("খ", "card", "stop")))
    assert [frame.card for frame in frames] == ["card"] * len(frames)


def test_an_error_is_told_in_the_conversation_but_marked_as_no_reply():
    frames = talk(Script(Update(), Update("দুঃখিত", finish_reason="error")))
    assert frames[-1].history == [said("ক"), answered("দুঃখিত", notice=True)]


@pytest.mark.parametrize(("reason", "key"), [("length", "cut_off"), ("stopped", "was_stopped")])
def test_the_status_says_why_a_reply_ended_early(reason, key):
    assert talk(Script(Update(), Update("খ", finish_reason=reason)))[-1].status == text(key, "bn")


def test_the_place_in_the_line_is_shown():
    frames = talk(Script(Update(), Update(ahead=2), Update("খ", finish_reason="stop")))
    assert "২ জন" in frames[1].status


def test_stopped_before_the_first_word_leaves_no_empty_reply():
    assert talk(Script(Update(), Update(finish_reason="stopped")))[-1].history == [said("ক")]


def test_the_base_model_answers_beside_the_tuned_one():
    script = Script(Update(), Update("সুর", finish_reason="stop"), base=[Update(), Update("মূল", finish_reason="stop")])
    frames = talk(script, compare=True)
    assert frames[-1].history == [said("ক"), answered("সুর", base="মূল")]
    assert [base for _, _, base in script.asked] == [False, True]
    assert any(frame.status == text("thinking_base", "bn") for frame in frames)


def test_after_a_stop_the_base_model_is_not_asked():
    script = Script(Update(), Update("সু", finish_reason="stopped"), base=[Update("মূল", finish_reason="stop")])
    assert talk(script, compare=True)[-1].history == [said("ক"), answered("সু")]
    assert len(script.asked) == 1


def test_frames_are_at_most_25_a_second():
    def fast(message, history, settings, stop):
        for i in range(200):
            time.sleep(0.001)
            yield Update("খ" * i)
        yield Update("খ" * 200, finish_reason="stop")

    started = time.monotonic()
    frames = talk(fast)
    assert len(frames) <= 25 * (time.monotonic() - started) + 4
    assert frames[-1].history[-1]["content"] == "খ" * 200


def test_a_new_message_ends_the_first_reply_and_follows_what_was_written():
    writing = threading.Event()

    def reply(message, history, settings, stop):
        yield Update()
        if message == "প্রথম":
            yield Update("অর্ধেক")
            writing.set()
            assert stop.wait(10)
            yield Update("অর্ধেক", finish_reason="stopped")
        else:
            yield Update(f"{len(history)} আগে", finish_reason="stop")

    conversations = Conversations(reply)
    first = []
    thread = threading.Thread(target=lambda: first.extend(conversations.converse("page", "প্রথম", [], SETTINGS)))
    thread.start()
    assert writing.wait(10)
    last = list(conversations.converse("page", "দ্বিতীয়", [], SETTINGS))[-1]
    thread.join(10)
    assert last.history == [said("প্রথম"), answered("অর্ধেক"), said("দ্বিতীয়"), answered("2 আগে")]
    assert all(frame.history[-1]["content"] != "দ্বিতীয়" for frame in first)
    assert len(conversations.visits) == 0


def test_a_page_that_reads_slowly_gets_fewer_frames_and_the_whole_reply():
    def reply(message, history, settings, stop):
        yield Update()
        for i in range(1, 20):
            time.sleep(FRAME_GAP * 1.2)
            yield Update("খ" * i)
        yield Update("খ" * 20, finish_reason="stop")

    kept = []
    for frame in Conversations(reply, lambda page: len(kept)).converse("page", "ক", [], SETTINGS):
        kept.append(frame)
    assert len(kept) == MOST_UNREAD + 2, "the end and the rest after it always come"
    assert kept[-1].history[-1]["content"] == "খ" * 20


def test_of_many_messages_at_once_only_the_newest_is_answered():
    begun, go, asked, shown = threading.Event(), threading.Event(), [], []

    def reply(message, history, settings, stop):
        asked.append(message)
        yield Update()
        if message == "প্রথম":
            begun.set()
            assert go.wait(10)
        yield Update("খ", finish_reason="stop")

    conversations = Conversations(reply)
    first = threading.Thread(target=lambda: list(conversations.converse("page", "প্রথম", [], SETTINGS)))
    first.start()
    assert begun.wait(10)
    others = [
        threading.Thread(target=lambda: shown.append(list(conversations.converse("page", "পরে", [], SETTINGS))))
        for _ in range(50)
    ]
    for other in others:
        other.start()
    while len(shown) < 49:  # they give up their threads although the first is still being written
        time.sleep(0.001)
    go.set()
    for thread in (first, *others):
        thread.join(10)
    assert asked == ["প্রথম", "পরে"]
    assert [frames for frames in shown if frames] == [shown[-1]]
    assert len(conversations.visits) == 0


def test_a_page_that_is_closed_stops_its_reply():
    stops = []

    def reply(message, history, settings, stop):
        stops.append(stop)
        yield Update()
        yield Update("খ")

    frames = Conversations(reply).converse("page", "ক", [], SETTINGS)
    next(frames)
    frames.close()
    assert stops[0].is_set()


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], ([], "")),
        ([said("ক")], ([], "ক")),
        ([said("ক"), answered("খ"), said("গ"), answered("ঘ")], ([said("ক"), answered("খ")], "গ")),
        ([answered("খ")], ([answered("খ")], "")),
    ],
)
def test_take_back(history, expected):
    assert take_back(history) == expected
