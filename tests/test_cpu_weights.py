"""The quicker copies say what the model says: exact scores where they matter, and the adapter on and off."""

import math

import pytest
import torch

from bnft import cpu_weights
from bnft.adapters import AdaptedLinear, AdapterSwitch
from bnft.cpu_weights import HalfLinear, ScreenedHead, has_fast_kernels, quick_copy, quick_head
from bnft.models import load_model
from bnft.settings import ModelConfig
from tests.test_adapters import adapted

pytestmark = pytest.mark.skipif(not has_fast_kernels(), reason="needs FBGEMM (x86 with AVX2)")
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.tensor([[7, 300, 41, 1999, 5, 23]])


@pytest.fixture
def halved_model(tiny_model):
    """The tiny Llama with weights as a checkpoint in bfloat16 has them: whole numbers of float16 as well."""
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.copy_((parameter * 256).round() / 256)
    return tiny_model


def hidden(body):
    with torch.inference_mode():
        return body(input_ids=IDS).last_hidden_state


def kinds(body):
    return [type(module).__name__ for module in body.modules()]


def test_float16_weights_give_the_same_and_the_model_stays_as_it_is(halved_model):
    before = kinds(halved_model.model)
    quick = quick_copy(halved_model.model, 10**9)
    assert kinds(quick).count("HalfLinear") == 2 * len(PROJECTIONS)
    assert kinds(halved_model.model) == before
    torch.testing.assert_close(hidden(quick), hidden(halved_model.model), rtol=1e-4, atol=1e-5)
    own = {id(p) for p in halved_model.model.parameters()}
    assert {id(p) for p in quick.parameters()} == own  # shared, not copied


def test_weights_that_float16_would_round_are_left_alone(tiny_model):
    quick = quick_copy(tiny_model.model, 10**9)
    assert "HalfLinear" not in kinds(quick)
    assert torch.equal(hidden(quick), hidden(tiny_model.model))


def test_the_largest_layers_come_first_when_memory_is_short(halved_model):
    largest = 2 * 64 * 128
    quick = quick_copy(halved_model.model, 3 * largest)
    halves = [name for name, module in quick.named_modules() if isinstance(module, HalfLinear)]
    assert len(halves) == 3
    assert all("mlp" in name for name in halves)


def test_an_adapter_is_on_and_off_as_the_switch_says(halved_model):
    model = adapted(halved_model, 0.1, target_modules=PROJECTIONS)
    body, switch = model.get_base_model().model, AdapterSwitch()
    quick = quick_copy(body, 10**9, switch)
    assert {"AdaptedLinear", "HalfLinear"} <= set(kinds(quick))
    tuned = hidden(quick)
    torch.testing.assert_close(tuned, hidden(body), rtol=1e-4, atol=1e-5)
    with model.disable_adapter():
        base = hidden(body)
    switch.on = False
    torch.testing.assert_close(hidden(quick), base, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(base, tuned, atol=1e-2)
    switch.on = True
    assert torch.equal(hidden(quick), tuned)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_an_adapter_of_another_kind_gets_no_copy(halved_model, options):
    body = adapted(halved_model, 0.1, **{"target_modules": PROJECTIONS} | options).get_base_model().model
    assert quick_copy(body, 10**9) is None


def test_a_merged_adapter_gets_no_copy(halved_model):
    model = adapted(halved_model, 0.1, target_modules=PROJECTIONS)
    model.merge_adapter()
    body = model.get_base_model().model
    assert quick_copy(body, 10**9) is None


def test_an_adapter_on_some_layers_only(halved_model):
    body = adapted(halved_model, 0.1, target_modules=["q_proj", "v_proj"]).get_base_model().model
    quick = quick_copy(body, 10**9)
    assert sum(isinstance(module, AdaptedLinear) for module in quick.modules()) == 4
    torch.testing.assert_close(hidden(quick), hidden(body), rtol=1e-4, atol=1e-5)


def made_up_head(rows=40_000, columns=96):
    """Rows of unequal length, and hidden states with two columns far larger than the rest, as Gemma 3 has them."""
    dice = torch.Generator().manual_seed(3)
    weight = torch.randn(rows, columns, generator=dice) * torch.rand(rows, 1, generator=dice)
    states = torch.randn(50, columns, generator=dice) * 5
    states[:, 7] *= 200
    states[:, 50] *= 40
    return weight, states


def test_a_true_score_is_never_further_from_the_estimate_than_the_margin():
    weight, states = made_up_head()
    head = ScreenedHead(weight, states[:4])
    for state in states:
        estimate, margin = head.estimate(state)
        off = (weight.double() @ state.double() - estimate.double()).abs()
        assert (off <= margin).all()
        highest = estimate + margin
        best = int(head.scores(state).argmax())
        few = (highest >= head.scores_of(state, highest.argmax()[None])[0]).nonzero()[:, 0]
        assert best in few
        assert len(few) < len(weight) / 20


def test_hidden_states_unlike_the_sample_cost_time_and_not_truth():
    weight, states = made_up_head()
    head = ScreenedHead(weight, torch.rand(4, 96))
    for state in (*states[:5], torch.zeros(96), torch.eye(96)[3], -1e6 * states[6], 1e-9 * states[7]):
        estimate, margin = head.estimate(state)
        assert ((weight.double() @ state.double() - estimate.double()).abs() <= margin).all()


def test_a_row_of_zeros_is_no_trouble():
    weight, states = made_up_head()
    weight[11] = 0
    estimate, margin = ScreenedHead(weight, states).estimate(states[0])
    assert abs(float(estimate[11])) <= float(margin[11])
    assert math.isfinite(float(margin[11]))


def test_a_screen_is_for_large_float32_heads_only():
    states = torch.randn(4, 96)
    assert quick_head(torch.randn(2_000, 96), states) is None
    assert quick_head(torch.randn(40_000, 96).bfloat16(), states) is None
    assert isinstance(quick_head(torch.randn(40_000, 96), states), ScreenedHead)
    assert ScreenedHead.size(torch.empty(262_144, 640, device="meta")) < 0.7 * cpu_weights.EXTRA_BYTES


def test_gemma_says_the_same_by_its_quick_copy(embedded):
    model = load_model(embedded, ModelConfig(dtype="float32"))
    ids = torch.arange(1000, 1200)[None]
    quick = quick_copy(model.model, 130_000_000)
    assert 30 < sum(isinstance(module, HalfLinear) for module in quick.modules()) < 60
    with torch.inference_mode():
        expected = model.model(input_ids=ids).last_hidden_state
        torch.testing.assert_close(quick(input_ids=ids).last_hidden_state, expected, rtol=1e-3, atol=1e-2)
