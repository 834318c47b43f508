"""Replies from a lent GPU: the real `spaces` library, its forked process and its queues, against a small lender here.

Only the last step is left out, for which a GPU is needed: the weights are not moved to it.
"""

import importlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from bnft.config import REPOSITORY
from bnft.streaming import Sampling
from bnft.zero_gpu import first_device, is_zero_gpu, seconds_for


class Lender(BaseHTTPRequestHandler):
    """What the Hub does for a Space on ZeroGPU: says which GPU is whose, and for how long."""

    protocol_version = "HTTP/1.1"
    asked: list

    def do_POST(self):
        address = urlsplit(self.path)
        self.asked.append((address.path, {key: value for key, (value,) in parse_qs(address.query).items()}))
        schedules = sum(path == "/schedule" for path, _ in self.asked)
        code, answer = 200, b"{}"
        if address.path == "/schedule":
            lent = {"idle": schedules > 1, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": str(schedules)}
            code, answer = (429, {"left": 0, "wait": "00:10:00"}) if schedules == 5 else (200, lent)
            answer = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        pass


SPACE = """
import json, os, sys, threading
from bnft.config import default_environment
from bnft.zero_gpu import LentEngine, first_device, is_zero_gpu

import torch
if not torch.version.cuda:  # a build for CPUs lacks what the library looks up
    torch.version.cuda, torch._C._cuda_init, torch.cuda._is_in_bad_fork = "13.0", bool, bool
assert is_zero_gpu() and first_device() == "cpu"
import spaces.zero.torch as lending
from spaces.zero.torch.patching import cuda_aliases

def stay(callback=None):
    for lent, own in cuda_aliases.items():
        lent.data = own

lending.init, lending.move = lambda gpu: None, stay

from app import open_source, read_flags
from bnft.line import LineFull
from bnft.models import find_model, load_model
from bnft.prompts import end_token_ids
from bnft.settings import ModelConfig
from bnft.streaming import Engine, Sampling

source, _ = open_source(read_flags(["--model", "smoke"]))
assert isinstance(source.engine, LentEngine), source.engine
plain = load_model(find_model("smoke"), ModelConfig(name="smoke"), "cpu")
plain = Engine(plain, source.tokenizer, end_token_ids(source.tokenizer), quick=False)
prompt = source.tokenizer("আজ মনটা ভালো নেই।").input_ids
greedy, drawn = Sampling(24, 0.0, 1.0, 1.1), Sampling(24, 0.8, 0.9, 1.0, seed=3)
told = {"pid": os.getpid()}
for name, sampling in (("greedy", greedy), ("drawn", drawn)):
    expected, lent = (list(engine.stream(prompt, sampling)) for engine in (plain, source.engine))
    told[name] = lent == expected and len(lent) > 8

stop, shown = threading.Event(), []
for piece in source.engine.stream(prompt, Sampling(2000, 0.8, 0.9, 1.0, seed=3), stop):
    shown.append(piece)
    if len(shown) == 4:
        stop.set()
told["stopped"] = [len(shown), shown[-1].finish_reason, shown[-1].text.startswith(shown[-2].text)]
closed = source.engine.stream(prompt, greedy)
next(closed)
closed.close()

for name, ids in (("quota", prompt), ("failure", [10**6])):
    try:
        list(source.engine.stream(ids, greedy))
    except (LineFull, RuntimeError) as error:
        told[name] = f"{type(error).__name__} {error}"
stop = threading.Event()
stop.set()
told["too late"] = [piece.finish_reason for piece in source.engine.stream(prompt, greedy, stop)]
print("TOLD", json.dumps(told))
"""


@pytest.fixture(scope="module")
def lent(tiny, tmp_path_factory):
    """What a Space on ZeroGPU saw, and what its lender was asked for."""
    folder, asked = tmp_path_factory.mktemp("zero"), []
    (folder / "cgroup").write_text("0::/space\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneLender", (Lender,), {"asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "SPACES_ZERO_GPU": "true",
        "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "ZEROGPU_PROC_SELF_CGROUP_PATH": str(folder / "cgroup"),
        "BNFT_CACHE": str(Path(tiny.base).parent.parent),
        "HOME": str(folder),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", SPACE], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=180
    )
    server.shutdown()
    server.server_close()
    lines = [line.removeprefix("TOLD ") for line in done.stdout.splitlines() if line.startswith("TOLD ")]
    assert lines, done.stdout + done.stderr
    return json.loads(lines[0]), asked


@pytest.mark.slow
def test_the_same_text_streams_from_the_other_process(lent):
    told, asked = lent
    assert told["greedy"]
    assert told["drawn"]
    (worker,) = {values["pid"] for path, values in asked if path == "/allow"} - {str(told["pid"])}
    assert worker, "the process was used for one reply only, or replies were made in this one"


@pytest.mark.slow
def test_a_gpu_is_asked_for_no_longer_than_the_reply_may_take(lent):
    _, asked = lent
    seconds = [int(values["durationSeconds"]) for path, values in asked if path == "/schedule"]
    assert seconds[:3] == [22, 22, 140]


@pytest.mark.slow
def test_a_stop_ends_the_reply_there_and_gives_the_gpu_back(lent):
    told, asked = lent
    count, reason, grows = told["stopped"]
    assert (count, reason, grows) == (5, "stopped", True)
    assert told["too late"] == ["stopped"]
    released = [values["allowToken"] for path, values in asked if path == "/release" and values["fail"] == "false"]
    assert released == ["1", "2", "3", "4"], "finished, finished, stopped and closed replies"


@pytest.mark.slow
def test_no_quota_is_a_full_line_and_a_failure_is_a_failure(lent):
    told, asked = lent
    assert told["quota"].startswith("LineFull")
    assert told["failure"] == "RuntimeError ZeroGPU worker error: IndexError"
    assert ("/release", {"allowToken": "6", "fail": "true"}) in asked


def test_nothing_changes_anywhere_else(monkeypatch):
    assert not is_zero_gpu()
    assert first_device() is None
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert is_zero_gpu()
    monkeypatch.setattr("bnft.zero_gpu.find_spec", lambda name: None)
    assert not is_zero_gpu(), "without the library there is no GPU to be had"
    assert first_device() is None


def test_the_library_is_not_even_imported_elsewhere():
    importlib.import_module("bnft.chat")
    assert first_device() is None
    assert "spaces" not in sys.modules


@pytest.mark.parametrize(("tokens", "seconds"), [(8, 21), (256, 36), (1024, 82)])
def test_seconds(tokens, seconds):
    assert seconds_for([1], Sampling(tokens, 0.7, 0.9, 1.0), False) == seconds
