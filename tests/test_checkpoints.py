"""Checkpoints: the newest whole one is found, whatever is damaged in the others, and only the run's own is taken."""

import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainerState

from bnft.checkpoints import (
    SETTINGS,
    check_belongs,
    checkpoint_keeper,
    facts_of,
    fault_of,
    last_checkpoint,
    seal_unsealed,
)
from bnft.config import resolve
from bnft.errors import UserError
from bnft.manifest import MANIFEST, seal
from bnft.world import World

PARTS = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")
ALL = (*PARTS, "adapter_config.json")


def checkpoint(folder, step, sealed=True):
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    save_file({"lora_A": torch.ones(4, 4)}, made / PARTS[0])
    torch.save({"state": {}}, made / PARTS[1])
    torch.save({}, made / PARTS[2])
    (made / PARTS[3]).write_text(json.dumps({"global_step": step}))
    (made / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "bias": "none"}))
    if sealed:
        seal(made, {})
    return made


def damage(path, how):
    content = bytearray(path.read_bytes())
    path.unlink()
    if how == "flipped":
        content[-1] ^= 1
    if how != "missing":
        path.write_bytes({"half": content[: len(content) // 2], "empty": b"", "flipped": content}[how])


@pytest.mark.parametrize("sealed", [True, False])
def test_the_newest_checkpoint_is_the_one_of_the_largest_step(tmp_path, sealed):
    assert last_checkpoint(tmp_path / "none") is None
    for step in (900, 1000, 50):
        checkpoint(tmp_path, step, sealed)
    for name in ("checkpoint-best", "checkpoint-1000.part", "checkpoint-2000-good", "checkpoint-²", "runs"):
        (tmp_path / name).mkdir()
    shutil.copytree(tmp_path / "checkpoint-50", tmp_path / "checkpoint-2000-good", dirs_exist_ok=True)
    assert last_checkpoint(tmp_path).name == "checkpoint-1000"


@pytest.mark.parametrize(
    ("part", "how", "sealed"),
    [
        *((part, how, sealed) for part in ALL for how in ("missing", "empty", "half") for sealed in (True, False)),
        *((part, "flipped", True) for part in (*ALL, MANIFEST)),
        *((MANIFEST, how, True) for how in ("empty", "half")),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_the_name_of_the_file(tmp_path, capsys, part, how, sealed):
    checkpoint(tmp_path, 10)
    damaged = checkpoint(tmp_path, 20, sealed)
    damage(damaged / part, how)
    assert last_checkpoint(tmp_path).name == "checkpoint-10"
    told = capsys.readouterr().out
    assert f"passing over {damaged}: it is not whole" in told
    assert part in told


def test_one_that_was_written_anew_halfway_over_a_sealed_one_is_passed_over(tmp_path):
    again = checkpoint(tmp_path, 20)
    save_file({"lora_A": torch.zeros(4, 4)}, again / PARTS[0])  # same size, other content
    assert "the checksum of adapter_model.safetensors is wrong" in fault_of(again)


def test_a_checkpoint_that_was_killed_before_its_manifest_gets_it_when_it_is_gone_on_with(tmp_path):
    whole = checkpoint(tmp_path, 20, sealed=False)
    (whole / f".{MANIFEST}.part").write_text("{")  # as far as it came
    seal_unsealed(whole, {"seed": 1})
    assert sorted(path.name for path in whole.iterdir()) == sorted([*ALL, MANIFEST])
    assert fault_of(whole) == ""
    seal_unsealed(whole, {"seed": 2})
    assert json.loads((whole / MANIFEST).read_text())["facts"] == {"seed": 1}, "a sealed one is left as it is"


def settings(**flags):
    return resolve("smoke", {name.replace("__", "."): value for name, value in flags.items()})[0]


OTHER = {
    "model.name": "embedded",
    "model.revision": "v2",
    "model.load_in_4bit": "false",
    "model.max_seq_length": "100",
    "data.system_prompt": "অন্য",
    "seed": "1",
    "lora.r": "8",
    "lora.alpha": "16",
    "lora.bias": "all",
    "lora.target_modules": "q_proj",
    "lora.use_rslora": "true",
}


def test_the_table_of_other_settings_is_complete():
    assert OTHER.keys() == set(SETTINGS)


@pytest.mark.parametrize("name", OTHER)
def test_a_checkpoint_with_another_setting_is_refused(tmp_path, tiny_model, conversations, name):
    here, there = settings(), resolve("smoke", {name: OTHER[name]})[0]
    made = checkpoint(tmp_path, 10, sealed=False)
    seal(made, facts_of(there, tiny_model, conversations))
    check_belongs(made, facts_of(there, tiny_model, conversations))
    with pytest.raises(UserError, match="is of another run") as caught:
        check_belongs(made, facts_of(here, tiny_model, conversations))
    assert f": {name} is " in caught.value.message
    assert ";" not in caught.value.message, "more is said to differ than does"


def test_a_checkpoint_of_another_shape_or_of_other_data_is_refused(tmp_path, tiny_model, conversations):
    made = checkpoint(tmp_path, 10, sealed=False)
    seal(made, facts_of(settings(), tiny_model, conversations))
    question, answer = conversations[0].messages
    other = replace(conversations[0], messages=(question, {**answer, "content": "অন্য"}))
    with pytest.raises(UserError, match="the training conversations is"):
        check_belongs(made, facts_of(settings(), tiny_model, [other, *conversations[1:]]))
    tiny_model.config.num_hidden_layers = 16
    with pytest.raises(UserError, match="num_hidden_layers is 2 there and 16 here"):
        check_belongs(made, facts_of(settings(), tiny_model, conversations))


@pytest.mark.parametrize(
    "flags",
    [
        {"train.batch_size": "1", "train.accumulation": "4"},  # the same four conversations a step
        {"train.max_steps": "99"},
        {"train.parallel": "ddp"},
        {"lora.target_modules": "down_proj,up_proj,gate_proj,o_proj,v_proj,k_proj,q_proj"},
    ],
)
def test_what_may_change_between_is_taken(tmp_path, tiny_model, conversations, flags):
    made = checkpoint(tmp_path, 10, sealed=False)
    seal(made, facts_of(settings(), tiny_model, conversations))
    check_belongs(made, facts_of(resolve("smoke", flags)[0], tiny_model, conversations))


def test_other_rows_a_step_are_refused(tmp_path, tiny_model, conversations):
    made = checkpoint(tmp_path, 10, sealed=False)
    seal(made, facts_of(settings(), tiny_model, conversations))
    with pytest.raises(UserError, match="conversations a step is 4 there and 8 here"):
        check_belongs(made, facts_of(settings(train__batch_size="4"), tiny_model, conversations))


def test_of_one_without_a_manifest_the_adapter_is_compared(tmp_path, tiny_model, conversations):
    made = checkpoint(tmp_path, 10, sealed=False)
    check_belongs(made, facts_of(settings(), tiny_model, conversations))
    with pytest.raises(UserError, match=r"lora\.r is 4 there and 16 here"):
        check_belongs(made, facts_of(settings(lora__r="16"), tiny_model, conversations))


def keep(folder, state):
    """What the keeper makes of a resumed run's state."""
    checkpoint_keeper({}, World(), 3).on_train_begin(SimpleNamespace(output_dir=str(folder)), state, None)
    return state.best_model_checkpoint, state.best_metric


def test_the_best_checkpoint_is_found_where_the_run_was_moved_to(tmp_path):
    best = checkpoint(tmp_path / "moved", 10)
    state = TrainerState(global_step=20, best_global_step=10, best_metric=1.5)
    assert keep(best.parent, state) == (str(best), 1.5)


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_a_best_checkpoint_that_cannot_be_used_is_the_best_no_more(tmp_path, capsys, how):
    best = checkpoint(tmp_path, 10)
    damage(best / PARTS[0], "flipped" if how == "damaged" else "missing")
    state = TrainerState(global_step=20, best_global_step=10, best_metric=1.5, best_model_checkpoint=str(best))
    assert keep(tmp_path, state) == (None, None)
    assert "cannot be used" in capsys.readouterr().out
    state.log_history = [{"step": 10, "eval_loss": 1.5}, {"step": 20, "eval_loss": 1.75}, {"step": 20, "loss": 1.0}]
    state.best_global_step = 10
    assert keep(tmp_path, state) == (str(tmp_path / "checkpoint-20"), 1.75)


@pytest.mark.parametrize(
    ("before", "saved", "best", "left"),
    [
        ([1, 2, 3], 4, 4, [2, 3, 4]),
        ([1, 2, 3], 4, 1, [1, 3, 4]),  # the best stays, however old
        ([1, 2, 8, 9], 3, 3, [1, 2, 3]),  # 8 and 9 were damaged, else the run had gone on from them
        ([3], 4, None, [3, 4]),
    ],
)
def test_of_the_checkpoints_those_of_the_last_steps_stay_whatever_the_clock_says(tmp_path, before, saved, best, left):
    for number, step in enumerate([*before, saved]):
        os.utime(checkpoint(tmp_path, step), (1000 - number * 60, 1000 - number * 60))  # each older than the one before
    state = TrainerState(global_step=saved)
    state.best_model_checkpoint = str(tmp_path / f"checkpoint-{best}") if best else None
    keeper = checkpoint_keeper({}, World(), 3)
    keeper.on_save(SimpleNamespace(output_dir=str(tmp_path)), state, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{step}" for step in left]


def test_a_sealed_checkpoint_holds_no_pickle_of_settings(tmp_path):
    made = checkpoint(tmp_path, 7, sealed=False)
    torch.save(SimpleNamespace(), made / "training_args.bin")
    keeper = checkpoint_keeper({"seed": 1}, World(), 3)
    keeper.on_save(SimpleNamespace(output_dir=str(tmp_path)), TrainerState(global_step=7), None)
    assert not fault_of(made)
    assert not (made / "training_args.bin").exists()
    written = json.loads((made / MANIFEST).read_text())
    assert written["facts"] == {"seed": 1}
    assert written["files"].keys() == set(ALL)
    assert {name: os.path.getsize(made / name) for name in written["files"]} == {
        name: file["bytes"] for name, file in written["files"].items()
    }
