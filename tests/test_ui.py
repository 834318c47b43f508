"""The page without a browser: its sentences, its HTML, what it tells the API, and what feedback is kept."""

import json
import re
import string

import gradio as gr
import pytest
from starlette.requests import Request

from bnft import ui_strings
from bnft.api import to_json
from bnft.crisis_cards import help_lines
from bnft.feedback import CORRECTIONS, RATINGS, FeedbackStore
from bnft.http_limits import HttpLimits
from bnft.turns import Card, Settings, Update
from bnft.ui import GIVEN_UP, Page, build_demo
from bnft.ui_layout import TRANSLATED, words
from bnft.ui_look import ASSETS, head, launch_options, style_sheet
from bnft.ui_parts import About, about, bubbles, crisis, help_strip, inert, measured, not_inert, script_strings, status
from bnft.ui_strings import digits, keys, number, text

REQUEST = gr.Request(Request({"type": "http", "client": ("127.0.0.1", 1), "headers": []}))
ABOUT = About("laptop1", "Gemma 3 270M", "gemma")
METRICS = {
    "base": {"bits_per_byte": {"value": 0.8021, "n": 49}, "chrf++": {"value": 11.6, "n": 24}},
    "tuned": {"bits_per_byte": {"value": 0.682, "n": 49}, "chrf++": {"value": 17.74, "n": 24}},
}


def reply(message, history, settings, stop):
    yield Update()
    yield Update(f"{message}?", finish_reason="stop")


def make_page(store=None, sensitive=False, **more):
    return Page(reply, lambda *_: sensitive, ABOUT, Settings(), "শুনুন।", store, more.get("can_compare", False))


# -- sentences ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", keys())
def test_every_sentence_is_there_in_both_languages_with_the_same_values(key):
    bengali, english = ui_strings._STRINGS[key]
    fields = [sorted(name for _, name, _, _ in string.Formatter().parse(s) if name) for s in (bengali, english)]
    assert fields[0] == fields[1]
    assert not re.search("[\u0980-\u09ff]", english)
    assert "\ufffd" not in bengali
    if not key.startswith("licence_"):  # names of licences stay as they are
        assert re.search("[\u0980-\u09ff]", bengali)
        assert not re.search(r"[0-9]", bengali), "Bengali digits in Bengali"


@pytest.mark.parametrize(
    ("value", "bengali", "english"),
    [(2, "২", "2"), (4000, "৪,০০০", "4,000"), (0.68213, "০.৬৮২", "0.682"), (17.74, "১৭.৭", "17.7")],
)
def test_numbers_in_the_digits_of_the_language(value, bengali, english):
    assert (number(value, "bn"), number(value, "en")) == (bengali, english)


def test_telephone_numbers():
    assert digits("০৯৬১২-১১৯৯১১", "en") == digits("09612-119911", "en") == "09612-119911"
    assert digits("09612-119911", "bn") == "০৯৬১২-১১৯৯১১"


def test_a_place_in_the_line():
    assert text("waiting", "bn", people=12).startswith("আপনার আগে ১২ জন আছেন।")
    assert text("waiting", "en", people=12).startswith("12 ahead of you.")


# -- HTML --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    ["<b>", "</p>", "<!--", "<?x", "&lt;b&gt;", "&#60;", "<img src=x onerror=alert(1)>", "a < b & c", "ক<খ", "<3", "&"],
)
def test_what_people_write_is_no_markup_and_comes_back_as_written(written):
    shown = inert(written)
    assert not re.search(r"<[A-Za-z/!?]|&[#A-Za-z]", shown)
    assert shown.replace("\u2060", "") == written
    assert not_inert(shown) == written


def test_bubbles_hold_only_roles_and_inert_texts():
    history = [
        {"role": "user", "content": "<b>"},
        {"role": "assistant", "content": "ক", "base": "খ", "notice": True},
    ]
    assert bubbles(history) == [{"role": "user", "content": "<\u2060b>"}, {"role": "assistant", "content": "ক"}]
    assert bubbles(history, base=True)[1] == {"role": "assistant", "content": "খ"}
    assert bubbles([history[0], {"role": "assistant", "content": "ক"}], base=True) == [bubbles(history)[0]]


