"""`publish.py` when something is wrong: ended in the middle, a Hub or a disk that fails, bad input, half a run.

Nothing public is left half done, what is wrong is told in one message, and the same command completes it.
"""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from bnft.records import RunDirectory
from tests.hub_server import wait_for
from tests.publisher import REPO, card_of, name_base


@pytest.mark.slow
def test_one_publication_of_a_run_at_a_time(run, person, server):
    with RunDirectory(run).held():
        assert "another process is at work in the run" in person.publishes(run, "--dry-run", code=2)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_end_in_mid_upload_leaves_nothing_public_and_a_rerun_completes(run, person, server, number, code):
    server.fail("POST", "/commit/", 503, times=10_000)
    process = person.start("publish.py", "--repo", REPO, "--run", run, "--compare-rows", "0")
    wait_for(lambda: process.returncode is not None or any("/commit/" in line for line in list(server.requests)), 240)
    assert process.returncode is None, process.output
    process.send_signal(number)
    output = process.result(timeout=120)
    assert process.returncode == code, output
    assert "Traceback" not in output
    assert all(repo.private for repo in server.repos.values())
    assert all(set(repo.files()) == {".gitattributes"} for repo in server.repos.values())
    server.faults.clear()
    sent = list(server.uploaded)
    (run / "publish" / "merged" / ".bnft.json.part").write_text("{")  # as a process leaves it that is killed in writing
    assert "not made again" in person.publishes(run, "--compare-rows", "0")
    assert not any(repo.private for repo in server.repos.values())
    assert len(set(server.uploaded)) == len(server.uploaded) > len(sent), "bytes were sent twice"
    assert not [path for repo in server.repos.values() for path in repo.files() if path.endswith(".part")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(("PUT", "/lfs/", 0), id="cut-connection-in-mid-file"),
        pytest.param(("POST", f"/api/models/{REPO}-lora/commit", 500), id="server-errors"),
    ],
)
def test_a_lasting_fault_leaves_nothing_public_and_a_rerun_completes(run, person, server, fault):
    server.fail(*fault, times=10_000)
    output = person.publishes(run, "--compare-rows", "0", code=1)
    assert "Run the same command again" in output
    assert all(repo.private for repo in server.repos.values())
    server.faults.clear()
    person.publishes(run, "--compare-rows", "0")
    assert not any(repo.private for repo in server.repos.values())


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, and what changes its size."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(*options):
        return subprocess.run(["mount", *options, str(disk)], capture_output=True).returncode == 0

    if os.geteuid() != 0 or not mount("-t", "tmpfs", "-o", "size=200m", "none"):
        pytest.skip("this machine lets nobody mount a tmpfs")
    yield disk, lambda size: mount("-o", f"remount,size={size}")
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_told_before_anything_is_sent_and_a_rerun_completes(finished, person, server, small_disk):
    disk, resize = small_disk
    run = shutil.copytree(finished, disk / "one")
    used = shutil.disk_usage(disk).used
    for room, words, said in (
        (2**17, ["--only", "adapter"], "the disk is full"),
        (2**22, [], "the merged weights need"),
    ):
        assert resize(used + room)
        output = person.publishes(run, *words, code=1)
        assert said in output
        assert server.repos == {}
    assert resize("200m")
    person.publishes(run, "--compare-rows", "0")
    assert len(server.repos) == 4
    assert not any(repo.private for repo in server.repos.values())


