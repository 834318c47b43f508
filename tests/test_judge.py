"""The judge against a real HTTP server that speaks the chat completions protocol, well and badly."""

import contextlib
import json
import re
import signal
import socket
import socketserver
import threading
import time
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

import train
from bnft.card import render
from bnft.config import resolve
from bnft.errors import UserError
from bnft.judge import DEAD_AFTER, AnswerFile, Judge, print_judgement
from bnft.judge_client import DECODING, TRIES, JudgeClient, Unanswered, retry_after
from bnft.judge_form import INSTRUCTIONS, Asked, Item, Judged, read_verdict
from bnft.rating_form import QUESTIONS
from bnft.run_facts import read_run
from tests.test_card import FACTS, config, run  # noqa: F401

KEYS = [q.key for q in QUESTIONS]
LOW = {q.key: q.low for q in QUESTIONS}
HIGH = {q.key: q.high for q in QUESTIONS}


def answer(a, b, preference):
    return json.dumps({"A": a, "B": b, "preference": preference})


def fair(body):
    """Judges the texts: the reply that says "ভালো" is the better one, wherever it stands."""
    shown = json.loads(body["messages"][1]["content"])
    first = "ভালো" in shown["reply_A"]
    return answer(HIGH, LOW, "A") if first else answer(LOW, HIGH, "B")