@pytest.mark.parametrize("language", ["bn", "en"])
def test_help_lines_can_be_tapped(language):
    shown = help_strip(help_lines(None), language)
    assert shown.count('href="tel:') == len(help_lines(None))
    for line in help_lines(None):
        assert f'href="tel:{line.tel}"' in shown
        assert digits(line.number, language) in shown
    assert len(help_strip(help_lines("BD"), language)) < len(shown)


@pytest.mark.parametrize(("grave", "role"), [(True, "alert"), (False, "note")])
def test_a_card_is_announced_as_gravely_as_it_is_and_escaped(grave, role):
    card = Card("<b>", "আপনি একা নন & থাকুন", help_lines("BD"), grave)
    shown = crisis(card, "bn")
    assert f'role="{role}"' in shown
    assert "&lt;b&gt;" in shown
    assert "&amp; থাকুন" in shown
    assert shown.count("tel:") == len(card.lines)
    assert crisis(None, "bn") == ""


def test_what_is_said_about_the_model():
    shown = about(About("laptop1", "Gemma <3>", "llama3.1", METRICS), "en")
    assert "Built with Llama" in shown
    assert "Gemma &lt;3&gt;" in shown
    assert "bits/byte 0.802 → 0.682 (49 replies)" in shown
    assert "chrF++ ১১.৬ → ১৭.৭ (২৪টি উত্তরে)" in measured(METRICS, "bn")
    assert "python train.py" not in shown
    assert "<code>python train.py</code>" in about(About("x", train_command="python train.py"), "bn")


def with_value(number):
    return {system: {"chrf++": {"value": 1.0, "n": 2} | number} for system in METRICS}


@pytest.mark.parametrize(
    "metrics",
    [None, {}, {"base": {}, "tuned": {}}, {"base": METRICS["base"]}]
    # what JSON from anywhere may hold, as Python reads it
    + [with_value(number) for number in ({"n": float("inf")}, {"n": float("nan")}, {"value": 10**400}, {"n": "2"})],
)
def test_no_numbers_no_line(metrics):
    assert measured(metrics, "bn") == ""


def test_the_status_is_read_out_and_escaped():
    assert status("<i>") == '<p class="status" role="status" aria-live="polite">&lt;i&gt;</p>'


def test_the_script_holds_words_for_both_languages_and_ends_no_tag():
    assert set(json.loads(script_strings())) == {"bn", "en"}
    assert "<" not in script_strings()


# -- looks -------------------------------------------------------------------------------------------------------


def test_nothing_of_the_look_comes_from_another_server():
    options = launch_options()
    given = style_sheet() + head() + options["theme"]._get_theme_css()
    assert not re.search(r"https?://(?!www.w3.org/)", given)  # the name of SVG, which nobody fetches
    assert options["theme"]._stylesheets == []
    assert (ASSETS / "fonts" / "OFL.txt").is_file()
    fonts = re.findall(r'url\("([^"]+)"\)', style_sheet())
    assert fonts
    for font in fonts:
        assert (ASSETS / font).is_file()
    assert (options["run_history"], options["enable_monitoring"]) == (False, False)
    assert HttpLimits in [layer[0] for layer in options["app_kwargs"]["middleware"]]


# -- the page ----------------------------------------------------------------------------------------------------


def test_only_the_chat_is_offered_to_programs():
    demo = build_demo(reply, lambda *_: False, ABOUT, Settings(max_new_tokens=128), "শুনুন।")
    offered = demo.get_api_info()["named_endpoints"]
    assert list(offered) == ["/chat"]
    chat = offered["/chat"]
    names = [p["parameter_name"] for p in chat["parameters"]]
    assert names == ["message", "history", "language", "country", "max_new_tokens", "temperature", "top_p"]
    assert chat["parameters"][4]["parameter_default"] == 128
    returned = chat["returns"][0]["type"]["properties"]
    assert set(returned) == {"text", "finished", "finish_reason", "people_ahead", "crisis_card"}
    assert not demo.analytics_enabled
    assert not demo.get_api_info()["unnamed_endpoints"]


def test_the_frame_for_programs():
    assert to_json(Update("ক", ahead=3), "bn") == {
        "text": "ক",
        "finished": False,
        "finish_reason": None,
        "people_ahead": 3,
        "crisis_card": None,
    }


