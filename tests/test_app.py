"""`app.py`: its flags, every kind of model that it takes, and the process with programs in front of it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

import app
from bnft.config import REPOSITORY
from bnft.streaming import Sampling
from tests.test_gguf_files import write_llama
from tests.test_serving import make_run

QUESTION = "নতুন শহরে এসে খুব একা লাগছে।"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--port", "0"], "--port 0"),
        (["--port", "x"], "--port"),
        (["--prot", "1"], "--prot"),
        (["--endpoint", "localhost"], "no URL"),
        (["--endpoint", "http://x", "--load-in-4bit"], "--load-in-4bit"),
        (["--model", "/no/such/folder"], "/no/such/folder"),
        (["--model", "."], "no model folder"),
    ],
)
def test_bad_input_is_one_message_and_status_2(flags, complaint, capsys):
    assert app.main(flags) == 2
    told = capsys.readouterr().err
    assert complaint in told
    assert "Traceback" not in told


@pytest.fixture(scope="session")
def run_folder(tiny, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("outputs"), tiny)


@pytest.fixture
def named(run_folder, tiny, tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    """What stands for each kind of model, under the name of its kind."""
    monkeypatch.setenv("BNFT_CACHE", str(Path(tiny.base).parent.parent))
    gguf = tmp_path / "tiny.gguf"
    write_llama(gguf, tiny_model, tiny_tokenizer)
    kinds = {"run": run_folder, "adapter": run_folder / "lora_model", "merged": tiny.base, "gguf": gguf}
    return {kind: str(path) for kind, path in kinds.items()}


@pytest.mark.parametrize("kind", ["run", "adapter", "merged", "gguf", "newest", "environment"])
def test_every_kind_of_model_is_taken(named, run_folder, kind, capsys, monkeypatch):
    flags = ["--model", named[kind]] if kind in named else ["--output-dir", str(run_folder.parent)]
    if kind == "environment":
        monkeypatch.setenv("BNFT_MODEL", named["merged"])
    source, served = app.open_source(app.read_flags(flags))
    asked = [{"role": "user", "content": QUESTION}]
    *_, last = source.stream(asked, Sampling(8, 0.7, 0.9, 1.0, seed=1), threading.Event())
    assert last.tokens == 8
    assert source.can_compare is (kind in ("run", "adapter", "newest"))
    assert served.name
    reason = "the newest run" if kind == "newest" else "as set"
    assert f"({reason})" in capsys.readouterr().out


# -- the process -------------------------------------------------------------------------------------------------


def command(*flags):
    return [sys.executable, "app.py", *map(str, flags)]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def app_process(*flags, log, **environment):
    """`app.py` on a free port, until the block is left; yields its address."""
    port = free_port()
    with log.open("w") as out:
        process = subprocess.Popen(
            command(*flags, "--port", port),
            cwd=REPOSITORY,
            stdout=out,
            stderr=out,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        )
    try:
        for _ in range(900):
            if "open http" in log.read_text():
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(120) == 128 + signal.SIGTERM
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_a_port_that_is_taken(tiny):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        flags = command("--model", tiny.base, "--port", taken.getsockname()[1])
        done = subprocess.run(flags, cwd=REPOSITORY, capture_output=True, text=True, timeout=180)
    assert done.returncode == 2
    assert "cannot listen on" in done.stderr


@pytest.mark.slow
def test_without_a_run_the_embedded_model_is_served_and_the_page_says_so(embedded, tmp_path):
    with (
        app_process("--output-dir", tmp_path, log=tmp_path / "log") as url,
        urllib.request.urlopen(url, timeout=30) as answer,
    ):
        page = answer.read().decode()
    assert "no run found; python train.py makes one" in (tmp_path / "log").read_text()
    assert "Gemma 3 270M" in page
    assert "python train.py" in page