def always_first(body):
    return answer(HIGH, LOW, "A")


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def do_GET(self):
        self.server.seen.append((self.path, dict(self.headers), None))
        self.send(200, {"data": [{"id": "judge\x1b[31m-1"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.seen.append((self.path, dict(self.headers), body))
            self.server.asked[body["messages"][1]["content"]] += 1
            again = self.server.asked[body["messages"][1]["content"]]
        said = self.server.script(body, again) if self.server.takes_try else self.server.script(body)
        if isinstance(said, str):
            said = 200, {"model": "judge-1-dated", "choices": [{"message": {"content": said}}]}, {}
        self.send(*said)

    def send(self, status, value, headers=None):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        try:
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            for name, text in (headers or {}).items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the asker's patience was over


@contextmanager
def serving(script, takes_try=False):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.script, server.takes_try = script, takes_try
    server.seen, server.asked, server.lock = [], Counter(), threading.Lock()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def items(count):
    return [
        Item(f"row-{i}", ({"role": "user", "content": f"মন খারাপ {i}।"},), f"হুম {i}", f"ভালো {i}") for i in range(count)
    ]


def judged(url, path, count=3, model=None, patience=5.0):
    judge = Judge(JudgeClient(url, model, patience=patience, pause=0.01), path / "answers.jsonl")
    return judge.judge(items(count), bootstrap=100, seed=1)


def lines(path):
    return [json.loads(line) for line in (path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_fair_judge_is_heard_in_both_orders(tmp_path, capsys):
    with serving(fair) as server:
        told = judged(server.url, tmp_path)
    assert told["rows"] == {"asked": 3, "answered": 3, "unanswered": 0}
    assert told["problems"] == {}
    for q in QUESTIONS:
        assert (told["base"][q.key]["value"], told["tuned"][q.key]["value"]) == (q.low, q.high)
        assert told["comparison"][q.key]["difference"] == q.high - q.low
    assert told["comparison"]["preferred"] | {"p": None} == {
        "name": "preferred",
        "base": 0.0,
        "tuned": 1.0,
        "difference": 1.0,
        "low": 1.0,
        "high": 1.0,
        "p": None,
        "improved": True,
    }
    assert told["orders_agree"]["value"] == 1
    assert told["tuned"]["empathy"]["n"] == 3
    assert "judge:judge-1-dated|prompt:bnft-judge-1|decoding:temperature=0" in told["tuned"]["empathy"]["signature"]
    posts = [(path, body) for path, _, body in server.seen if body]
    assert {path for path, _ in posts} == {"/v1/chat/completions"}
    assert {body["model"] for _, body in posts} == {"judge[31m-1"}  # the listed name, without what moves a terminal
    assert all(body["messages"][0]["content"] == INSTRUCTIONS for _, body in posts)
    shown = sorted(body["messages"][1]["content"] for _, body in posts)
    assert len(shown) == 6
    assert all("base" not in text and "tuned" not in text for text in shown), "the judge must not know which is which"
    assert [line["problem"] for line in lines(tmp_path)] == [None] * 6
    print_judgement(told)
    printed = capsys.readouterr().out
    assert "A language model (judge-1-dated), not a person, judged these replies." in printed
    assert "3 of 3 rows answered in both orders\n" in printed
    assert "judged by a language model, not by people" in printed
    assert "both orders agree on 100% of the rows" in printed


def test_a_judge_that_likes_the_first_place_prefers_nobody(tmp_path):
    with serving(always_first) as server:
        told = judged(server.url, tmp_path)
    assert told["orders_agree"]["value"] == 0
    assert told["comparison"]["preferred"]["base"] == told["comparison"]["preferred"]["tuned"] == 0
    assert told["comparison"]["empathy"]["difference"] == 0  # once 5 against 1, once 1 against 5
    assert told["base"]["empathy"]["value"] == 3


def verdict(a, b, preference):
    return read_verdict(answer(a, b, preference))


@pytest.mark.parametrize(
    ("base_first", "tuned_first", "preference", "agreed"),
    [
        ("A", "B", "base", True),
        ("B", "A", "tuned", True),
        ("tie", "tie", "tie", True),
        ("A", "A", "tie", False),
        ("A", "tie", "tie", False),
        ("tie", "A", "tie", False),
    ],
)
def test_two_orders_of_one_row(base_first, tuned_first, preference, agreed):
    row = Judged.of_orders({"base": verdict(LOW, HIGH, base_first), "tuned": verdict(LOW, LOW, tuned_first)})
    assert (row.preference, row.agreed) == (preference, agreed)
    assert row.base["empathy"] == 1  # as A lowest, as B lowest
    assert row.tuned["empathy"] == 3  # as B highest, as A lowest


GOOD = answer(LOW, HIGH, "B")


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"```\n{GOOD}```",
        f"<think>A {{is}} colder.</think>\n\n{GOOD}",
        f"A {{is}} colder.</think>\n\n{GOOD}",  # the server's template has opened the block
        f"\n {GOOD} \n",
    ],
)
def test_an_answer_in_the_wrapping_that_models_use(text):
    assert read_verdict(text).preference == "B"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no JSON object"),
        ("B is better.", "no JSON object"),
        (f"Here you are: {GOOD}", "no JSON object"),
        (f"[{GOOD}]", "no JSON object"),
        (GOOD[:-1], "no JSON object"),
        (GOOD + GOOD, "Invalid JSON"),
        ("{}", "A: Field required"),
        (answer(LOW | {"empathy": 6}, HIGH, "B"), "A.empathy: Input should be less than or equal to 5"),
        (answer(LOW | {"empathy": 0}, HIGH, "B"), "A.empathy"),
        (answer(LOW, HIGH | {"exploration": 3}, "B"), "B.exploration"),
        (answer(LOW | {"fluency": "4"}, HIGH, "B"), "A.fluency"),
        (answer(LOW | {"fluency": 4.5}, HIGH, "B"), "A.fluency"),
        (answer(LOW | {"fluency": True}, HIGH, "B"), "A.fluency"),
        (answer(LOW | {"fluency": None}, HIGH, "B"), "A.fluency"),
        (answer(LOW | {"warmth": 4}, HIGH, "B"), "A.warmth: Extra inputs"),
        (answer(dict.fromkeys(KEYS[1:], 1), HIGH, "B"), "A.empathy: Field required"),
        (answer(LOW, HIGH, "C"), "preference"),
        (answer(LOW, HIGH, "a"), "preference"),
        (re.search(r'\{"A".*', INSTRUCTIONS)[0], "Invalid JSON"),  # the form itself, copied
    ],
)
def test_an_answer_that_counts_for_nothing(text, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        read_verdict(text)


TAGS = [
    "<think>",
    "</think>",
    "```",
    "```json",
    "{",
    "}",
    GOOD,
    GOOD[:40],
    '{"A": ',
    "\\ud83d",
    "\ud83d",
    "9" * 5000,
    " ",
    "\n",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from([GOOD, "judge-1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "data", "id", "model", "A", ""]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


def check_verdict(verdict):
    assert verdict.preference in ("A", "B", "tie")
    for reply in (verdict.A, verdict.B):
        for question in QUESTIONS:
            value = getattr(reply, question.key)
            assert type(value) is int
            assert question.low <= value <= question.high


@given(parts=st.lists(st.sampled_from(TAGS) | st.text(max_size=5), max_size=6))
def test_any_text_is_a_verdict_within_its_scales_or_none(parts):
    with contextlib.suppress(ValueError):
        check_verdict(read_verdict("".join(parts)))


@given(
    a=st.dictionaries(st.sampled_from(KEYS), st.integers(-1, 6) | JSON),
    b=st.dictionaries(st.sampled_from([*KEYS, "x"]), st.integers(-1, 6) | JSON),
    preference=st.sampled_from(["A", "B", "tie"]) | JSON,
)
def test_any_values_are_a_verdict_within_its_scales_or_none(a, b, preference):
    with contextlib.suppress(ValueError):
        check_verdict(read_verdict(answer(LOW | a, HIGH | b, preference)))


@pytest.mark.parametrize("text", ["<think>" + "</think>{" * 100_000, "```{" + "} " * 400_000, "{" * 900_000 + "}"])
def test_a_megabyte_of_nonsense_is_read_at_once(text):
    with pytest.raises(ValueError, match="JSON"):  # a pattern with two open ends took minutes for the first
        read_verdict(text)


class Raw(socketserver.StreamRequestHandler):
    """Sends what it is told, HTTP or not."""

    def handle(self):
        while self.rfile.readline() not in (b"\r\n", b""):
            pass
        with contextlib.suppress(OSError):
            self.connection.sendall(self.server.answer)


@pytest.fixture(scope="module")
def raw_server():
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Raw)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


BODIES = st.one_of(
    st.binary(max_size=40),
    JSON.map(lambda value: json.dumps(value).encode()),
    JSON.map(lambda value: json.dumps({"choices": [{"message": {"content": value}}], "model": value}).encode()),
    JSON.map(lambda value: json.dumps({"choices": [{"message": value}], "data": [{"id": value}]}).encode()),
)
STATUS = st.sampled_from(
    [b"200 OK", b"204 No", b"301 Gone", b"404 No", b"429 Slow", b"500 No", b"100 Wait", b"099 x", b"2"]
)
HEADERS = st.sampled_from(
    [
        *(b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: x", b"Transfer-Encoding: chunked"),
        *(b"Content-Encoding: gzip", b"Content-Encoding: deflate", b"Content-Type: text/html; charset=utf-99"),
        *(
            b"Location: http://[::",
            b"Location: //\xff",
            b"Set-Cookie: a=b; expires=x; domain=\xff",
            b"\xff\xfe",
            b": x",
        ),
        *(b"Retry-After: 0", b"Retry-After: \xff", b"Retry-After: 99999999999999999999"),
    ]
)


@given(
    whole=st.binary(max_size=60)
    | st.builds(
        lambda status, headers, body: b"\r\n".join([b"HTTP/1.1 " + status, *headers, b"", body]),
        STATUS,
        st.lists(HEADERS, max_size=2),
        BODIES,
    )
)
def test_any_bytes_are_an_answer_or_a_reason(raw_server, whole):
    raw_server.answer = whole
    for model in (None, "named"):
        client = JudgeClient(f"http://127.0.0.1:{raw_server.server_address[1]}", model, patience=5)
        client.stop.set()  # one try
        try:
            answer = client.complete([{"role": "user", "content": "ক"}])
            told, name, wait = answer.text, answer.model, 0
        except Unanswered as error:
            told, name, wait = error.detail, error.problem, error.wait or 0
        assert told.encode() is not None
        assert name
        assert name.isprintable()
        assert wait >= 0


LINES = st.fixed_dictionaries(
    {},
    optional={"key": st.sampled_from(["k", "l"]) | JSON, "raw": st.lists(st.sampled_from([GOOD, "x"]) | JSON) | JSON}
    | dict.fromkeys(("model", "decoding", "problem", "id"), st.just("m") | JSON),
)


@given(
    lines=st.lists(
        LINES.map(lambda line: json.dumps(line).encode()) | JSON.map(lambda v: json.dumps(v).encode()) | st.binary()
    )
)
def test_any_file_of_answers_is_read(tmp_path, lines):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b"\n".join(lines))
    for verdict, model, decoding in AnswerFile(path).verdicts().values():
        check_verdict(verdict)
        assert isinstance(model, str)
        assert isinstance(decoding, str)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("আমি পারব না।", "an answer of another form"),
        (answer(HIGH | {"empathy": 9}, LOW, "A"), "an answer of another form"),
        ((500, {"error": "boom"}, {}), "HTTP 500"),
        ((429, {"error": "slow"}, {"retry-after": "0"}), "HTTP 429"),
        ((200, b"<html>", {}), "no chat completion"),
        ((200, {"choices": []}, {}), "no chat completion"),
        ((200, {"choices": [{"message": {"content": None}}]}, {}), "no chat completion"),
        ((200, b"[" * 100_000, {}), "no chat completion"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_fails_is_tried_again_and_then_counted(tmp_path, bad, problem, capsys):
    """Of three rows the first never gets an answer, the second only at its last try."""

    def script(body, again):
        if "খারাপ 0" in body["messages"][1]["content"] or ("খারাপ 1" in body["messages"][1]["content"] and again < TRIES):
            return bad
        return fair(body)

    with serving(script, takes_try=True) as server:
        told = judged(server.url, tmp_path)
    assert told["rows"] == {"asked": 3, "answered": 2, "unanswered": 1}
    assert told["problems"] == {problem: 2}
    assert told["comparison"]["preferred"]["tuned"] == 1
    assert told["tuned"]["empathy"]["n"] == 2
    assert sorted(server.asked.values()) == [1, 1, TRIES, TRIES, TRIES, TRIES]
    print_judgement(told)
    assert f"2 of 3 rows answered in both orders (2 x {problem})" in capsys.readouterr().out
    kept = {(line["id"], line["problem"], len(line["raw"])) for line in lines(tmp_path)}
    raw = TRIES if isinstance(bad, str) else 0
    assert ("row-0", problem, raw) in kept
    assert ("row-1", None, raw or 1) in kept


@pytest.mark.parametrize("status", [401, 403, 404, 413])
def test_a_refusal_that_stays_is_not_tried_again(tmp_path, status):
    with serving(lambda body: (status, {"error": "no"}, {})) as server:
        told = judged(server.url, tmp_path)
    assert told["problems"] == {f"HTTP {status}": 6}
    assert set(server.asked.values()) == {1}
    assert "comparison" not in told
    assert told["what"].startswith("A language model (judge[31m-1), not a person")


def test_retry_after_is_obeyed(tmp_path):
    times = []

    def script(body, again):
        times.append(time.monotonic())
        return (429, {}, {"retry-after": "1"}) if again == 1 else fair(body)

    with serving(script, takes_try=True) as server:
        told = judged(server.url, tmp_path, count=1)
    assert told["rows"]["answered"] == 1
    assert max(times) - min(times) >= 1  # the pause of this test is 0.01 s


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("7", 7, 7),
        ("0", 0, 0),
        (timedelta(seconds=300), 290, 300),
        (timedelta(days=-1), 0, 0),
    ],
)
def test_retry_after_is_a_number_or_a_date(value, low, high):
    if isinstance(value, timedelta):  # counted from now, which the start of a long run of tests is not
        value = format_datetime(datetime.now(UTC) + value, usegmt=True)
    assert low <= retry_after(value) <= high


@pytest.mark.parametrize("value", ["", "soon", "-3", "1.5", "Mon, 99 Nov 2026 00:00:00 GMT"])
def test_retry_after_that_says_nothing(value):
    assert retry_after(value) is None


def test_a_server_that_hangs_is_left(tmp_path):
    free = threading.Event()
    with serving(lambda body: (free.wait(20) and None) or fair(body)) as server:
        started = time.monotonic()
        told = judged(server.url, tmp_path, count=1, patience=0.3)
        took = time.monotonic() - started
        free.set()
    assert told["problems"] == {"timeout": 2}
    assert took < 15


def test_ctrl_c_waits_for_no_server_and_keeps_what_was_said(tmp_path):
    free = threading.Event()

    def script(body):
        if "খারাপ 0" not in body["messages"][1]["content"]:
            free.wait(20)
        return fair(body)

    main = threading.main_thread().ident
    with serving(script) as server:
        started = time.monotonic()
        threading.Timer(1.0, signal.pthread_kill, (main, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            judged(server.url, tmp_path, patience=20)
        assert time.monotonic() - started < 15
        free.set()
    assert [line["id"] for line in lines(tmp_path)] == ["row-0", "row-0"]


class Dripping(Handler):
    """A byte now and then: no single read ever times out."""

    def do_POST(self):
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(200):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.05)
        except (BrokenPipeError, ConnectionResetError):
            pass


def test_a_server_that_drips_is_left(tmp_path):
    with serving(fair) as server:
        server.RequestHandlerClass = Dripping
        started = time.monotonic()
        told = judged(server.url, tmp_path, count=1, patience=0.3)
    assert told["problems"] == {"timeout": 2}
    assert time.monotonic() - started < 15


def closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_nobody_there(tmp_path, capsys):
    url = f"http://127.0.0.1:{closed_port()}/v1"
    told = judged(url, tmp_path)
    assert told["rows"] == {"asked": 3, "answered": 0, "unanswered": 3}
    assert told["problems"] == {"no connection": 6}
    print_judgement(told)
    assert "0 of 3 rows answered in both orders (6 x no connection)" in capsys.readouterr().out
    told = judged(url, tmp_path, model="named")  # known by name, so nothing is asked of /models
    assert told["problems"] == {"no connection": 6}
    assert "A language model (named), not a person" in told["what"]


def test_a_judge_that_fell_silent_is_left_alone(tmp_path):
    with serving(lambda body: (403, {}, {})) as server:
        told = judged(server.url, tmp_path, count=30)
    assert told["rows"]["unanswered"] == 30
    assert sum(told["problems"].values()) == 60
    assert DEAD_AFTER <= len(server.asked) < DEAD_AFTER + 6


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    with serving(fair) as server:
        judged(server.url, tmp_path, count=2)
        path = tmp_path / "answers.jsonl"
        whole = path.read_bytes()
        path.write_bytes(whole[: whole.rindex(b'"raw"') + 20])  # the last line was being written
        before = dict(server.asked)
        told = judged(server.url, tmp_path, count=3)
    assert told["rows"]["answered"] == 3
    assert sum(server.asked.values()) - sum(before.values()) == 3  # the torn one, and the two of the new row
    assert path.read_bytes().startswith(whole[: whole.rindex(b'"raw"') + 20] + b"\n")
    with serving(fair) as server:
        again = judged(server.url, tmp_path, count=3)
    assert not server.asked
    assert again == told


def test_other_replies_and_another_judge_are_asked_again():
    one = Item("row", ({"role": "user", "content": "ক"},), "খ", "গ")
    keys = {
        Asked(item, first).key(model)
        for item in (one, Item("row", one.messages, "খ", "ঘ"), Item("row", one.messages, "খ ", "গ"))
        for first in ("base", "tuned")
        for model in ("m1", "m2")
    }
    assert len(keys) == 12


def test_equal_replies_are_a_tie(tmp_path):
    same = [Item("row", ({"role": "user", "content": "ক"},), "ভালো", "ভালো")]
    with serving(always_first) as server:
        judge = Judge(JudgeClient(server.url, pause=0.01), tmp_path / "answers.jsonl")
        told = judge.judge(same, bootstrap=100, seed=1)
    assert told["rows"]["answered"] == 1
    assert told["comparison"]["preferred"]["base"] == told["comparison"]["preferred"]["tuned"] == 0
    assert told["comparison"]["empathy"]["difference"] == 0


def test_a_model_that_takes_no_temperature(tmp_path):
    def script(body):
        return (400, {"error": "unsupported: temperature"}, {}) if "temperature" in body else fair(body)

    with serving(script) as server:
        told = judged(server.url, tmp_path)
    assert told["rows"]["answered"] == 3
    assert "decoding:the server's own" in told["tuned"]["empathy"]["signature"]
    assert DECODING == {"temperature": 0, "max_tokens": 2048}


def test_the_key_goes_into_one_header_and_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setenv("BNFT_JUDGE_KEY", "sk-very-secret\n")
    monkeypatch.setenv("HF_TOKEN", "hf_other")

    def script(body):
        if "খারাপ 0" in body["messages"][1]["content"]:
            return 401, {"error": "wrong key sk-very-secret"}, {}
        if "খারাপ 1" in body["messages"][1]["content"]:
            return 401, ("x" * 494 + "sk-very-secret").encode(), {}
        return 200, {"model": "m-sk-very-secret", "choices": [{"message": {"content": fair(body)}}]}, {}

    with serving(script) as server:
        told = judged(server.url, tmp_path)
    assert {headers["authorization"] for _, headers, _ in server.seen} == {"Bearer sk-very-secret"}
    assert "secret" not in json.dumps(told)
    written = (tmp_path / "answers.jsonl").read_text()
    assert "secret" not in written
    assert "sk-v" not in written
    assert "wrong key [key]" in written
    monkeypatch.delenv("BNFT_JUDGE_KEY")
    with serving(fair) as server:
        judged(server.url, tmp_path, count=1)
    assert not any("authorization" in {name.lower() for name in headers} for _, headers, _ in server.seen)


def test_a_key_that_is_none(monkeypatch):
    monkeypatch.setenv("BNFT_JUDGE_KEY", "sk-a\nsk-b")
    with pytest.raises(UserError, match="BNFT_JUDGE_KEY"):
        JudgeClient("http://127.0.0.1:1")


def test_half_a_surrogate_reaches_no_file(tmp_path):
    with serving(lambda body: (200, {"choices": [{"message": {"content": "\ud83d"}}]}, {})) as server:
        told = judged(server.url, tmp_path, count=1)
    assert told["problems"] == {"an answer of another form": 2}
    assert lines(tmp_path)[0]["raw"] == ["?"] * TRIES


def test_a_server_that_lists_no_model(tmp_path):
    with serving(fair) as server:
        client = JudgeClient(server.url, pause=0.01)
        Handler.do_GET, kept = lambda self: self.send(200, {"data": []}), Handler.do_GET
        try:
            with pytest.raises(Unanswered, match="no list of models"):
                client.find_model()
        finally:
            Handler.do_GET = kept


@pytest.mark.parametrize(
    ("judge", "says"),
    [
        ("127.0.0.1:8000", "no URL"),
        ("ftp://x/v1", "no URL"),
        ("http://", "no URL"),
        ("http://host:sk-secret/v1", "no URL"),
        ("http://host:0/v1", "no URL"),
        ("http://[::1/v1", "no URL"),
        ("http://me:sk-secret@host/v1", "BNFT_JUDGE_KEY"),
        ("http://host/v1?api-key=sk-secret", "BNFT_JUDGE_KEY"),
    ],
)
def test_an_address_that_is_none_or_holds_a_key_is_refused_without_repeating_it(judge, says):
    with pytest.raises(UserError, match=says) as caught:
        resolve("smoke", {"eval.judge": judge})
    assert "secret" not in str(caught.value)


def test_the_card_says_who_judged(run, config, tmp_path):  # noqa: F811
    assert "language model's opinion" not in render("adapter", run, config, FACTS)
    metrics = json.loads((run / "metrics.json").read_text())
    with serving(fair) as server:
        told = judged(server.url, tmp_path)
    (run / "metrics.json").write_text(json.dumps(metrics | {"judge": told}))
    text = render("adapter", run, config, FACTS)
    assert "A language model (judge-1-dated), not a person, judged these replies." in text
    assert "It answered for 3 of 3 rows, each asked in both orders" in text
    assert "| Empathy, 1 to 5 | 3 | 1.00 | 5.00 | +4.00 [+4.00, +4.00] |" in text
    assert "| preferred in both orders | 3 | 0.00 % | 100.00 % | +100.00 [+100.00, +100.00] |" in text
    silent = {"what": "A language model (x), not a person.", "rows": {"asked": 3, "answered": 0, "unanswered": 3}}
    (run / "metrics.json").write_text(json.dumps(metrics | {"judge": silent}))
    assert "It answered for 0 of 3 rows" in render("adapter", run, config, FACTS)
    assert read_run(run, config)["judge"]["metrics"] == []


@pytest.mark.slow
def test_a_run_with_a_judge_and_the_same_run_asked_again(tmp_path, tiny, capsys, monkeypatch):
    monkeypatch.setenv("BNFT_JUDGE_KEY", "sk-very-secret")
    folder = tmp_path / "judged"
    with serving(always_first) as server:
        arguments = ["--recipe", "smoke", "--model.load_in_4bit", "false", "--max-steps", "2", "--judge", server.url]
        arguments += ["--eval.judge_samples", "2", "--output-dir", str(tmp_path), "--run-name", "judged"]
        assert train.main(arguments) == 0
        assert "not a person, judged these replies" in capsys.readouterr().out
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["judge"]["rows"] == {"asked": 2, "answered": 2, "unanswered": 0}
        assert metrics["base"]["chrf"]["n"] == 4
        asked = sum(server.asked.values())
        assert len((folder / "judge_answers.jsonl").read_text(encoding="utf-8").splitlines()) == asked
        assert train.main(["--eval-only", str(folder)]) == 0  # the folder alone sends nobody anything
        assert sum(server.asked.values()) == asked
        assert f"--judge {server.url}" in capsys.readouterr().out
        assert json.loads((folder / "metrics.json").read_text())["judge"] == metrics["judge"]
        assert train.main(["--eval-only", str(folder), "--judge", server.url, "--eval.judge_samples", "all"]) == 0
        assert asked < sum(server.asked.values()) <= 8
        assert json.loads((folder / "metrics.json").read_text())["judge"]["rows"]["answered"] == 4
    for path in folder.rglob("*"):
        assert not path.is_file() or b"sk-very-secret" not in path.read_bytes()
    gone = f"http://127.0.0.1:{closed_port()}"
    monkeypatch.setattr("bnft.judge_client.TRIES", 1)
    assert train.main(["--eval-only", str(folder), "--judge", gone]) == 0
    after = json.loads((folder / "metrics.json").read_text())
    assert after["judge"]["problems"] == {"no connection": 8}
    assert after["tuned"] == metrics["tuned"]
    assert train.main(["--eval-only", str(folder), "--judge", "none"]) == 0
    assert "judge" not in json.loads((folder / "metrics.json").read_text())
