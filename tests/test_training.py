"""The training loop: what moves and what does not, the best checkpoint, the stops, resuming."""

import math

import pytest
import torch
from safetensors.torch import load_file

from bnft.config import resolve
from bnft.errors import UserError
from bnft.models import ADAPTER_NOTES
from bnft.training import LLAMAFineTuner, _finite


def settings(**flags):
    changes = {"model.load_in_4bit": "false"} | {name.replace("__", "."): str(value) for name, value in flags.items()}
    return resolve("smoke", changes)[0]


@pytest.fixture(scope="module")
def trained(tiny, conversations, tmp_path_factory):
    """(tuner, result, folder, weights before) of four steps in float32."""
    folder = tmp_path_factory.mktemp("run")
    tuner = LLAMAFineTuner(config=settings(train__learning_rate="1e-2"))
    before = {name: p.detach().clone() for name, p in tuner.model.named_parameters()}
    result = tuner.train(conversations[:9], conversations[9:], folder)
    return tuner, result, folder, before


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_log_line_is_one_that_json_can_hold(value):
    """The first gradients under a float16 scaler are infinite, which is no fault."""
    assert _finite({"loss": 1.5, "grad_norm": value, "step": 3}) == {"loss": 1.5, "step": 3}


def test_every_adapter_weight_moves_and_no_base_weight_does(trained):
    tuner, _, _, before = trained
    for name, parameter in tuner.model.named_parameters():
        assert torch.equal(parameter, before[name]) != ("lora_" in name), name


def test_what_is_saved_is_the_best_checkpoint(trained):
    _, result, folder, _ = trained
    losses = {line["step"]: line["eval_loss"] for line in result.history if "eval_loss" in line}
    assert result.best_step == min(losses, key=losses.get)
    assert result.best_eval_loss == pytest.approx(min(losses.values()))
    best = load_file(folder / "checkpoints" / f"checkpoint-{result.best_step}" / "adapter_model.safetensors")
    saved = load_file(folder / "lora_model" / "adapter_model.safetensors")
    assert saved.keys() == best.keys()
    assert all(torch.equal(saved[name], best[name]) for name in saved)


def test_the_adapter_folder_is_complete_by_itself(trained):
    tuner, _, folder, _ = trained
    names = {path.name for path in (folder / "lora_model").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", ADAPTER_NOTES} <= names
    loaded = LLAMAFineTuner(model_name=str(folder / "lora_model"), config=settings())
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, tuner.model(ids).logits)


def test_the_first_loss_is_the_untrained_models(trained, conversations):
    """The label-weighted mean over the first batch lies near log(vocabulary) for random weights."""
    _, result, _, _ = trained
    first = next(line["loss"] for line in result.history if "loss" in line)
    assert first == pytest.approx(math.log(2048), abs=0.5)


def test_a_time_limit_ends_training_with_a_checkpoint(tiny, conversations, tmp_path):
    tuner = LLAMAFineTuner(config=settings(train__max_steps=5000, train__max_minutes="0.02"))
    result = tuner.train(conversations[:9], conversations[9:], tmp_path)
    assert result.stopped_by == "time limit"
    assert 0 < result.steps < 5000
    assert (tmp_path / "lora_model" / "adapter_model.safetensors").is_file()


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tiny, conversations, tmp_path):
    """Bit-equal on a CPU in float32: same data order, same optimizer state."""
    whole = LLAMAFineTuner(config=settings(train__max_steps=6)).train(
        conversations[:9], conversations[9:], tmp_path / "whole"
    )
    # The cosine schedule depends on the number of steps, so the first half is made with the same number and cut there.
    half = tmp_path / "half"
    LLAMAFineTuner(config=settings(train__max_steps=6)).train(conversations[:9], conversations[9:], half)
    resumed = LLAMAFineTuner(config=settings(train__max_steps=6)).train(
        conversations[:9], conversations[9:], half, resume_from=half / "checkpoints" / "checkpoint-4"
    )
    assert [(h["step"], h["loss"]) for h in resumed.history if "loss" in h] == [
        (h["step"], h["loss"]) for h in whole.history if "loss" in h
    ]
    ends = [
        load_file(tmp_path / name / "checkpoints/checkpoint-6/adapter_model.safetensors") for name in ("whole", "half")
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_loss_that_is_no_number_stops_and_says_where(tiny, conversations, tmp_path):
    tuner = LLAMAFineTuner(config=settings())
    with torch.no_grad():
        next(p for n, p in tuner.model.named_parameters() if "lora_B" in n).fill_(math.nan)
    with pytest.raises(UserError, match="loss is nan at step 1"):
        tuner.train(conversations[:9], conversations[9:], tmp_path)


def test_nothing_to_learn_from_is_an_error(tiny, conversations, tmp_path):
    tuner = LLAMAFineTuner(config=settings(model__max_seq_length=64))
    long = [type("C", (), {"messages": ({"role": "user", "content": "ক " * 300}, conversations[0].messages[1])})]
    with pytest.raises(UserError, match="no train conversation has a reply within 64 tokens"):
        tuner.train(long, conversations[9:], tmp_path)


def test_four_bit_training_works_on_a_cpu(tiny, conversations, tmp_path):
    tuner = LLAMAFineTuner(model_name="smoke", load_in_4bit=True, config=settings(train__max_steps=2))
    layer = tuner.model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    assert type(layer).__name__ == "Linear4bit"
    result = tuner.train(conversations[:9], conversations[9:], tmp_path)
    assert result.steps == 2
    assert all(math.isfinite(line["loss"]) for line in result.history if "loss" in line)


@pytest.mark.parametrize("flag", ["unsloth"])
def test_a_back_end_that_is_not_there_is_named(flag):
    with pytest.raises(UserError, match="--strategy unsloth cannot be used"):
        LLAMAFineTuner(config=settings(train__strategy=flag))
