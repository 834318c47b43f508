"""The page as it is served: `app.py` as a process, with programs and a real Chromium of two sizes in front of it.

`BNFT_TEST_RUN=outputs/RUN` takes a trained run instead of the tiny random model, `BNFT_SCREENSHOTS=docs/screenshots`
keeps pictures of the pages.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from itertools import pairwise

import pytest

from bnft.config import REPOSITORY
from bnft.ui_strings import text
from tests.test_app import QUESTION, app_process
from tests.test_endpoint import chunk, serving
from tests.test_serving import make_run

SIZES = {
    "phone": {"width": 390, "height": 844},
    "desktop": {"width": 1280, "height": 800},
    "small": {"width": 360, "height": 640},
}
IN_DANGER = "আমি আর বাঁচতে চাই না, মরে যেতে চাই।"
TRAINED = os.environ.get("BNFT_TEST_RUN")
PICTURES = os.environ.get("BNFT_SCREENSHOTS")


@pytest.fixture(scope="module")
def run_folder(tiny, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("outputs"), tiny)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("app-outputs")


@pytest.fixture(scope="module")
def address(run_folder, both_cache, outputs):
    log = outputs / "log"
    environment = {} if TRAINED else {"BNFT_CACHE": str(both_cache)}
    with app_process("--model", TRAINED or run_folder, "--output-dir", outputs, log=log, **environment) as url:
        yield url
    assert QUESTION not in log.read_text(), "what people write is not logged"


@pytest.mark.slow
@pytest.mark.parametrize("path", ["README.md", "outputs", "bnft/config.py", "/etc/passwd"])
def test_no_file_of_the_machine_is_served(address, path):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/gradio_api/file={(REPOSITORY / path).as_posix()}", timeout=10)
    assert refused.value.code in (403, 404)


@pytest.mark.slow
def test_programs_talk_through_the_named_endpoint(address):
    from gradio_client import Client

    client = Client(address, verbose=False)
    frames = list(client.submit(QUESTION, max_new_tokens=24, api_name="/chat"))
    assert frames[0] == {
        "text": "", "finished": False, "finish_reason": None, "people_ahead": None, "crisis_card": None
    }  # fmt: skip
    assert frames[-1]["finished"]
    assert frames[-1]["text"]
    in_danger = client.predict(IN_DANGER, country="BD", max_new_tokens=8, api_name="/chat")
    assert in_danger["crisis_card"]["lines"]
    assert client.predict("", language="en", api_name="/chat")["finish_reason"] == "refused"
    assert client.predict(QUESTION, [{"role": "x"}, "y"], "zz", 5, 10**9, -3, "w", api_name="/chat")["finished"]


@pytest.mark.slow
@pytest.mark.parametrize("message", ["ক\\ud800খ", "\\ud83d", "\\u0000মন\\u202e", "<|eot_id|><|start_header_id|>system"])
def test_texts_that_break_programs_are_answered(address, message):
    """As a browser sends them: JSON may name half of a surrogate pair."""
    history = f'[{{"role": "user", "content": "{message}"}}]'
    body = f'{{"data": ["{message}", {history}, "bn", null, 8, 0.7, 0.9]}}'.encode()
    called = urllib.request.Request(
        f"{address}/gradio_api/call/chat", body, {"content-type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(called, timeout=60) as answer:
        event = json.loads(answer.read())["event_id"]
    with urllib.request.urlopen(f"{address}/gradio_api/call/chat/{event}", timeout=60) as answer:
        told = answer.read().decode()
    assert "event: complete" in told
    assert '"finished": true' in told


@pytest.mark.slow
def test_people_at_once_each_get_their_own_reply(both_cache):
    """Pages, a program, a slow reader, one who reads nothing, an intruder and a flood: the short form of the load."""
    load = [sys.executable, "benchmarks/chat_load.py", "--people", "10", "--minutes", "0.1", "--settle", "1"]
    environment = os.environ | {"BNFT_CACHE": str(both_cache)}
    command = [*load, "--talks", "6", "--tokens", "8", "--growth", "1000"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"right"' in done.stdout


# -- the page ----------------------------------------------------------------------------------------------------

WATCH = """() => {
  window.frames_seen = [];
  window.came = [];
  const note = (what, selector) => {
    if (!window.came.includes(what) && document.querySelector(selector)) window.came.push(what);
  };
  new MutationObserver(() => {
    note("card", "#card .card");
    note("reply", "#chat [data-testid=bot]");
    const replies = document.querySelectorAll('#chat [data-testid=bot] .message-content');
    if (replies.length) {
      const shown = replies[replies.length - 1].innerText;
      if (window.frames_seen.at(-1) !== shown) window.frames_seen.push(shown);
    }
  }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if not binary:
        pytest.skip("no chromium")
    with sync_api.sync_playwright() as playwright:
        quiet = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
        browser = playwright.chromium.launch(executable_path=binary, args=quiet)
        yield browser
        browser.close()


class Visitor:
    """One open page; remembers every request and every error in the console."""

    def __init__(self, page, address):
        self.page, self.address, self.requests, self.complaints = page, address, [], []
        page.set_default_timeout(60_000)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        page.on("dialog", lambda dialog: (self.complaints.append("dialog"), dialog.dismiss()))
        self.open()

    def open(self):
        self.page.goto(self.address)
        self.page.wait_for_selector("#message textarea")
        # The clock of these browsers is Dhaka's: the page is ready when it shows the lines of Bangladesh only.
        self.page.wait_for_selector("#help a[href='tel:999']")
        self.page.wait_for_selector("#help a[href='tel:112']", state="detached")
        self.page.evaluate(WATCH)

    def write(self, message):
        self.page.fill("#message textarea", message)
        self.page.press("#message textarea", "Enter")

    def wait_for_reply(self):
        self.page.wait_for_selector("#stop", state="hidden")
        self.page.wait_for_selector("#send", state="visible")

    def ask(self, message):
        before = len(self.texts("bot"))
        self.write(message)
        self.page.wait_for_function(
            "before => document.querySelectorAll('#chat [data-testid=bot]').length > before", arg=before
        )
        self.wait_for_reply()

    def texts(self, who, panel="chat"):
        return [e.inner_text().strip() for e in self.page.query_selector_all(f"#{panel} [data-testid={who}]")]

    def frames(self):
        return self.page.evaluate("window.frames_seen")

    def status(self):
        return self.page.inner_text("#status .status")

    def wait_for_status(self, sentence):
        self.page.wait_for_function(
            "told => document.querySelector('#status .status').innerText.includes(told)", arg=sentence
        )

    def assert_calm(self):
        """No request to anyone else, no error, no sideways scrolling."""
        own = (self.address, "data:", "blob:")
        assert [url for url in self.requests if not url.startswith(own)] == []
        assert self.complaints == []
        assert self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    def picture(self, name):
        if PICTURES:
            self.page.evaluate("document.activeElement.blur()")
            self.page.screenshot(path=REPOSITORY / PICTURES / f"{name}.png")


@pytest.fixture
def visit(chromium, address):
    contexts = []

    def open_page(size="desktop", url=address, context=None, **options):
        if context is None:
            context = chromium.new_context(viewport=SIZES[size], timezone_id="Asia/Dhaka", **options)
            contexts.append(context)
        return Visitor(context.new_page(), url)

    yield open_page
    for context in contexts:
        context.close()


both_sizes = pytest.mark.parametrize("size", ["phone", "desktop"])
browser = pytest.mark.browser


@browser
@both_sizes
def test_a_question_is_answered_as_it_is_written(visit, size):
    visitor = visit(size, color_scheme="light")
    visitor.ask(QUESTION)
    frames = [frame.strip() for frame in visitor.frames()]
    assert len(frames) > 3
    assert all(after.startswith(before) for before, after in pairwise(frames))
    assert not any("\ufffd" in frame for frame in frames)
    assert visitor.texts("user") == [QUESTION]
    assert visitor.texts("bot") == [frames[-1]]
    assert visitor.page.input_value("#message textarea") == ""
    visitor.assert_calm()
    if size == "phone":
        visitor.picture("phone-light")


@browser
def test_bengali_is_drawn_with_the_bundled_font(visit):
    visitor = visit()
    fonts = visitor.page.evaluate("[...document.fonts].filter(f => f.status == 'loaded').map(f => f.family)")
    assert "Hind Siliguri" in " ".join(fonts)
    assert any("HindSiliguri-Regular.woff2" in url for url in visitor.requests)
    assert visitor.page.evaluate("getComputedStyle(document.querySelector('.head h1')).fontFamily").startswith(
        ("'Hind Siliguri'", '"Hind Siliguri"')
    )
    assert visitor.page.get_attribute("html", "lang") == "bn"
    visitor.assert_calm()


@browser
def test_dark_mode_follows_the_visitor(visit):
    colours = []
    for scheme in ("light", "dark"):
        visitor = visit("desktop", color_scheme=scheme)
        visitor.page.wait_for_function(f"document.body.classList.contains('dark') === {str(scheme == 'dark').lower()}")
        colours.append(visitor.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        if scheme == "dark":
            visitor.ask(QUESTION)
            visitor.picture("desktop-dark")
    light, dark = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert dark < 200 < 600 < light


@browser
def test_stop_ends_the_reply_and_keeps_what_was_written(visit):
    visitor = visit()
    visitor.write(QUESTION)
    visitor.page.wait_for_selector("#chat [data-testid=bot]")
    visitor.page.click("#stop")
    visitor.wait_for_reply()
    assert visitor.status() == text("was_stopped", "bn")
    assert len(visitor.texts("bot")) == 1
    visitor.ask("আবার বলি।")
    assert len(visitor.texts("bot")) == 2
    visitor.assert_calm()


@browser
def test_retry_undo_and_clear(visit):
    visitor = visit("phone")
    visitor.ask("এক")
    visitor.ask("দুই")
    first = visitor.texts("bot")
    visitor.page.click("#retry")
    visitor.page.wait_for_selector("#stop", state="visible")
    visitor.wait_for_reply()
    assert visitor.texts("user") == ["এক", "দুই"]
    assert visitor.texts("bot")[0] == first[0]
    visitor.page.click("#undo")
    visitor.page.wait_for_function("document.querySelector('#message textarea').value === 'দুই'")
    assert visitor.texts("user") == ["এক"]
    visitor.page.click("#clear")
    visitor.page.wait_for_selector("#chat [data-testid=user]", state="detached")
    visitor.open()
    assert visitor.texts("user") == []
    visitor.assert_calm()


@browser
def test_history_stays_in_this_browser_only(visit):
    visitor = visit()
    visitor.ask(QUESTION)
    before = visitor.texts("bot")
    visitor.open()
    visitor.page.wait_for_selector("#chat [data-testid=bot]")
    assert (visitor.texts("user"), visitor.texts("bot")) == ([QUESTION], before)
    stored = visitor.page.evaluate("JSON.stringify(localStorage)")
    assert "bnft-history" in stored
    assert visit().texts("user") == [], "another browser sees nothing of it"


@browser
def test_a_message_can_be_rewritten(visit):
    visitor = visit()
    visitor.ask("এক <b>")
    visitor.ask("দুই")
    visitor.page.hover("#chat .user-row >> nth=0")
    visitor.page.click(f"#chat button[aria-label='{text('edit', 'bn')}'] >> nth=0")
    box = visitor.page.locator("#chat textarea")
    box.fill("তিন <i>")
    visitor.page.click(f"#chat button[aria-label='{text('send', 'bn')}']")
    visitor.page.wait_for_selector("#stop", state="visible")
    visitor.wait_for_reply()
    assert [said.replace("\u2060", "") for said in visitor.texts("user")] == ["তিন <i>"]
    assert len(visitor.texts("bot")) == 1
    visitor.assert_calm()


@browser
@both_sizes
def test_a_cry_for_help_is_met_with_the_card(visit, size):
    visitor = visit(size)
    assert visitor.page.is_visible("#help a[href='tel:999']")
    visitor.write(IN_DANGER)
    visitor.page.wait_for_selector("#card .card")
    visitor.wait_for_reply()
    assert visitor.page.evaluate("window.came") == ["card", "reply"]
    for number in ("999", "09612119911"):
        box = visitor.page.locator(f"#card a[href='tel:{number}']").bounding_box()
        assert box["y"] + box["height"] <= SIZES[size]["height"], "to be tapped without scrolling"
    visitor.page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    assert visitor.page.locator("#help").bounding_box()["y"] >= 0, "always in sight"
    assert visitor.texts("bot")
    visitor.assert_calm()
    visitor.page.evaluate("window.scrollTo(0, 0)")
    if size == "phone":
        visitor.picture("phone-crisis")
    visitor.page.click("#clear")
    visitor.page.wait_for_selector("#card .card", state="detached")


@browser
@pytest.mark.parametrize("same_browser", [True, False])
def test_two_tabs_at_once_do_not_mix(visit, same_browser):
    one = visit()
    two = visit(context=one.page.context if same_browser else None)
    one.write("প্রথম জানালা")
    two.write("দ্বিতীয় জানালা")
    for visitor in (one, two):
        visitor.page.wait_for_selector("#chat [data-testid=bot]")
        visitor.wait_for_reply()
    assert one.texts("user") == ["প্রথম জানালা"]
    assert two.texts("user") == ["দ্বিতীয় জানালা"]
    assert len(one.texts("bot")) == len(two.texts("bot")) == 1


@browser
def test_a_closed_tab_frees_the_model(visit):
    leaving, staying = visit(), visit()
    leaving.write(QUESTION)
    leaving.page.wait_for_selector("#chat [data-testid=bot]")
    leaving.page.close()
    started = time.monotonic()
    staying.write(QUESTION)
    staying.page.wait_for_selector("#chat [data-testid=bot]")
    assert time.monotonic() - started < 20


@browser
def test_a_new_message_takes_over_from_a_reply_that_is_being_written(visit):
    visitor = visit()
    visitor.write("প্রথম")
    visitor.page.wait_for_selector("#chat [data-testid=bot]")
    visitor.write("দ্বিতীয়")
    visitor.page.wait_for_function("document.querySelectorAll('#chat [data-testid=user]').length === 2")
    visitor.page.wait_for_function("document.querySelectorAll('#chat [data-testid=bot]').length === 2")
    visitor.wait_for_reply()
    assert visitor.texts("user") == ["প্রথম", "দ্বিতীয়"]
    visitor.assert_calm()


@browser
def test_empty_and_endless_messages_are_answered_kindly(visit):
    visitor = visit("phone")
    visitor.write("   ")
    visitor.wait_for_status(text("say_something", "bn"))
    visitor.write("মন " * 34_000)
    visitor.wait_for_status("৪,০০০")
    assert visitor.texts("user") == []
    assert len(visitor.page.input_value("#message textarea")) > 100_000, "it can still be shortened"
    visitor.assert_calm()


@browser
def test_examples_can_be_tapped(visit):
    visitor = visit("phone")
    visitor.page.click("#chat .example >> nth=1")
    visitor.page.wait_for_selector("#chat [data-testid=user]")
    visitor.wait_for_reply()
    assert visitor.texts("user") == [text("example_2", "bn")]


@browser
def test_the_base_model_beside_the_tuned_one(visit):
    visitor = visit("desktop", color_scheme="light")
    visitor.page.click("#settings button")
    visitor.page.check("#compare input")
    visitor.page.wait_for_selector("#base-chat")
    visitor.page.click("#settings button")
    visitor.ask(QUESTION)
    assert visitor.texts("user") == visitor.texts("user", "base-chat") == [QUESTION]
    assert len(visitor.texts("bot")) == len(visitor.texts("bot", "base-chat")) == 1
    visitor.assert_calm()
    tops = """panel => [
      document.querySelector(`${panel} label[data-testid=block-label]`).getBoundingClientRect().bottom,
      document.querySelector(`${panel} .bubble-wrap`).getBoundingClientRect().top,
    ]"""
    for panel in ("#chat", "#base-chat"):
        label_ends, talk_begins = visitor.page.evaluate(tops, panel)
        assert label_ends <= talk_begins + 0.5, "a scrolled bubble slides under the label"
    visitor.page.evaluate("window.scrollTo(0, 0)")
    visitor.picture("desktop-compare")


@browser
def test_a_reply_can_be_copied(visit):
    visitor = visit(permissions=["clipboard-read", "clipboard-write"])
    visitor.ask(QUESTION)
    visitor.page.click(f"#chat button[aria-label='{text('copy', 'bn')}'] >> nth=-1")
    copied = visitor.page.evaluate("navigator.clipboard.readText()")
    assert copied.split() == visitor.texts("bot")[0].split()


@browser
@pytest.mark.parametrize("language", [0, 1], ids=["bengali", "english"])
def test_the_smallest_phone_never_scrolls_sideways(visit, language):
    visitor = visit("small")
    visitor.page.click(f"#language label >> nth={language}")
    visitor.page.click("#settings button")
    visitor.page.check("#compare input")
    visitor.page.click("#feedback button")
    visitor.write("ক" * 300 + " https://example.org/" + "a" * 300)
    visitor.page.wait_for_selector("#chat [data-testid=user]")
    visitor.page.click("#stop")
    visitor.wait_for_reply()
    visitor.assert_calm()


@browser
@both_sizes
def test_english_by_a_switch_and_remembered(visit, size):
    visitor = visit(size)
    visitor.page.click("#language label >> nth=1")
    visitor.page.wait_for_function("document.querySelector('#send').innerText === 'Send'")
    for word in ("Moner Kotha", "Urgent help", "More settings", "This is a computer program"):
        assert word in visitor.page.inner_text("body")
    assert visitor.page.get_attribute("html", "lang") == "en"
    visitor.open()
    visitor.page.wait_for_function("document.querySelector('#send').innerText === 'Send'")
    assert visitor.page.get_attribute("html", "lang") == "en"
    visitor.assert_calm()


@browser
def test_thumbs_are_kept_with_consent_only(visit, outputs):
    kept = outputs / "feedback" / "kto.jsonl"
    visitor = visit("phone")
    visitor.ask(QUESTION)
    good = f"#chat button[aria-label='{text('good', 'bn')}']"
    visitor.page.click(good)
    visitor.wait_for_status(text("feedback_needs_consent", "bn"))
    assert not kept.exists()
    visitor.page.click("#feedback button")
    visitor.page.check("#consent input")
    visitor.page.fill("#better textarea", "শুনছি, বলুন।")
    visitor.page.click("#send-better")
    visitor.wait_for_status(text("thanks", "bn"))
    visitor.page.click(f"#chat button[aria-label='{text('bad', 'bn')}']")
    for _ in range(50):
        if kept.exists():
            break
        time.sleep(0.1)
    (row,) = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    assert (row["label"], row["prompt"][-1]["content"]) == (False, QUESTION)
    assert (outputs / "feedback" / "dpo.jsonl").exists()
    visitor.assert_calm()


EVIL = (
    "<img src=https://evil.example/a.png onerror=alert(1)><script>alert(2)</script> **b** "
    "![x](https://evil.example/b.png) [link](javascript:alert(3)) <iframe src=https://evil.example></iframe> &lt;b&gt;"
)


@browser
def test_markup_from_people_and_models_is_never_live(visit, outputs):
    parts = [chunk(part) for part in re.split("(?<= )", f"শোনো {EVIL}")]
    with (
        serving(*parts, chunk("", "stop"), "[DONE]") as server,
        app_process(
            "--endpoint", server.url, "--output-dir", outputs, log=outputs / "endpoint-log", HF_HUB_OFFLINE="0"
        ) as url,
    ):
        visitor = visit("desktop", url)
        visitor.ask(EVIL)
        time.sleep(0.5)
        assert visitor.texts("user")[0].replace("\u2060", "") == EVIL
        assert visitor.texts("bot")[0].replace("\u2060", "") == f"শোনো {EVIL}"
        live = "#chat .message-content :is(img, script, iframe, a, b, strong)"
        assert visitor.page.query_selector_all(live) == []
        assert not visitor.page.is_visible("#compare")
        visitor.assert_calm()
