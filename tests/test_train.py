"""`train.py` as a person runs it: whole runs, their records, bad input, interruptions."""

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import train
from bnft.config import resolve
from bnft.manifest import read_facts, seal
from bnft.rating_summary import record_summary
from tests.commands import Command
from tests.test_rating_summary import rate_all

FLOAT = ["--model.load_in_4bit", "false"]


@pytest.fixture
def run(finished):
    return finished


@pytest.fixture(scope="module")
def other_model(tmp_path_factory, tiny):
    """The tiny Llama with a smaller vocabulary."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(tiny.base, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(2040)
    model.save_pretrained(folder)
    return folder


def test_a_run_leaves_all_its_records(run):
    for name in (
        "config.yaml",
        "run.json",
        "data_report.json",
        "splits/train.jsonl",
        "splits/validation.jsonl",
        "splits/test.jsonl",
        "lora_model/adapter_model.safetensors",
        "lora_model/tokenizer.json",
        "checkpoints/checkpoint-4/adapter_model.safetensors",
        "metrics.json",
        "GeneratedResponses.csv",
        "plots/loss.png",
        "plots/learning_rate.png",
        "plots/token_lengths.png",
        "plots/base_against_tuned.png",
        "../LLAMAExperiments.csv",
    ):
        assert (run / name).stat().st_size > 0, name
    assert (run.parent / "latest").resolve() == run.resolve()
    assert not [p for p in run.rglob(".*") if p.name not in (".", "..")], "temporary files were left"


def test_the_numbers_agree_between_the_records(run):
    metrics = json.loads((run / "metrics.json").read_text())
    record = json.loads((run / "run.json").read_text())
    experiments = list(csv.DictReader((run.parent / "LLAMAExperiments.csv").open(encoding="utf-8")))
    responses = list(csv.DictReader((run / "GeneratedResponses.csv").open(encoding="utf-8")))
    assert experiments[-1]["run"] == "one"
    assert float(experiments[-1]["tuned_bits_per_byte"]) == round(metrics["tuned"]["bits_per_byte"]["value"], 5)
    assert len(responses) == metrics["test"]["rows_generated"] == 4
    tests = [json.loads(line) for line in (run / "splits/test.jsonl").read_text(encoding="utf-8").splitlines()]
    assert metrics["test"]["rows"] == sum(len(t["messages"]) // 2 for t in tests)
    references = {m["content"] for t in tests for m in t["messages"]}
    assert {r["reference"] for r in responses} <= references
    assert record["training"]["steps"] == 4
    assert record["data"]["exchanges"]["test"] == metrics["test"]["rows"]
    for score in (*metrics["base"].values(), *metrics["tuned"].values()):
        assert score["signature"]
        assert score["n"] in (4, metrics["test"]["rows"])


def test_evaluating_again_gives_the_same_numbers_and_keeps_what_people_said(run, tmp_path):
    run = Path(shutil.copytree(run, tmp_path / "one"))
    config, _ = resolve(str(run / "config.yaml"), {})
    rate_all(run, ["রিনা"], 2)
    record_summary(run, config.eval.bootstrap, config.seed)
    before = json.loads((run / "metrics.json").read_text())
    assert before["human"]["ratings"] == 2
    kept = {path.name: path.read_bytes() for path in (run / "generated").iterdir()}
    assert sorted(kept) == ["base.jsonl", "tuned.jsonl"]
    assert train.main(["--eval-only", str(run)]) == 0
    assert json.loads((run / "metrics.json").read_text()) == before
    assert {path.name: path.read_bytes() for path in (run / "generated").iterdir()} == kept, "replies were made again"


def test_the_run_can_be_made_again_from_its_own_settings(run, tmp_path):
    arguments = ["--recipe", str(run / "config.yaml"), "--output-dir", str(tmp_path), "--run-name", "again"]
    assert train.main(arguments) == 0
    first, second = (json.loads((r / "metrics.json").read_text())["tuned"] for r in (run, tmp_path / "again"))
    assert first["bits_per_byte"] == second["bits_per_byte"]


def test_no_secret_and_no_home_folder_in_the_records(run):
    for path in run.parent.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".yaml", ".csv", ".jsonl") and "lora_model" not in path.parts:
            text = path.read_text(encoding="utf-8")
            assert "hf_" + "token" not in text.lower()
            if "checkpoints" not in path.parts:
                assert str(Path.home()) not in text, path


def fails(capsys, *arguments, code=2):
    assert train.main(list(arguments)) == code
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--recip", "smoke"], ["--recip", "nearest: --recipe"]),
        (["--recipe", "smok"], ["no recipe 'smok'", "nearest: 'smoke'", "laptop"]),
        (["--recipe", "smoke", "--lora.rank", "4"], ["--lora.rank"]),
        (["--recipe", "smoke", "--lora.r", "many"], ["lora.r: got 'many'"]),
        (["--recipe", "smoke", "--data", "nowhere.csv"], ["nowhere.csv"]),
        (["--recipe", "smoke", "--model", "nowhere"], ["no model 'nowhere'"]),
        (["--recipe", "smoke", "--strategy", "unsloth"], ["--strategy unsloth cannot be used"]),
        (["--recipe", "smoke", "--parallel", "ddp"], ["needs at least two GPUs, 0 found"]),
        (["--recipe", "smoke", "--run-name", "../out"], ["cannot be a folder name"]),
        (["--resume", "nowhere"], ["no run folder"]),
        (["--eval-only", "README.md"], ["no run folder"]),
        (["--eval-only", "nowhere"], ["no run folder"]),
        (["--resume", "a", "--eval-only", "b"], ["not allowed with"]),
    ],
)
def test_bad_input_is_one_message_and_exit_2(capsys, tmp_path, arguments, parts):
    message = fails(capsys, *arguments, "--output-dir", str(tmp_path))
    for part in parts:
        assert part in message
    assert not [p for p in tmp_path.iterdir() if p.is_dir()], "half a run was left behind"


def test_an_existing_run_is_not_touched(capsys, run):
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    message = fails(capsys, "--recipe", "smoke", "--output-dir", str(run.parent), "--run-name", "one")
    assert "exists already" in message
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_settings_that_the_weights_depend_on_cannot_change_on_resume(capsys, run):
    assert "--lora.r cannot change in an existing run" in fails(capsys, "--resume", str(run), "--lora.r", "8")


def test_a_csv_without_the_columns_names_what_was_found(capsys, tmp_path):
    (tmp_path / "x.csv").write_text("Question,Reply\nক,খ\n", encoding="utf-8")
    message = fails(capsys, "--recipe", "smoke", "--data", str(tmp_path / "x.csv"), "--output-dir", str(tmp_path))
    assert "Reply" in message


def test_the_plan_does_nothing(capsys, tmp_path):
    assert train.main(["--recipe", "smoke", "--plan", "--output-dir", str(tmp_path / "outputs")]) == 0
    text = capsys.readouterr().out
    assert "4 steps of 4 conversations" in text
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_run_saves_and_can_go_on(tmp_path, tiny, number, code):
    folder = tmp_path / "run"
    long = ["--recipe", "smoke", *FLOAT, "--max-steps", "5000", "--run-name", "run", "--output-dir", str(tmp_path)]
    process = Command("train.py", *long)
    deadline = time.monotonic() + 240
    while not (folder / "checkpoints" / "checkpoint-2" / "trainer_state.json").exists():
        assert process.returncode is None, process.output
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(number)
    output = process.result(timeout=240)
    assert process.returncode == code, output
    assert "python train.py --resume" in output
    assert "Traceback" not in output
    steps = max(int(p.name.split("-")[1]) for p in (folder / "checkpoints").glob("checkpoint-*"))
    assert train.main(["--resume", str(folder), "--max-steps", str(steps + 1)]) == 0
    assert json.loads((folder / "run.json").read_text())["training"]["steps"] == steps + 1
    assert (folder / "metrics.json").is_file()


DYING = """
import os, signal, sys
import torch
import bnft.checkpoints
import train

