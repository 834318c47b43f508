"""Unpacked weights are the packed ones' numbers; the model keeps its packed layers."""

import pytest
import torch

from bnft.adapters import AdapterSwitch, switched_copy
from bnft.gpu_weights import packed_layers, unpack, unpacked_bytes
from bnft.models import load_model
from bnft.settings import ModelConfig


@pytest.fixture
def packed(tiny):
    return load_model(tiny, ModelConfig(dtype="float32", load_in_4bit=True), {"": "cpu"}).model


def test_the_copy_says_the_same_without_packed_layers(packed):
    copied = switched_copy(packed, AdapterSwitch())
    unpack(copied)
    assert (len(packed_layers(copied)), len(packed_layers(packed))) == (0, 14)
    ids = torch.tensor([[7, 300, 41, 1999, 5, 23]])
    with torch.inference_mode():
        expected, got = (body(input_ids=ids).last_hidden_state for body in (packed, copied))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_bytes_of_the_unpacked_weights(packed):
    """Two layers of q and o (64 x 64), k and v (64 x 32), gate, up and down (64 x 128), two bytes a number."""
    assert unpacked_bytes(packed) == 2 * 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)


def test_a_model_without_packed_layers_stays_as_it_is(tiny_model):
    copied = switched_copy(tiny_model.model, AdapterSwitch())
    before = list(copied.modules())
    unpack(copied)
    assert list(copied.modules()) == before
    assert unpacked_bytes(copied) == 0