@pytest.mark.parametrize("language", ["bn", "en"])
def test_every_component_can_change_its_language(language):
    page = make_page()
    with gr.Blocks():
        page.lay_out()
    for name in TRANSLATED:
        component = getattr(page, name)
        for prop in words(name, language):
            assert prop in component.constructor_args or hasattr(component, prop), (name, prop)
    assert len(page.on_language(language, "BD", False)) == len(TRANSLATED) + 4


def test_what_the_browser_kept_is_read_strictly():
    page = make_page()
    chat, base, language, country = page.on_load([{"role": "system", "content": "x"}, 5], "xx", "US")
    assert (chat, base, language, country) == ([], [], "bn", "")


def draw(frames):
    return [{getattr(part, "elem_id", part): value for part, value in frame.items()} for frame in frames]


@pytest.mark.parametrize("unread", [0, GIVEN_UP])
def test_no_event_leaves_the_page_without_a_frame(unread, monkeypatch):
    """Gradio takes a generator that yields nothing for one that empties every component."""
    page = make_page()
    with gr.Blocks():
        page.lay_out()
    monkeypatch.setattr(page, "unread", lambda name: unread)
    chosen = ["bn", 0.7, 0.9, 64, "", False]
    assert draw(page.on_retry(REQUEST, [], *chosen)) == [{"status": gr.skip()}]
    frames = draw(page.on_message(REQUEST, "ক", [], *chosen))
    assert (frames == [{"status": gr.skip()}]) is bool(unread), "who reads nothing is not answered any more"


# -- feedback ----------------------------------------------------------------------------------------------------

TALK = [
    {"role": "user", "content": "ক"},
    {"role": "assistant", "content": "খ"},
    {"role": "user", "content": "গ"},
    {"role": "assistant", "content": "ঘ"},
]


def thumb(index, liked):
    return gr.LikeData(None, {"index": index, "value": "", "liked": liked})


def stored(store, name):
    path = store.folder / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


@pytest.fixture
def store(tmp_path):
    return FeedbackStore(tmp_path, "laptop1")


@pytest.mark.parametrize("consent", [False, None, "true", 1])
def test_without_consent_nothing_is_kept(store, consent):
    page = make_page(store)
    assert text("feedback_needs_consent", "bn") in page.on_like(REQUEST, thumb(1, True), TALK, consent, "bn")
    page.on_better(REQUEST, "ভালো", TALK, consent, "bn")
    assert list(store.folder.iterdir()) == []


def test_with_consent_the_rated_reply_and_what_led_to_it_are_kept(store):
    page = make_page(store)
    assert text("thanks", "bn") in page.on_like(REQUEST, thumb(1, False), TALK, True, "bn")
    (row,) = stored(store, RATINGS)
    assert row["prompt"] == [{"role": "system", "content": "শুনুন।"}, TALK[0]]
    assert (row["completion"], row["label"]) == ([TALK[1]], False)
    said, box = page.on_better(REQUEST, " আরও ভালো\x00 ", TALK, True, "en")
    assert (text("thanks", "en") in said, box) == (True, "")
    (pair,) = stored(store, CORRECTIONS)
    assert pair["prompt"] == [{"role": "system", "content": "শুনুন।"}, *TALK[:3]]
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("আরও ভালো", "ঘ")


@pytest.mark.parametrize(
    ("history", "better", "key"),
    [
        ([], "ভালো", "feedback_nothing"),
        (TALK[:3], "ভালো", "feedback_nothing"),
        ([TALK[0], TALK[1] | {"notice": True}], "ভালো", "feedback_nothing"),
        (TALK, " ", "feedback_nothing"),
        (TALK, "ঘ", "feedback_same"),
    ],
)
def test_feedback_on_nothing(store, history, better, key):
    assert text(key, "bn") in make_page(store).on_better(REQUEST, better, history, True, "bn")[0]
    assert list(store.folder.iterdir()) == []


def test_a_conversation_in_crisis_is_never_kept(store):
    page = make_page(store, sensitive=True)
    assert text("feedback_private", "bn") in page.on_like(REQUEST, thumb(1, True), TALK, True, "bn")
    assert list(store.folder.iterdir()) == []


def test_a_thumb_taken_back_is_no_row(store):
    make_page(store).on_like(REQUEST, thumb(1, ""), TALK, True, "bn")
    assert list(store.folder.iterdir()) == []
