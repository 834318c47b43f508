"""A copy on the same weights, whose adapter is on or off by the row, and a model that stays as it was."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from bnft.adapters import AdaptedLinear, AdapterSwitch, switched_copy

IDS = torch.tensor([[7, 300, 41, 1999, 5, 23]])


def adapted(model, spread=0.2, **options):
    """The model with an adapter that changes what it says."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]} | options
    model = get_peft_model(model, LoraConfig(**options)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, spread)
    return model


def hidden(body, rows=1):
    with torch.inference_mode():
        return body(input_ids=IDS.repeat(rows, 1)).last_hidden_state


def test_the_adapter_is_on_and_off_as_the_switch_says(tiny_model):
    model, switch = adapted(tiny_model), AdapterSwitch()
    body = model.get_base_model().model
    copied = switched_copy(body, switch)
    tuned = hidden(body)
    with model.disable_adapter():
        base = hidden(body)
    assert not torch.allclose(base, tuned, atol=1e-2)
    torch.testing.assert_close(hidden(copied), tuned, rtol=1e-4, atol=1e-5)
    switch.on = False
    assert torch.equal(hidden(copied), base)
    switch.on = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    torch.testing.assert_close(hidden(copied, 3), torch.cat([tuned, base, tuned]), rtol=1e-4, atol=1e-5)


def test_the_copy_shares_every_tensor_and_can_be_changed_alone(tiny_model):
    body = tiny_model.model
    copied = switched_copy(body, AdapterSwitch())
    assert {id(p) for p in copied.parameters()} == {id(p) for p in body.parameters()}
    before = body.config._attn_implementation
    copied.config._attn_implementation = "eager"
    copied.layers[0].mlp.up_proj = torch.nn.Identity()
    assert body.config._attn_implementation == before == body.layers[0].self_attn.config._attn_implementation
    assert isinstance(body.layers[0].mlp.up_proj, torch.nn.Linear)


def test_only_adapted_layers_are_replaced(tiny_model):
    body = adapted(tiny_model).get_base_model().model
    assert sum(isinstance(module, AdaptedLinear) for module in switched_copy(body, AdapterSwitch()).modules()) == 6
    assert not any(isinstance(module, AdaptedLinear) for module in body.modules())


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
@pytest.mark.filterwarnings("ignore:.*lora_bias")
def test_an_adapter_of_another_kind_gets_no_copy(tiny_model, options):
    assert switched_copy(adapted(tiny_model, **options).get_base_model().model, AdapterSwitch()) is None


def test_a_merged_adapter_gets_no_copy(tiny_model):
    model = adapted(tiny_model)
    model.merge_adapter()
    assert switched_copy(model.get_base_model().model, AdapterSwitch()) is None
