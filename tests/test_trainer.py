"""Optimizer steps: whatever passes they are made of, and whatever runs out on the way, they are the same steps."""

import math

import pytest
import torch
from safetensors.torch import load_file
from test_world import together

from bnft.config import resolve
from bnft.errors import UserError
from bnft.memory_plan import Method, ModelFacts, memory_of
from bnft.room import Room
from bnft.training import LLAMAFineTuner


def trained(conversations, folder, hook=None, **flags):
    """(training result, adapter weights) of six rows a step, three steps."""
    settings = {"train.batch_size": 3, "train.accumulation": 2, "train.max_steps": 3, "train.learning_rate": 1e-2}
    settings |= {"train.eval_steps": 3, "train.save_steps": 3}
    settings |= {name.replace("__", "."): value for name, value in flags.items()}
    config, _ = resolve("smoke", {name: str(value).lower() for name, value in settings.items()})
    tuner = LLAMAFineTuner(config=config)
    if hook:
        hook(tuner)
    result = tuner.train(conversations[:9], conversations[9:], folder)
    return result, load_file(folder / "lora_model" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def usual(tiny, conversations, tmp_path_factory):
    return trained(conversations, tmp_path_factory.mktemp("usual"))


def assert_same(first, second):
    """To what the order of sums leaves open in float32."""
    for a, b in zip(first[0].history, second[0].history, strict=True):
        assert a["step"] == b["step"]
        for name in ("loss", "eval_loss"):
            assert a.get(name) == pytest.approx(b.get(name), abs=1e-5)
    for name, weight in first[1].items():
        torch.testing.assert_close(weight, second[1][name], atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("flags", [{"train__batch_size": 1, "train__accumulation": 6}, {"train__packing": False}])
def test_steps_do_not_depend_on_their_passes(usual, conversations, tmp_path, flags):
    assert_same(usual, trained(conversations, tmp_path, **flags))


class KeepsSome(Room):
    """Keeps two of the tiny model's layers in passes of less than 200 tokens, and one in longer ones."""

    def kept_layers(self, shape):
        return 2 if shape[0] < 200 else 1


def counted_calls(calls, room):
    """Notes for every layer that is computed whether a backward pass is to follow."""

    def hook(tuner):
        tuner.room = room
        for layer in tuner.model.get_base_model().get_decoder().layers:
            layer.self_attn.register_forward_pre_hook(lambda module, inputs: calls.append(module.training))

    return hook


def losses(result):
    return [(line["step"], line.get("loss"), line.get("eval_loss"), line.get("grad_norm")) for line in result.history]


@pytest.mark.parametrize("packing", [True, False])
def test_layers_that_keep_their_activations_learn_the_same(tiny, conversations, tmp_path, packing):
    """To the last bit: nothing but the second computation of these layers is left out."""
    flags = {"train__gradient_checkpointing": "torch", "train__packing": packing}
    calls, fewer = [], []
    again = trained(conversations, tmp_path / "again", counted_calls(calls, None), **flags)
    kept = trained(conversations, tmp_path / "kept", counted_calls(fewer, KeepsSome(None, None, 2, 0)), **flags)
    assert sum(calls) / 2 < sum(fewer) <= sum(calls) * 3 / 4
    assert calls.count(False) == fewer.count(False)
    assert losses(again[0]) == losses(kept[0])
    for name, weight in again[1].items():
        assert torch.equal(weight, kept[1][name]), name


def too_little_room(limit):
    """Memory for `limit` tokens of a pass: more of them end as PyTorch ends a full GPU."""

    def hook(tuner):
        def refuse(module, args, kwargs):
            if kwargs["input_ids"].numel() > limit:
                raise torch.OutOfMemoryError("out of memory, on purpose")

        tuner.model.get_base_model().get_decoder().register_forward_pre_hook(refuse, with_kwargs=True)

    return hook


def test_a_full_memory_halves_the_pass_and_nothing_else(usual, conversations, tmp_path, capsys):
    result, weights = trained(conversations, tmp_path, too_little_room(200))
    assert result.ran_out
    assert {note["step"] for note in result.ran_out} == {1}  # it stays halved
    assert all(note["tokens"] < 200 or note["tokens_before"] > 200 for note in result.ran_out)
    assert_same(usual, (result, weights))
    assert "out of memory at step 1: passes of at most" in capsys.readouterr().out


def test_a_full_memory_first_keeps_less(usual, conversations, tmp_path, capsys):
    """A room that promises every layer, on a GPU that takes none; passes stay as large as they were."""
    facts = ModelFacts(2, 64, 128, 4, 2, 16, 1000, tied=True)
    memory, whole = (memory_of(facts, Method(checkpointing=how)) for how in ("torch", "none"))

    def hook(tuner):
        tuner.room = Room(memory, whole, facts.layers, 2 * whole.peak(600))
        layers = tuner.model.get_base_model().get_decoder().layers

        def refuse(module, inputs):
            if torch.is_grad_enabled() and not all(layer.gradient_checkpointing for layer in layers):
                raise torch.OutOfMemoryError("out of memory, on purpose")

        layers[-1].register_forward_pre_hook(refuse)

    result, weights = trained(conversations, tmp_path, hook, train__gradient_checkpointing="torch")
    assert_same(usual, (result, weights))
    assert [note["layers_kept"] for note in result.ran_out if note["step"] == 1] == [1, 0]
    assert "out of memory at step 1: fewer layers keep what the backward pass needs" in capsys.readouterr().out


FULL = """
import contextlib
from types import SimpleNamespace
from bnft.room import Room
from bnft.trainer import StepTrainer
class Keeps(Room):
    def kept_layers(self, shape):
        return self.layers
    def smaller(self, shape):
        return Keeps(None, None, self.layers - 1, 0)
trainer = StepTrainer.__new__(StepTrainer)
trainer.packer, trainer.world, trainer.sharded, trainer.ran_out = SimpleNamespace(padded=False), world, False, []
trainer.pass_tokens, trainer.pass_rows, trainer.model = 100, 16, torch.nn.Linear(1, 1)
trainer.args, trainer.state = SimpleNamespace(disable_tqdm=True), SimpleNamespace(global_step=0)
trainer.room = Keeps(None, None, 1 - world.rank, 0)
calls = []
def work(part):
    calls.append(len(part))
    if world.rank == FAILS and len(calls) == 1:
        raise torch.OutOfMemoryError("on purpose")
    return 1.0
rows = [dict(input_ids=[0] * 40)] * (0 if world.rank == EMPTY else 2)
trainer._with_room(rows, work, together=True)
ones = torch.ones(1)
sum_over([ones], world)
assert ones.item() == world.size
assert trainer.room.layers == (1 if (FAILS, world.rank) == (1, 0) else 0), trainer.room.layers
assert trainer.pass_tokens == (40 if FAILS == 1 and world.rank != EMPTY else 100), trainer.pass_tokens
assert calls == CALLS[world.rank], calls
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fails", "empty", "calls"),
    [
        (0, None, ([2, 2], [2, 2])),  # the process that keeps a layer: it keeps none, all begin again
        (1, None, ([2, 1, 1], [2, 1, 1])),  # the one that keeps none: all halve, and the other keeps its layer
        (1, 0, ([], [2, 1, 1])),  # beside one that has no rows in this step
    ],
)
def test_processes_take_the_same_way_out_of_a_full_memory(fails, empty, calls):
    done = together(FULL.replace("FAILS", str(fails)).replace("EMPTY", str(empty)).replace("CALLS", str(calls)))
    assert done.returncode == 0, done.stderr


def test_no_room_for_a_single_conversation_is_said(tiny, conversations, tmp_path):
    def hook(tuner):
        def refuse(module, args, kwargs):
            if torch.is_grad_enabled():
                raise torch.OutOfMemoryError("out of memory, on purpose")

        tuner.model.get_base_model().get_decoder().register_forward_pre_hook(refuse, with_kwargs=True)

    with pytest.raises(UserError, match="out of memory at step 1, with one conversation of") as error:
        trained(conversations, tmp_path, hook)
    assert "--model.max_seq_length" in str(error.value)


def test_the_gradients_of_a_pass_that_failed_halfway_are_thrown_away(usual, conversations, tmp_path):
    """The second pass of the first step fails, once, after the first one has left gradients behind."""

    def hook(tuner):
        passes = []

        def refuse(module, args, kwargs):
            if torch.is_grad_enabled():
                passes.append(1)
            if len(passes) == 2:
                passes.append(1)
                raise torch.OutOfMemoryError("out of memory, on purpose")

        tuner.model.get_base_model().get_decoder().register_forward_pre_hook(refuse, with_kwargs=True)

    result, weights = trained(conversations, tmp_path, hook)
    assert len(result.ran_out) == 1
    assert_same(usual, (result, weights))


def test_the_reported_loss_is_the_mean_over_the_steps_reply_tokens(tiny, conversations, tmp_path):
    """With hardly any learning, validation rows that are the training rows cost what a step of all of them does."""
    config, _ = resolve(
        "smoke",
        {"train.batch_size": "9", "train.accumulation": "1", "train.max_steps": "1", "train.learning_rate": "1e-9"}
        | {"train.eval_steps": "1", "train.save_steps": "1"},
    )
    result = LLAMAFineTuner(config=config).train(conversations[:9], conversations[:9], tmp_path)
    losses = {name: line[name] for line in result.history for name in ("loss", "eval_loss") if name in line}
    assert losses["loss"] == pytest.approx(losses["eval_loss"], abs=1e-5)
    assert math.isfinite(losses["loss"])
