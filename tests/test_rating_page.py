"""The rating page without a browser: what it shows, what it keeps, and what it makes of anything a browser may send."""

import gradio as gr
import pytest

from bnft.rating_form import QUESTIONS, say
from bnft.rating_items import plan, read_items
from bnft.rating_page import ANSWERS, RatingPage, build_rating_page, rating_look
from bnft.rating_store import SYSTEMS, RatingStore
from bnft.ui_parts import status
from tests.test_rating_items import make_measured_run

WHO = {"rater": "রিনা", "native": "yes", "region": "BD"}
LOW = [question.low for _ in "ab" for question in QUESTIONS]
BUILD = "0" * 40


@pytest.fixture
def run(tmp_path, conversations):
    return make_measured_run(tmp_path / "run", conversations)


@pytest.fixture(scope="module")
def laid_out():
    page = RatingPage([], 3407, None, "method=greedy", BUILD)
    with gr.Blocks() as demo:
        page.lay_out()
        page.wire(demo)
    page.button_of_send = next(event for event in demo.fns.values() if event.fn == page.on_send)
    return page


@pytest.fixture
def page(laid_out, run):
    laid_out.items, laid_out.store = read_items(run), RatingStore(run)
    return laid_out


def told(page, changes):
    return changes[page.status]


def rate(page, who=WHO, answers=(*LOW, "A"), token=None):
    token = token or page.on_load(who)[page.token]
    return page.on_send(who, token, *answers)


def test_the_first_screen(page):
    changes = page.on_start(" রিনা ", "yes", "BD")
    first = next(plan(page.items, "রিনা", 3407))
    assert changes[page.who] == WHO
    assert changes[page.token] == first.token("রিনা")
    assert first.item.said[-1]["content"] in changes[page.said]
    for box, text in zip(page.replies, first.texts(), strict=True):
        assert text in changes[box]
    shown = "".join(str(changes[box]) for box in (page.said, *page.replies, page.progress, page.token))
    assert not any(system in shown for system in SYSTEMS), "nothing tells who wrote what"
    assert "১১টি জোড়ার মধ্যে ১ নম্বর" in changes[page.progress]


@pytest.mark.parametrize(
    ("entered", "sentence"),
    [
        (("", "yes", "BD"), "bad_rater"),
        (("<b>x</b>", "yes", "BD"), "bad_rater"),
        (("=cmd|' /C calc'!A0", "yes", "BD"), "bad_rater"),
        (("র" * 41, "yes", "BD"), "bad_rater"),
        ((None, "yes", "BD"), "bad_rater"),
        (({"a": 1}, "yes", "BD"), "bad_rater"),
        (("রিনা", None, "BD"), "missing_rater"),
        (("রিনা", "yes", None), "missing_rater"),
        (("রিনা", "perhaps", "BD"), "missing_rater"),
        (("রিনা", ["yes"], {"BD": 1}), "missing_rater"),
    ],
)
def test_whoever_cannot_be_known_is_asked_again(page, entered, sentence):
    changes = page.on_start(*entered)
    assert told(page, changes) == status(say(sentence, **({"most": 40} if sentence == "bad_rater" else {})))
    assert page.who not in changes


def test_a_rating_is_kept_with_all_that_it_is_about(page):
    seen = next(plan(page.items, "রিনা", 3407))
    changes = rate(page)
    assert told(page, changes) == status(say("kept_one"))
    (row,) = page.store.read()
    assert row == seen.columns("রিনা") | WHO | {
        **dict(zip(ANSWERS, map(str, (*LOW, "A")), strict=True)),
        "decoding": "method=greedy",
        "build": BUILD,
        "time": row["time"],
    }
    assert all(changes[radio] is None for radio in page.answers)
    assert changes[page.token] != seen.token("রিনা")


@pytest.mark.parametrize(
    "answers",
    [
        (*LOW, None),
        (*LOW, "tuned"),
        (*[9] * 12, "A"),
        (*[True] * 12, "A"),
        (*["3"] * 12, "A"),
        (),
        (*LOW, "A", "B", "B"),  # one too many is passed over
        ([], {}, None),
    ],
)
def test_only_whole_and_possible_answers_are_kept(page, answers):
    changes = rate(page, answers=answers)
    whole = len(answers) > 13
    assert len(page.store.read()) == whole
    assert ("জমা হয়নি" in told(page, changes)) is not whole
    if not whole:
        assert page.answers[0] not in changes, "what was answered stays on the page"


