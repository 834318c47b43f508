"""`python -m bnft.rate`: its flags, and the page as it is served, with raters in a real Chromium in front of it."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress

import pytest

from bnft import rate
from bnft.config import REPOSITORY
from bnft.rating_form import say
from bnft.rating_store import RatingStore, key_of
from tests.test_app import free_port
from tests.test_rating_items import make_measured_run
from tests.test_rating_summary import rate_all

PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 800}


@pytest.fixture
def run(tmp_path, conversations):
    return make_measured_run(tmp_path / "outputs" / "run", conversations)


# -- the command -------------------------------------------------------------------------------------------------


def test_help_answers_at_once_and_imports_no_heavy_library():
    code = (
        "import sys, runpy\nsys.argv = ['rate', '--help']\n"
        "try: runpy.run_module('bnft.rate', run_name='__main__')\nexcept SystemExit as end: assert not end.code\n"
        "print({'torch', 'gradio', 'nltk', 'scipy', 'transformers'} & set(sys.modules))"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("set()\n"), done.stdout + done.stderr
    assert "python -m bnft.rate" in done.stdout
    assert time.monotonic() - started < 10  # 1.5 s on an idle machine


def test_the_commands_of_the_readme_are_taken():
    lines = re.findall(r"^ {4}python -m bnft\.rate (.*)$", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.M)
    assert len(lines) >= 2
    for line in lines:
        rate.build_parser().parse_args(shlex.split(line.split("#")[0]))


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["/no/such/run"], "is no run folder"),
        ([], "RUN"),
        (["RUN", "--port", "0"], "--port 0"),
        (["RUN", "--port", "x"], "--port"),
        (["RUN", "--sumary"], "--sumary"),
        (["RUN", "--summary"], "nobody has rated"),
    ],
)
def test_bad_input_is_one_message_and_status_2(run, flags, complaint, capsys):
    assert rate.main([str(run) if flag == "RUN" else flag for flag in flags]) == 2
    told = capsys.readouterr().err
    assert complaint in told
    assert "Traceback" not in told


@pytest.mark.parametrize("lost", ["GeneratedResponses.csv", "metrics.json"])
def test_a_run_without_replies_opens_no_page(run, lost, capsys):
    (run / lost).unlink()
    assert rate.main([str(run)]) == 2
    assert lost in capsys.readouterr().err


def test_summary(run, capsys):
    rate_all(run, ["রিনা"], 4)
    assert rate.main([str(run), "--summary"]) == 0
    assert "4 pairs rated by 1 raters" in capsys.readouterr().out
    assert json.loads((run / "metrics.json").read_text())["human"]["ratings"] == 4


# -- the page ----------------------------------------------------------------------------------------------------


class Server:
    """The rating page of a run as a process, which can be killed and started again at the same address."""

    def __init__(self, run, log):
        self.run, self.log, self.port = run, log, free_port()
        self.address = f"http://127.0.0.1:{self.port}"

    def start(self):
        self.log.write_text("")
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bnft.rate", str(self.run), "--port", str(self.port)],
                cwd=REPOSITORY,
                stdout=out,
                stderr=out,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        for _ in range(600):
            if "open http" in self.log.read_text():
                return
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise TimeoutError(self.log.read_text())

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)


@pytest.fixture
def server(run, tmp_path):
    served = Server(run, tmp_path / "log")
    served.start()
    yield served
    served.process.terminate()
    assert served.process.wait(120) == 128 + signal.SIGTERM


def sent_directly(address, data):
    """What a program sends past the page, to the function behind the button."""
    with urllib.request.urlopen(f"{address}/config", timeout=60) as answer:
        config = json.loads(answer.read())
    button = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "send-rating")
    function = next(d["id"] for d in config["dependencies"] if [button, "click"] in d["targets"])
    body = json.dumps({"data": data, "fn_index": function, "session_hash": "x"}).encode()
    asked = urllib.request.Request(
        f"{address}/gradio_api/run/predict", body, {"content-type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as refused:
        return f"refused: {refused.code}"


@pytest.mark.slow
def test_a_program_that_sends_impossible_values_gets_nothing_kept(server):
    who = {"rater": "রিনা", "native": "yes", "region": "BD"}
    for data in (
        [who, "0" * 16, *[9] * 12, "A"],
        [who, "0" * 16, *[1] * 12, "A"],
        [{"rater": "../../x", "native": 1, "region": []}, {}, *[None] * 13],
        ["\ud800", None, *["<script>"] * 13],
        [],
    ):
        assert sent_directly(server.address, data)
    assert RatingStore(server.run).read() == []
    for path in ("ratings.csv", "GeneratedResponses.csv"):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{server.address}/gradio_api/file={server.run / path}", timeout=10)


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if not binary:
        pytest.skip("no chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox", "--no-first-run"])
        yield browser
        browser.close()


class Rater:
    """One person in front of one page."""

    def __init__(self, chromium, server, size):
        self.server, self.asked, self.complaints = server, [], []
        self.context = chromium.new_context(viewport=size, has_touch=size is PHONE)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(server.address)
        self.page.wait_for_selector("#rater input, #rater textarea")

    def begin_with_keys(self, name):
        self.page.focus("#rater input, #rater textarea")
        keys = self.page.keyboard
        keys.type(name)
        for key in ("Tab", "Space", "Tab", "ArrowRight", "Tab", "Enter"):
            keys.press(key)
        self.wait_for(1)

    def begin_with_thumb(self, name):
        self.page.fill("#rater input, #rater textarea", name)
        for choice in ("#native label >> nth=0", "#region label >> nth=0", "#start"):
            self.page.tap(choice)
        self.wait_for(1)

    def wait_for(self, place):
        self.page.wait_for_function(
            "told => document.querySelector('#progress')?.innerText.includes(told)",
            arg=f"মধ্যে {'০১২৩৪৫৬৭৮৯'[place]} নম্বর",
        )
        self.page.wait_for_function("document.activeElement.className === 'said'")

    def rate_with_keys(self):
        """Arrows and digits, one of them of a Bengali keyboard; Enter sends."""
        keys = self.page.keyboard
        for key in ("Tab", "ArrowRight", "ArrowRight", "Tab", "4"):
            keys.press(key)
        self.page.evaluate(
            "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: '৫', bubbles: true}))"
        )
        for key in (*"012", *"345", *"012", "2", "Enter"):
            keys.press(key)

    def fill_with_thumb(self):
        for ask in self.page.query_selector_all("#rating .ask"):
            ask.query_selector_all("label")[1].tap()

    def send_with_thumb(self):
        self.page.tap("#send-rating")

    def picked(self):
        return self.page.evaluate(
            "[...document.querySelectorAll('#rating .ask')].map(ask => ask.querySelector('input:checked')?.value ?? '')"
        )

    def assert_calm(self):
        """Nobody else was asked for anything, nothing scrolls sideways, and the help lines are in sight."""
        assert [url for url in self.asked if not url.startswith((self.server.address, "data:", "blob:"))] == []
        assert self.complaints == []
        assert self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        for where in ("0", "document.body.scrollHeight"):
            self.page.evaluate(f"window.scrollTo(0, {where})")
            box = self.page.locator("#help a[href='tel:999']").bounding_box()
            assert 0 <= box["y"] < 200


@pytest.mark.slow
@pytest.mark.browser
def test_two_raters_at_once_one_with_keys_one_on_a_phone_through_a_kill(chromium, server):
    keys, thumb = Rater(chromium, server, DESKTOP), Rater(chromium, server, PHONE)
    keys.begin_with_keys("মিতা")
    thumb.begin_with_thumb("Rina")

    keys.rate_with_keys()
    keys.wait_for(2)
    assert keys.picked() == [""] * 13, "a new pair begins empty"
    row = RatingStore(server.run).read()[0]
    assert (row["rater"], row["native"], row["region"], row["preference"]) == ("মিতা", "yes", "IN-WB", "tie")
    scores = [
        value for name, value in row.items() if name.endswith(("_a", "_b")) and value.isdigit() and len(value) == 1
    ]
    assert scores == ["3", "4", "5", "0", "1", "2", "3", "4", "5", "0", "1", "2"]

    thumb.send_with_thumb()  # nothing is answered
    thumb.page.wait_for_function("document.querySelector('#status').innerText.includes('১৩টি')")
    assert thumb.page.evaluate("document.activeElement.closest('.ask').id") == "empathy-a"
    thumb.fill_with_thumb()
    thumb.send_with_thumb()
    thumb.wait_for(2)
    keys.page.reload()
    keys.wait_for(2)
    assert "স্বাগত" in keys.page.inner_text("#status")
    before = RatingStore(server.run).read()
    assert sorted(row["rater"] for row in before) == ["rina", "মিতা"]

    server.kill()
    with (server.run / "ratings.csv").open("ab") as file:
        file.write(b"84c08dbd411f-1,0,tuned,ba")  # as a machine that lost its power may leave it
    server.start()
    assert "passing over line 4" in server.log.read_text()
    for rater in (keys, thumb):
        rater.page.reload()
        rater.wait_for(2)
    keys.rate_with_keys()
    keys.wait_for(3)
    thumb.fill_with_thumb()
    thumb.send_with_thumb()
    thumb.wait_for(3)
    after = RatingStore(server.run).read()
    assert after[:2] == before
    assert len({key_of(row) for row in after}) == len(after) == 4
    for rater in (keys, thumb):
        rater.assert_calm()
        rater.context.close()
    assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
@pytest.mark.browser
def test_a_server_that_comes_back_while_somebody_is_answering(chromium, server):
    """The page finds it again by itself, with the answers that were picked, and nothing unkept was called kept."""
    from playwright.sync_api import Error

    rater = Rater(chromium, server, PHONE)
    rater.begin_with_thumb("রিনা")
    rater.fill_with_thumb()
    picked = rater.picked()
    server.kill()
    rater.send_with_thumb()
    rater.page.wait_for_timeout(500)
    assert say("kept_one") not in rater.page.inner_text("body")
    server.start()
    deadline = time.monotonic() + 60
    while not RatingStore(server.run).read():
        assert time.monotonic() < deadline
        with suppress(Error):  # the page may be loaded anew at any time
            if rater.picked() == picked:
                rater.send_with_thumb()
        rater.page.wait_for_timeout(1000)
    rater.wait_for(2)
    (row,) = RatingStore(server.run).read()
    assert [row[f"{question}_{side}"] for side in "ab" for question in ("empathy", "exploration")] == ["2", "1"] * 2
    rater.fill_with_thumb()
    rater.page.reload()
    rater.wait_for(2)
    assert rater.picked() == picked
    rater.context.close()