@pytest.mark.slow
def test_a_disk_that_fills_up_between_two_shards(run, person, server, tiny, small_disk, tmp_path):
    """Shards of the base come onto it one by one; there is room for the first one only."""
    from safetensors import torch as safetensors

    disk, resize = small_disk
    weights = safetensors.load_file(Path(tiny.base) / "model.safetensors")
    small = {name: value for name, value in weights.items() if ".layers." in name}  # 148 KB; the others 525 KB
    large = {name: value for name, value in weights.items() if name not in small}
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    files = {name: safetensors.save(part) for name, part in zip(names, (small, large), strict=True)}
    places = dict.fromkeys(small, names[0]) | dict.fromkeys(large, names[1])
    files["model.safetensors.index.json"] = json.dumps({"weight_map": places}).encode()
    files["config.json"] = (Path(tiny.base) / "config.json").read_bytes()
    server.add("somebody/tiny", files)
    name_base(run, "somebody/tiny")
    shards = run / "publish" / "shards"
    shards.mkdir(parents=True)
    subprocess.run(["mount", "--bind", disk, shards], check=True)
    assert resize("400k")
    try:
        output = person.publishes(run, "--low-disk", "--only", "merged", code=1)
    finally:
        subprocess.run(["umount", shards], check=True)
    assert "the disk is full" in output
    assert len(server.uploaded) == 1
    assert server.repo(REPO).private
    assert not list(disk.iterdir()), "what was downloaded in part keeps the disk full"
    sent = list(server.uploaded)
    person.publishes(run, "--low-disk", "--only", "merged")
    assert not server.repo(REPO).private
    assert len(set(server.uploaded)) == len(server.uploaded) > len(sent), "bytes were sent twice"
    card, text = card_of(server, REPO)
    assert (card["license"], card["license_name"]) == ("other", "base-model")
    assert card["license_link"] == "https://huggingface.co/somebody/tiny"
    assert "could not tell which one that is" in text


def test_a_key_in_a_file_stops_everything(run, person, server):
    notes = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(notes | {"note": "hf_" + "a" * 34}))
    output = person.publishes(run, "--only", "adapter", code=2)
    assert "metrics.json: a Hugging Face token" in output
    assert "a" * 34 not in output
    assert server.repos == {}


def flip(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def strip(path, *keys):
    value = json.loads(path.read_text())
    inner = value
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda run: (run / "metrics.json").unlink(), "--eval-only"),
        (lambda run: strip(run / "run.json", "training", "seconds"), "'seconds'"),
        (lambda run: strip(run / "metrics.json", "tuned", "chrf"), "'chrf'"),
        (lambda run: (run / "plots" / "loss.png").unlink(), "plots/loss.png"),
        (lambda run: shutil.rmtree(run / "lora_model"), "no lora_model/"),
        (lambda run: shutil.rmtree(run), "no run folder"),
        (lambda run: flip(run / "lora_model" / "adapter_model.safetensors"), "checksum of adapter_model.safetensors"),
    ],
)
def test_a_run_that_is_not_whole_is_refused(run, person, server, harm, said):
    harm(run)
    assert said in person.publishes(run, code=2)
    assert server.repos == {}


def test_a_base_that_is_gone_is_told(run, person, server):
    name_base(run, "somebody/gone")
    output = person.publishes(run, code=2)
    assert "somebody/gone" in output
    assert server.repos == {}


@pytest.mark.parametrize(
    ("words", "token", "said"),
    [
        ([], None, "hf auth login"),
        ([], "hf_" + "r" * 34, "may only read"),
        (["--repo", "somebody/x"], None, "hf auth login"),
        (["--repo", "x"], "hf_" + "w" * 34, "is not USER/NAME"),
        (["--repo", "user/x--y"], "hf_" + "w" * 34, "takes no repository"),
        (["--repo", "somebody/x"], "hf_" + "w" * 34, "not yours"),
        (["--only", "weights"], "hf_" + "w" * 34, "none of the parts"),
        (["--run", "nowhere"], "hf_" + "w" * 34, "no run folder"),
        (["--dry-run", "--low-disk"], "hf_" + "w" * 34, "--low-disk keeps none"),
    ],
)
def test_bad_input_is_one_message_and_exit_2(run, person, server, words, token, said):
    person.environment["HF_TOKEN"] = token or ""
    output = person.publishes(run, *words, code=2)
    assert said in output
    assert server.repos == {}
