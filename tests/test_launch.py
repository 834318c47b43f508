"""One process a GPU: what each is told, and what reaches the caller when one fails or all are interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train
from bnft.config import REPOSITORY
from bnft.launch import launch, launch_training

START = "import sys; from bnft.launch import launch; sys.exit(launch(sys.argv[2:], int(sys.argv[1])))"
HEAD = (
    "import os, sys, time\nfrom bnft.errors import Interrupted, UserError, run_command\n"
    "from bnft.world import current_world, joined, barrier\nfrom bnft.launch import follow_launcher\n"
    "follow_launcher()\nworld = current_world()\n"
)


def start(body: str, processes: int = 2) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", START, str(processes), "-c", HEAD + body],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def in_world(body: str) -> str:
    """A script that runs `body` in a joined world, and leaves as train.py does."""
    lines = "\n        ".join(body.strip().splitlines())
    return f"def main():\n    with joined(world):\n        {lines}\n    return 0\nsys.exit(run_command(main))\n"


def test_each_process_knows_its_place_and_the_handlers_come_back(capfd):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert launch(["-c", "import os; print(os.environ['RANK'] + os.environ['LOCAL_RANK'] + '\\n', end='')"], 3) == 0
    assert sorted(capfd.readouterr().out.split()) == ["00", "11", "22"]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        pytest.param(
            in_world("raise UserError('the recipe is wrong')"),
            2,
            "error: the recipe is wrong\n",
            marks=pytest.mark.slow,
            id="all refuse",
        ),
        pytest.param(
            in_world("if world.rank:\n    raise UserError('GPU 1 is full')\nbarrier(world)"),
            2,
            "error: GPU 1 is full\n",
            id="one refuses",
        ),
        pytest.param(
            in_world("if world.rank:\n    os.kill(os.getpid(), 9)\nbarrier(world)"),
            1,
            "error: process 1 of 2 was ended by SIGKILL",
            id="one is killed",
        ),
    ],
)
def test_a_failure_is_told_once_and_its_status_reaches_the_caller(body, code, told):
    process = start(body)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert errors.startswith(told)
    assert errors.count("error:") == 1
    assert "Traceback" not in errors


WORK = """
import signal
asked = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: asked.append(number))
barrier(world)
print("ready", flush=True)
while not asked:
    time.sleep(0.05)
time.sleep(1.5 if world.leads else 0)  # the leader saves
raise Interrupted(128 + asked[0], "checkpoint saved")
"""


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow), (signal.SIGINT, 130)]
)
def test_an_interruption_reaches_all_and_waits_for_the_leader(number, code):
    process = start(in_world(WORK))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert errors == "checkpoint saved\n"


def test_killed_the_launcher_leaves_no_process_behind():
    process = start("print(os.getpid(), flush=True)\ntime.sleep(60)")
    children = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{child}") for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def smoke(folder, *more):
    """Arguments of a run on the tiny Llama."""
    run = ["--recipe", "smoke", "--output-dir", str(folder.parent), "--run-name", folder.name]
    return [*run, "--model.load_in_4bit", "false", *more]


def losses(folder):
    history = json.loads((folder / "run.json").read_text())["training"]["history"]
    return [line.get("loss", line.get("eval_loss")) for line in history]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process."""
    folder = tmp_path_factory.mktemp("outputs") / "alone"
    assert train.main(smoke(folder)) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_train_as_one_does(alone, tmp_path, capfd, way):
    folder = tmp_path / way
    assert launch_training(smoke(folder, "--parallel", way), 2) == 0
    told = capfd.readouterr()
    assert told.out.count("recipe: smoke") == 1
    assert "Traceback" not in told.err
    assert losses(folder) == pytest.approx(losses(alone), abs=1e-4)
    record = json.loads((folder / "run.json").read_text())
    assert (record["placement"], record["processes"]) == (way, 2)
    ours, other = (load_file(f / "lora_model" / "adapter_model.safetensors") for f in (alone, folder))
    assert ours.keys() == other.keys()
    assert all(torch.allclose(ours[name], other[name], atol=1e-5) for name in ours)
    assert not [p for p in folder.rglob(".*") if p.name not in (".", "..")], "temporary files were left"
    if way == "fsdp":
        assert f"--eval-only {folder}" in told.out
        assert train.main(["--eval-only", str(folder)]) == 0
    metrics = [json.loads((f / "metrics.json").read_text())["tuned"]["bits_per_byte"]["value"] for f in (alone, folder)]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4)


@pytest.mark.slow
def test_under_torchrun_it_joins_the_world(alone, tmp_path):
    folder = tmp_path / "two"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"]
    done = subprocess.run(
        [*torchrun, *smoke(folder, "--parallel", "ddp")], cwd=REPOSITORY, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert losses(folder) == pytest.approx(losses(alone), abs=1e-4)


@pytest.mark.slow
def test_interrupted_in_two_processes_it_goes_on_in_one(tmp_path):
    """The number of processes may change; the rows of a step do not."""
    whole, folder = tmp_path / "whole", tmp_path / "cut"
    more = ["--train.scheduler", "constant", "--max-steps"]
    command = [sys.executable, "-c", START, "2", "train.py", *smoke(folder, "--parallel", "ddp", *more, "5000")]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 240
    while not (folder / "checkpoints" / "checkpoint-2" / "trainer_state.json").exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 130, output
    assert output.count("checkpoint saved") == 1
    assert "Traceback" not in output
    steps = 2 + max(int(p.name.split("-")[1]) for p in (folder / "checkpoints").glob("checkpoint-*"))
    assert train.main(["--resume", str(folder), "--parallel", "single", "--max-steps", str(steps)]) == 0
    assert train.main(smoke(whole, *more, str(steps))) == 0
    both = [json.loads((f / "run.json").read_text())["training"]["history"] for f in (whole, folder)]
    first, second = ({line["step"]: line["loss"] for line in history if "loss" in line} for history in both)
    assert second == pytest.approx(first, abs=1e-4)


@pytest.mark.gpu
@pytest.mark.slow
def test_plain_train_py_uses_both_gpus(tmp_path, capfd):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    folder = tmp_path / "both"
    assert train.main(smoke(folder)) == 0
    record = json.loads((folder / "run.json").read_text())
    assert (record["placement"], record["processes"]) == ("ddp", min(4, torch.cuda.device_count()))
    assert capfd.readouterr().out.count("recipe: smoke") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such signal")
def test_a_worker_ends_with_a_parent_that_was_killed():
    """The pool of `--calibrate`: its worker holds a model, and would wait for work from nobody for ever."""
    code = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from bnft.launch import end_with_parent
pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=end_with_parent)
print(pool.submit(os.getpid).result(), flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 60
    while _runs(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(worker)


def _runs(process):
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
