"""The page in front of another server: a real HTTP server that speaks the streaming protocol, well and badly."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest

from bnft.endpoint import MAX_PROMPT_CHARACTERS, EndpointError, EndpointSource, settle
from bnft.errors import UserError
from bnft.streaming import Sampling

ASKED = [{"role": "system", "content": "শুনুন।"}, {"role": "user", "content": "মন ভালো নেই।"}]
SAMPLING = Sampling(64, 0.7, 0.9, 1.0)


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """Only this machine is asked; the tests' offline switch would forbid even that."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def do_GET(self):
        self.server.seen.append(("GET", self.path, dict(self.headers), None))
        self._json({"data": [{"id": "served-model"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.seen.append(("POST", self.path, dict(self.headers), body))
        if self.server.status != 200:
            return self._json({"error": "no"}, self.server.status)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        try:
            for piece in self.server.script:
                if callable(piece):
                    piece()
                else:
                    self.wfile.write(f"data: {piece}\n\n".encode())
                    self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            self.server.hung_up.set()
        return None

    def _json(self, value, status=200):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(*script, status=200):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.script, server.status, server.seen, server.hung_up = script, status, [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def chunk(content, reason=None):
    choice = {"index": 0, "delta": {"role": "assistant", "content": content}, "finish_reason": reason}
    return json.dumps({"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})


def read(source, messages=ASKED, stop=None):
    return list(source.stream(messages, SAMPLING, stop or threading.Event()))


def test_the_reply_grows_by_whole_clusters_and_the_request_is_as_asked():
    pieces = ["আ", "মি", " শ", "ক", "্", "তি ", "পা", "চ্ছি", "।"]
    with serving(*map(chunk, pieces), chunk("", "stop"), "[DONE]") as server:
        frames = read(EndpointSource(server.url))
        _, path, headers, body = server.seen[-1]
    assert (frames[-1].text, frames[-1].finish_reason) == ("আমি শক্তি পাচ্ছি।", "stop")
    texts = [frame.text for frame in frames]
    assert all(after.startswith(before) for before, after in pairwise(texts))
    assert "আমি শক্" not in texts
    assert path == "/v1/chat/completions"
    assert body["messages"] == ASKED
    assert (body["model"], body["max_tokens"], body["temperature"], body["top_p"]) == ("served-model", 64, 0.7, 0.9)
    assert body["stream"] is True
    assert "hf_secret" not in str(headers)


@pytest.mark.parametrize(
    ("script", "text", "reason"),
    [
        ([chunk("শক্"), chunk("", "length"), "[DONE]"], "শক", "length"),
        ([chunk("মন\ufffd"), chunk("টা", "stop")], "মনটা", "stop"),
        ([chunk(None), chunk("মন"), chunk(None, "stop"), "[DONE]"], "মন", "stop"),
        ([chunk("", "stop"), "[DONE]"], "", "stop"),
        ([chunk("মন")], "মন", "stop"),  # the server ends without a word
        ([chunk("মন", "stop"), '{"choices": [], "id": "1", "created": 1, "model": "m", "usage": {}}'], "মন", "stop"),
    ],
)
def test_what_servers_send(script, text, reason):
    with serving(*script) as server:
        last = read(EndpointSource(server.url + "/v1/"))[-1]
    assert (last.text, last.finish_reason) == (text, reason)


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500, 503])
def test_a_server_that_refuses(status):
    with serving(status=status) as server, pytest.raises(EndpointError):
        read(EndpointSource(server.url, "m"))


@pytest.mark.parametrize("script", [["{not json"], ['{"error": "CUDA out of memory", "error_type": "x"}'], ["[1]"]])
def test_a_server_that_sends_nonsense(script):
    with serving(chunk("মন "), *script) as server, pytest.raises(EndpointError):
        read(EndpointSource(server.url))


@pytest.mark.parametrize("before", [(), (chunk("মন "),)])
def test_a_server_that_hangs_is_given_up(before):
    free = threading.Event()
    with serving(*before, lambda: free.wait(20)) as server:
        source = EndpointSource(server.url, first_word=0.5, next_word=0.5)
        started = time.monotonic()
        with pytest.raises(EndpointError):
            read(source)
        assert time.monotonic() - started < 15
        free.set()


def test_stop_ends_at_once_and_hangs_up():
    ticks = [piece for i in range(400) for piece in (chunk(f"মন{i} "), lambda: time.sleep(0.05))]
    with serving(*ticks) as server:
        stop = threading.Event()
        stream = EndpointSource(server.url).stream(ASKED, SAMPLING, stop)
        while not next(stream).text:
            pass
        stop.set()
        stopped = time.monotonic()
        last = list(stream)[-1]
        assert last.finish_reason == "stopped"
        assert last.text
        assert time.monotonic() - stopped < 10  # the rest takes twice as long
        assert server.hung_up.wait(30)


def test_long_histories_lose_their_oldest_exchanges_only():
    turn = [{"role": "user", "content": "ক" * 2000}, {"role": "assistant", "content": "খ" * 2000}]
    with serving(chunk("মন", "stop")) as server:
        read(EndpointSource(server.url), [ASKED[0], *turn * 20, ASKED[1]])
        sent = server.seen[-1][3]["messages"]
    assert sent[0] == ASKED[0]
    assert sent[-1] == ASKED[1]
    assert sent[1]["role"] == "user"
    assert sum(len(m["content"]) for m in sent[1:]) <= MAX_PROMPT_CHARACTERS


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/", "http://", "nonsense", "http://a\tb"])
def test_a_url_that_is_none(url):
    with pytest.raises(UserError, match="no URL"):
        EndpointSource(url)


def test_nobody_there():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match="nothing answers"):
            EndpointSource(url)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("ম", ""),
        ("মন", "ম"),
        ("মন ", "মন"),
        ("মন।", "মন।"),
        ("শক্", "শ"),
        ("শক্ত", "শ"),
        ("র\u200d্যা", ""),
        ("মন\ufffd", "ম"),
        ("ok", "o"),
        ("👩\u200d👩", ""),
    ],
)
def test_settle(text, shown):
    assert settle(text) == shown


@pytest.mark.slow
def test_a_real_transformers_server(tiny, tmp_path):
    command = shutil.which("transformers", path=os.path.dirname(sys.executable))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path / "log").open("wb")
    server = subprocess.Popen(
        [command, "serve", tiny.base, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
        stdout=log,
        stderr=log,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/v1/models", server, 90)
        source = EndpointSource(f"http://127.0.0.1:{port}", tiny.base)
        frames = read(source)
        assert frames[-1].finish_reason in ("stop", "length")
        assert frames[-1].text
        assert len(frames) > 2
        assert not any("\ufffd" in frame.text for frame in frames)
        stop = threading.Event()
        stream = source.stream(ASKED, Sampling(512, 0.7, 0.9, 1.0), stop)
        next(stream)
        stop.set()
        assert list(stream)[-1].finish_reason == "stopped"
    finally:
        server.terminate()
        server.wait(20)
        log.close()


def wait_for(url, process, seconds):
    for _ in range(seconds * 5):
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail("the server did not start")