def test_few_open_questions_are_told_by_name(page):
    assert "ক-এর সহমর্মিতা, কোনটা ভালো" in told(page, rate(page, answers=(None, *LOW[1:], None)))
    assert "১৩টি প্রশ্নের" in told(page, rate(page, answers=()))


@pytest.mark.parametrize("token", ["", "0" * 16, None, 5, ["x"]])
def test_what_is_not_on_this_raters_screen_is_not_kept(page, token):
    changes = page.on_send(WHO, token, *LOW, "A")
    assert told(page, changes) == status(say("moved_on"))
    assert page.store.read() == []


def test_a_second_press_and_a_second_tab_keep_it_once(page):
    token = page.on_load(WHO)[page.token]
    rate(page, token=token)
    assert told(page, rate(page, token=token)) == status(say("moved_on"))
    assert len(page.store.read()) == 1


@pytest.mark.parametrize(
    "who", [None, {}, [], "রিনা", {"rater": "a,b", "native": "yes", "region": "BD"}, WHO | {"region": 1}]
)
def test_a_browser_that_remembers_nonsense_starts_anew(page, who):
    assert page.rating not in page.on_load(who)
    changes = page.on_send(who, "x", *LOW, "A")
    assert changes[page.rating]["visible"] is False
    assert page.store.read() == []


def test_whatever_the_page_answers_is_among_what_its_button_may_change(page):
    """Gradio refuses a whole answer for one component more, and the rater would see an error."""
    may_change = set(page.button_of_send.outputs)
    assert set(page.on_send({}, "x", *LOW, "A")) | set(rate(page)) <= may_change


def test_whoever_returns_goes_on(page, run):
    for _ in range(3):
        rate(page)
    again = RatingPage(page.items, 3407, RatingStore(run), "method=greedy", BUILD)  # the server was started again
    with gr.Blocks():
        again.lay_out()
    changes = again.on_start("  রিনা", "yes", "BD")
    assert "আগের ৩টি জোড়া" in told(again, changes)
    assert changes[again.token] == list(plan(page.items, "রিনা", 3407))[3].token("রিনা")


def test_rounds_end_with_thanks_and_all_ends_with_more(page):
    total = list(plan(page.items, "রিনা", 3407))
    sentences = [told(page, rate(page)) for _ in total]
    assert sentences[10] == status(say("round_done"))
    assert sentences[0] == sentences[9] == status(say("kept_one"))
    assert sentences[-1] == status(say("all_done"))
    changes = page.on_load(WHO)
    assert changes[page.rating]["visible"] is False
    assert len(page.store.read()) == len(total)
    for later in (changes, page.on_start("রিনা", "yes", "BD"), page.on_send(WHO, "0" * 16, *LOW, "A")):
        assert told(page, later) == status(say("all_done")), "nothing more is promised"


def test_a_full_disk_loses_nothing_on_the_page(page, monkeypatch):
    token = page.on_load(WHO)[page.token]

    def full(row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page.store, "append", full)
    changes = page.on_send(WHO, token, *LOW, "A")
    assert told(page, changes) == status(say("failed"))
    assert page.answers[0] not in changes


def test_texts_are_no_markup(page):
    item = page.items[0]
    evil = "<img src=x onerror=alert(1)> & <b>"
    item.said[-1]["content"] = evil
    texts = dict.fromkeys(SYSTEMS, evil)
    page.items = [type(item)(item.id, item.said, texts)]
    changes = page.on_load(WHO)
    for box in (page.said, *page.replies):
        assert "<img" not in changes[box]
        assert "&lt;img src=x" in changes[box]


def test_an_empty_reply_is_told(page):
    item = page.items[0]
    page.items = [type(item)(item.id, item.said, dict.fromkeys(SYSTEMS, ""))]
    assert say("nothing") in page.on_load(WHO)[page.replies[0]]


def test_the_page_asks_nobody_else_and_tells_programs_nothing(run):
    demo = build_rating_page(read_items(run), 1, RatingStore(run), "method=greedy", BUILD)
    assert demo.analytics_enabled is False
    assert not demo.get_api_info()["named_endpoints"]
    look = rating_look()
    assert "http" not in look["css"]
    assert set(look) == {"css", "head"}, "how it is served stays as it is for all pages"
    assert "tel:999" in str(demo.get_config_file())
