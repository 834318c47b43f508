"""Layers over several GPUs: balanced, whole, and refused with the missing GiB when something would be left over."""

import pytest

from benchmarks.random_8b import llama_8b
from bnft.config import resolve
from bnft.device_maps import check_own_gpu, device_map, empty_model, layer_map, needed_gib
from bnft.errors import UserError
from bnft.models import ModelSource
from bnft.placement import Placement
from bnft.settings import RunConfig

TWO_T4 = {"GPU 0 (Tesla T4)": 14.6, "GPU 1 (Tesla T4)": 14.6}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The shape of Llama 3.1 8B in 16 bit, without weights."""
    folder = tmp_path_factory.mktemp("llama")
    llama_8b().save_pretrained(folder)
    return empty_model(ModelSource("llama", str(folder)), RunConfig().replace("model.dtype", "float16"))


def layers_on(placed):
    counts = [0, 0]
    for name, device in placed.items():
        counts[device] += name.startswith("model.layers.")
    return counts


@pytest.mark.parametrize("four_bit", [False, True])
def test_about_half_of_the_weights_go_to_each_gpu(llama, four_bit):
    placed = layer_map(llama, four_bit, TWO_T4)
    assert set(placed.values()) == {0, 1}
    assert placed["model.embed_tokens"] == 0
    assert placed["lm_head"] == placed["model.norm"] == 1
    first, second = layers_on(placed)
    assert first + second == 32  # every layer by its own name: none is split
    assert abs(first - second) <= 6


def test_what_does_not_fit_is_refused_with_the_missing_gib(llama):
    """8.03 billion weights in 16 bit take 15.0 GiB; 6.0 + 5.0 GiB are left for them: 4 and more are missing."""
    with pytest.raises(UserError) as told:
        layer_map(llama, False, {"GPU 0 (Tesla T4)": 8.0, "GPU 1 (Tesla T4)": 7.0})
    message = str(told.value)
    missing = float(message.split("--parallel layers: ")[1].split(" GiB")[0])
    assert 3.9 < missing < 5.5
    assert "15.0 GiB of weights" in message
    assert "GPU 1 (Tesla T4) 7.0 GiB free" in message
    assert "--model.load_in_4bit true" in message
    assert set(layer_map(llama, True, {"a": 8.0, "b": 7.0}).values()) == {0, 1}


def test_one_process_needs_no_map_and_a_shared_model_starts_on_the_host(tiny):
    assert device_map(tiny, RunConfig().replace("train.parallel", "single")) is None
    assert device_map(tiny, RunConfig().replace("train.parallel", "ddp")) is None
    assert device_map(tiny, RunConfig().replace("train.parallel", "fsdp")) == {"": "cpu"}


def test_what_a_run_needs_follows_its_recipe(llama, tmp_path):
    llama_8b().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    four = resolve("llama31-8b-qlora", {"model.name": str(tmp_path)})[0]
    sixteen = resolve("llama31-8b-lora16", {"model.name": str(tmp_path)})[0]
    assert 6 < needed_gib(four, (7, 5)) < 10  # 6.27 GiB were the peak at two short rows
    assert needed_gib(sixteen, (7, 5)) > 15  # the weights alone
    check_own_gpu(four, Placement("single", 1, (), "no GPU"))


@pytest.mark.gpu
def test_layers_over_two_gpus_train(tiny):
    import torch

    from bnft.strategies import PeftStrategy

    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    config = RunConfig().replace("train.parallel", "layers").replace("train.gradient_checkpointing", "none")
    model = PeftStrategy().prepare(tiny, config).model
    assert {p.device.index for p in model.parameters()} == {0, 1}
    ids = torch.randint(0, 500, (2, 30), device=0)
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