def die_in(owner, name, count, matches=lambda *arguments: True, first=lambda *arguments: None):
    real, calls = getattr(owner, name), []

    def dying(*arguments, **options):
        calls.extend([1] if matches(*arguments) else [])
        if len(calls) == count:
            first(*arguments)
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(owner, name, dying)
    return real

def half(content, path):
    save(content, path)
    os.truncate(path, os.path.getsize(path) // 2)

where, count = sys.argv[1], int(sys.argv[2])
if where == "step":
    die_in(torch.optim.AdamW, "step", count)
elif where == "seal":
    die_in(bnft.checkpoints, "seal", count)
else:
    save = die_in(torch, "save", count, lambda content, path: str(path).endswith(where), half)
sys.exit(train.main(sys.argv[3:]))
"""


def die(where, count, *arguments):
    """What train.py prints until it kills itself at the given call: in a step, in the middle of a file, or later."""
    process = Command("-c", DYING, where, count, *arguments)
    output = process.result(timeout=240)
    assert process.returncode == -signal.SIGKILL, output
    return output


def curve(run):
    """All that was logged but the times, and the adapter."""
    history = json.loads((run / "run.json").read_text())["training"]["history"]
    kept = [{name: value for name, value in line.items() if "runtime" not in name} for line in history]
    return kept, (run / "lora_model" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_that_was_killed_again_and_again_ends_as_an_uninterrupted_one_bit_by_bit(tmp_path, tiny, capsys):
    smoke = ["--recipe", "smoke", *FLOAT, "--max-steps", "6", "--train.save_steps", "1", "--train.eval_steps", "1"]
    smoke += ["--output-dir", str(tmp_path), "--run-name"]
    assert train.main([*smoke, "whole"]) == 0
    run = tmp_path / "killed"
    resume = ["--resume", str(run)]
    die("step", 1, *smoke, "killed")
    assert "the beginning: there is no whole checkpoint" in die("optimizer.pt", 2, *resume)
    told = die("step", 3, *resume)
    assert "checkpoint-2: it is not whole, optimizer.pt is missing or cut" in told
    assert "going on from" in told
    adapter = run / "checkpoints" / "checkpoint-3" / "adapter_model.safetensors"
    content = bytearray(adapter.read_bytes())
    content[-1] ^= 1
    adapter.write_bytes(content)
    told = die("seal", 3, *resume)
    assert "checkpoint-3: it is not whole, the checksum of adapter_model.safetensors is wrong" in told
    assert f"going on from {run / 'checkpoints' / 'checkpoint-2'}" in told
    capsys.readouterr()
    assert train.main(resume) == 0
    assert f"going on from {run / 'checkpoints' / 'checkpoint-5'}" in capsys.readouterr().out
    (losses, adapter), (expected_losses, expected_adapter) = curve(run), curve(tmp_path / "whole")
    assert losses == expected_losses
    assert [line["step"] for line in losses if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert adapter == expected_adapter
    assert train.main(resume) == 0
    assert curve(run) == curve(tmp_path / "whole"), "a run that was done took a step more"


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("  r: 4", "  r: 8", "lora.r is 4 there and 8 here"),
        ("seed: 3407", "seed: 7", "seed is 3407 there and 7 here"),
        ("name: smoke", "name: {other}", "vocab_size is 2048 there and 2040 here"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(capsys, run, tmp_path, other_model, before, after, told):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    settings = copy / "config.yaml"
    changed = settings.read_text(encoding="utf-8").replace(before, after.format(other=other_model))
    settings.write_text(changed, encoding="utf-8")
    message = fails(capsys, "--resume", str(copy))
    assert "is of another run" in message
    assert told in message


@pytest.mark.parametrize(
    ("damaged", "how"),
    [
        ("lora_model/adapter_model.safetensors", "--eval-only"),
        ("splits/test.jsonl", "--eval-only"),
        ("splits/train.jsonl", "--resume"),
        ("run.json", "--resume"),
        ("config.yaml", "--eval-only"),
    ],
)
@pytest.mark.parametrize("damage", ["flipped", "emptied"])
def test_what_is_not_as_it_was_written_is_named_and_refused(capsys, run, tmp_path, damaged, how, damage):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    content = (copy / damaged).read_bytes()
    flipped = bytes([content[0] ^ 128, *content[1:]])
    (copy / damaged).write_bytes(flipped if damage == "flipped" else b"")
    message = fails(capsys, how, str(copy))
    assert Path(damaged).name in message
    assert (copy / "metrics.json").read_bytes() == (run / "metrics.json").read_bytes()


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_data_was_split_goes_on(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for name in ("checkpoints", "lora_model", "generated"):
        shutil.rmtree(copy / name)
    (copy / "splits" / "manifest.json").unlink()  # written last
    (copy / "splits" / "test.jsonl").write_text("{")
    assert train.main(["--resume", str(copy)]) == 0
    assert "splitting the data again" in capsys.readouterr().out
    assert curve(copy) == curve(run)


class Program:
    """What torch.save writes of it makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_program_in_a_checkpoint_is_not_run(capsys, run, tmp_path, name):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    newest = copy / "checkpoints" / "checkpoint-4"
    torch.save(Program(tmp_path / "it ran"), newest / name)
    seal(newest, read_facts(newest))
    message = fails(capsys, "--resume", str(copy), "--max-steps", "5")
    assert "checkpoint-4 holds more than numbers" in message
    assert not (tmp_path / "it ran").exists()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_one_message_and_exit_1(tmp_path, tiny):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a tmpfs")
    try:
        process = Command("train.py", "--recipe", "smoke", *FLOAT, "--output-dir", str(disk / "outputs"))
        output = process.result(timeout=240)
        assert process.returncode == 1, output
        assert "disk is full" in output
        assert "Traceback" not in output
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_the_laptop_recipe_end_to_end(tmp_path, embedded):
    """Real model, real corpus, one step: the base's numbers are those of the real model, not of noise."""
    arguments = ["--recipe", "laptop", "--max-steps", "1", "--train.eval_steps", "1", "--train.save_steps", "1"]
    arguments += ["--train.warmup_steps", "0"]  # with a warm-up the first step's rate is zero
    arguments += ["--data.test_fraction", "0.01", "--data.validation_fraction", "0.01", "--eval-samples", "2"]
    arguments += ["--generation.max_new_tokens", "16", "--output-dir", str(tmp_path), "--run-name", "laptop"]
    assert train.main(arguments) == 0
    metrics = json.loads((tmp_path / "laptop" / "metrics.json").read_text())
    assert 0.6 < metrics["base"]["bits_per_byte"]["value"] < 1.0  # 0.80 on the whole test split
    assert metrics["tuned"]["bits_per_byte"]["value"] < metrics["base"]["bits_per_byte"]["value"]
