"""What is served: runs, folders and Hub models, found and described; the Hub is a small one on this machine."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from bnft.errors import UserError
from bnft.models import find_model
from bnft.serving import describe, newest_run
from tests.commands import Command
from tests.hub_server import running_hub


def make_run(folder, tiny):
    """A run of the tiny model with a random adapter, its notes and numbers."""
    import torch
    from peft import LoraConfig, get_peft_model

    from bnft.models import load_model, load_tokenizer
    from bnft.settings import ModelConfig

    run = folder / "smoke-run"
    model = get_peft_model(load_model(tiny, ModelConfig(dtype="float32")), LoraConfig(r=4, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.5)
    model.save_pretrained(run / "lora_model")
    load_tokenizer(tiny).save_pretrained(run / "lora_model")
    notes = {"base_model": "smoke", "system_prompt": "শুনুন।", "generation": {"max_new_tokens": 240}}
    (run / "lora_model" / "bnft.json").write_text(json.dumps(notes), encoding="utf-8")
    score = {"value": 2.5, "n": 49}
    metrics = {"base": {"bits_per_byte": score}, "tuned": {"bits_per_byte": score | {"value": 2.25}}}
    (run / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return run


@pytest.fixture(scope="module")
def run_folder(tiny, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("outputs"), tiny)


@pytest.fixture(autouse=True)
def cache_of_the_tiny_model(tiny, monkeypatch):
    monkeypatch.setenv("BNFT_CACHE", str(Path(tiny.base).parent.parent))


def test_a_run_is_described_by_its_notes(run_folder):
    for name in (run_folder, run_folder / "lora_model"):
        served = describe(find_model(str(name)))
        assert (served.name, served.base, served.trained) == ("smoke-run", "smoke", True)
        assert served.system_prompt == "শুনুন।"
        assert served.generation.max_new_tokens == 240
        assert served.metrics["tuned"]["bits_per_byte"]["value"] == 2.25


def test_a_base_model_is_said_to_be_untrained(tiny):
    served = describe(tiny)
    assert (served.name, served.base, served.trained, served.metrics) == ("smoke", "", False, None)


@pytest.mark.parametrize("notes", ["{", "[]", '{"generation": {"temperature": 99}}', '{"generation": {"no": 1}}'])
def test_damaged_notes_are_an_error(run_folder, tmp_path, notes):
    shutil.copytree(run_folder / "lora_model", tmp_path / "lora_model")
    source = find_model(str(tmp_path / "lora_model"))
    (tmp_path / "lora_model" / "bnft.json").write_text(notes)
    with pytest.raises(UserError):
        describe(source)


def test_the_newest_run_is_the_one_marked_or_else_the_youngest(tmp_path):
    assert newest_run(tmp_path) is None
    for age, name in ((300, "old"), (100, "young"), (200, "middle")):
        adapter = tmp_path / name / "lora_model"
        adapter.mkdir(parents=True)
        (adapter / "adapter_config.json").write_text("{}")
        os.utime(adapter, (time.time() - age,) * 2)
    (tmp_path / "half" / "checkpoints").mkdir(parents=True)
    assert newest_run(tmp_path) == str(tmp_path / "young")
    (tmp_path / "latest").symlink_to("middle")
    assert newest_run(tmp_path) == str(tmp_path / "middle")
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").symlink_to("half")
    assert newest_run(tmp_path) == str(tmp_path / "young")


# One process, for huggingface_hub reads its settings when it is imported.
OPEN_FROM_HUB = """
import os, sys, threading
from app import open_source, read_flags
from bnft.errors import UserError
from bnft.streaming import Sampling

said = [{"role": "user", "content": "মন ভালো নেই।"}]
for name in ("user/merged", "user/adapter", "user/merged", "user/pickled", "user/nothing"):
    try:
        source, served = open_source(read_flags(["--model", name]))
    except UserError as error:
        print("RESULT error", name, error.message)
        continue
    *_, last = source.stream(said, Sampling(8, 0.7, 0.9, 1.0, seed=1), threading.Event())
    print("RESULT", name, served.name, served.system_prompt, source.can_compare, last.tokens)
    os.environ.pop("HF_TOKEN", None)
    if name == "user/adapter":
        import shutil
        shutil.rmtree(os.environ["HF_HUB_CACHE"])  # what was fetched with the token must not stay readable here
"""


@pytest.mark.slow
def test_adapters_and_merged_models_of_the_hub(run_folder, tiny, tmp_path):
    def files(folder):
        return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}

    with running_hub() as hub:
        hub.add("user/adapter", files(run_folder / "lora_model"))
        hub.add("user/merged", files(tiny.base), private=True)
        hub.add("user/pickled", {"config.json": b"{}", "pytorch_model.bin": b"x"})
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": hub.read_token,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        process = Command("-c", OPEN_FROM_HUB, env=environment)
        output = process.result(timeout=180)
    assert process.returncode == 0, output
    told = [line.removeprefix("RESULT ") for line in output.splitlines() if line.startswith("RESULT")]
    assert told[0].startswith("user/merged user/merged You are a sympathetic")
    assert told[0].endswith("False 8")
    assert told[1] == "user/adapter user/adapter শুনুন। True 8"
    assert told[2].startswith("error user/merged"), "without the token a private model is not there"
    assert told[3].startswith("error user/pickled")
    assert "no weights" in told[3]
    assert told[4].startswith("error user/nothing")
    assert not any("pytorch_model.bin" in request for request in hub.requests), "pickled weights are not even fetched"
