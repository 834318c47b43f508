"""The pages' server from outside: what it answers to, how much it takes, what its answers tell the browser."""

import http.client
import json
import socket

import pytest

from bnft.config import REPOSITORY
from bnft.http_guard import MAX_BODY
from bnft.turns import Settings, Update
from bnft.ui import build_demo
from bnft.ui_look import serve
from bnft.ui_parts import About

FONTS = REPOSITORY / "bnft" / "assets" / "fonts"
OPEN = ["/", "/config", "/gradio_api/info", "/gradio_api/openapi.json", "/theme.css", "/fonts/HindSiliguri-Bold.woff2"]
CLOSED = [
    # a stranger's page, a stranger's file, this machine's files
    "/gradio_api/file=https://example.org/",
    "/gradio_api/proxy=https://somebody-space.hf.space/",
    f"/gradio_api/file={(FONTS / 'OFL.txt').as_posix()}",
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/file/etc/passwd",
    "/fonts/OFL.txt",
    "/fonts/../page.js",
    "/fonts/..%2fpage.js",
    "/fonts/",
    # what the pages do not use
    "/gradio_api/deep_link?session_hash=a",
    "/gradio_api/runs",
    "/gradio_api/token",
    "/gradio_api/custom_component/a/client/b/c",
    "/gradio_api/upload_progress?upload_id=a",
    "/gradio_api/stream/a/b/1/playlist-file",
    "/gradio_api/vibe-code",
    "/monitoring",
    "/login",
    "/logout",
    "/docs",
    "/openapi.json",
]
WRITES = ["upload", "component_server", "process_recording", "vibe-edit", "stream/a", "run-history/connect", "../login"]


@pytest.fixture(scope="module")
def port():
    def reply(message, history, settings, stop):
        yield Update()
        yield Update("ক", finish_reason="stop")

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    demo = build_demo(reply, lambda history: False, About("m"), Settings(), "শুনুন।")
    serve(demo, "127.0.0.1", port, False)
    yield port
    demo.close(verbose=False)


def ask(port, method, path, body=None, **headers):
    """Status, headers and content; the path goes out as it is written."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content


@pytest.mark.parametrize("path", OPEN)
def test_what_the_pages_need_is_answered_and_says_how_it_may_be_used(port, path):
    status, headers, _ = ask(port, "GET", path)
    assert status == 200
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["frame-ancestors"] == policy["connect-src"] == "'self'"
    assert policy["default-src"] == "'self' data: blob:"
    assert "set-cookie" not in headers


def test_the_page_tells_nothing_of_the_machine(port):
    for path in ("/", "/config"):
        content = ask(port, "GET", path)[2].decode()
        assert str(REPOSITORY) not in content
        assert "fonts/HindSiliguri-Bold.woff2" in content


@pytest.mark.parametrize("path", CLOSED)
def test_all_else_is_not_found(port, path):
    status, headers, content = ask(port, "GET", path)
    assert (status, content) == (404, b"")
    assert "content-security-policy" in headers


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE"])
def test_other_methods_are_not_found(port, method):
    assert ask(port, method, "/")[0] == 404


@pytest.mark.parametrize("path", WRITES)
def test_nothing_can_be_left_behind(port, path):
    content = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.html"\r\n\r\n<b>\r\n--x--\r\n'
    assert (
        ask(port, "POST", f"/gradio_api/{path}", content, **{"content-type": "multipart/form-data; boundary=x"})[0]
        == 404
    )


@pytest.mark.parametrize("path", ["run", "api"])
def test_nobody_goes_past_the_queue(port, path):
    """A generator that is called once by hand would stay unfinished for ever."""
    body = json.dumps({"data": ["ক", None, "bn", None, 8, 0.7, 0.9]})
    status, _, content = ask(port, "POST", f"/gradio_api/{path}/chat", body, **{"content-type": "application/json"})
    assert status == 404
    assert b"join the queue" in content


@pytest.mark.parametrize("path", ["queue/join", "run/predict", "call/chat", "call/v2/chat", "cancel", "reset"])
def test_every_door_has_its_limit(port, path):
    piece = b"a" * 2**20
    pieces = [piece] * (MAX_BODY // len(piece) + 1)
    try:  # sent without telling how much will come
        status, _, _ = ask(port, "POST", f"/gradio_api/{path}", iter(pieces), **{"content-type": "application/json"})
    except ConnectionError:  # hung up on while it was sending
        return
    assert status in (413, 422)  # 422: an address that reads no body has not read this one either


def test_a_space_may_be_shown_by_the_hub_and_by_nobody_else(monkeypatch):
    from bnft.http_guard import headers

    monkeypatch.setenv("SPACE_ID", "somebody/chat")
    assert headers()["content-security-policy"].endswith("'self' https://huggingface.co https://*.hf.space")


def test_a_shared_page_loads_nothing_from_another_server_either(monkeypatch):
    """Gradio's page for shared ones takes its script from a bucket of its makers; the tunnel itself is not built."""
    monkeypatch.setattr("gradio.networking.setup_tunnel", lambda **options: "https://shared.example")
    demo = build_demo(lambda *anything: iter(()), lambda history: False, About("m"), Settings(), "শুনুন।")
    try:
        assert serve(demo, "127.0.0.1", None, True).startswith("https://shared.example")
        page = ask(demo.server_port, "GET", "/")[2].decode()
    finally:
        demo.close(verbose=False)
    assert "amazonaws" not in page
    assert "./assets/index" in page
