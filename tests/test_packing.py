"""Packed rows give what the rows by themselves give: hidden states, losses and gradients, to the last digits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from bnft.packing import (
    AttentionPackedRows,
    Layout,
    PaddedRows,
    _attention,
    _names_behind,
    attention_kernel,
    difference,
    influence,
)
from bnft.prompts import IGNORED
from bnft.reply_loss import reply_log_likelihoods

LENGTHS = (7, 40, 1, 23, 23)


def rows_of(lengths, vocabulary, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(5, vocabulary, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORED] * (length // 3) + ids[length // 3 :]})
    return rows


def with_adapter(model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)  # at zero lora_A would get no gradient
    return model


@pytest.fixture(params=["model", "gemma"], ids=["llama", "gemma"])
def adapted(request):
    return with_adapter(request.getfixturevalue(f"tiny_{request.param}"))


def vocabulary_of(model):
    return model.config.get_text_config().vocab_size


def test_packed_logits_and_gradients_are_those_of_the_rows_alone(adapted):
    rows = rows_of(LENGTHS, vocabulary_of(adapted))
    packer = AttentionPackedRows()
    inputs = packer.inputs(rows, "cpu")
    labels = inputs.pop("labels")
    with packer.open(adapted):
        packed = adapted(use_cache=False, **inputs).logits[0]
        cross_entropy(packed[:-1], labels[0, 1:], ignore_index=IGNORED, reduction="sum").backward()
    gradients = {name: p.grad.clone() for name, p in adapted.named_parameters() if p.requires_grad}
    adapted.zero_grad()
    alone = [adapted(torch.tensor([row["input_ids"]])).logits[0] for row in rows]
    for logits, row in zip(alone, rows, strict=True):
        if len(row["labels"]) > 1:
            target = torch.tensor(row["labels"][1:])
            cross_entropy(logits[:-1], target, ignore_index=IGNORED, reduction="sum").backward()
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-5, rtol=1e-5)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_a_row_does_not_feel_what_it_is_packed_with(adapted):
    packer, vocabulary = AttentionPackedRows(), vocabulary_of(adapted)
    first = rows_of([30], vocabulary)[0]
    seen = []
    for seed in (1, 2):
        with packer.open(adapted), torch.no_grad():
            inputs = packer.inputs([*rows_of([12], vocabulary, seed), first, *rows_of([50], vocabulary, seed)], "cpu")
            inputs.pop("labels")
            seen.append(adapted(use_cache=False, **inputs).logits[0, 12:42])
    torch.testing.assert_close(*seen, atol=1e-5, rtol=1e-5)


def test_packed_and_padded_losses_agree(adapted):
    rows, device = rows_of(LENGTHS, vocabulary_of(adapted)), "cpu"
    values = []
    for packer in (AttentionPackedRows(), PaddedRows(pad_id=0)):
        with packer.open(adapted), torch.no_grad():
            values.append(reply_log_likelihoods(adapted, **packer.inputs(rows, device)))
    torch.testing.assert_close(*values, atol=1e-5, rtol=1e-5)
    assert len(values[0]) == sum(label != IGNORED for row in rows for label in row["labels"][1:])


def test_a_first_token_is_never_told_from_the_row_before():
    rows = [{"input_ids": [1, 2], "labels": [IGNORED, 2]}, {"input_ids": [3, 4], "labels": [3, 4]}]
    assert AttentionPackedRows().inputs(rows, "cpu")["labels"].tolist() == [[IGNORED, 2, IGNORED, 4]]


def test_the_model_is_left_as_it_was(tiny_model):
    before = tiny_model.config._attn_implementation
    with pytest.raises(ZeroDivisionError), AttentionPackedRows().open(tiny_model):
        raise ZeroDivisionError
    assert tiny_model.config._attn_implementation == before


def test_an_attentions_module_is_found_behind_the_hooks_of_split_layers(tiny_model):
    from accelerate.hooks import ModelHook, add_hook_to_module
    from transformers.models.llama import modeling_llama

    attention = tiny_model.model.layers[0].self_attn
    add_hook_to_module(attention, ModelHook())
    assert _names_behind(attention) is vars(modeling_llama)


class _Leaking(PaddedRows):
    """Rows one after the other as if they were one: what packing without borders does."""

    def inputs(self, rows, device):
        packed = AttentionPackedRows().inputs(rows, device)
        return {name: packed[name] for name in ("input_ids", "labels")}


def test_packing_that_looks_across_borders_is_found_out(adapted):
    from bnft.training import INFLUENCE, PACKING_TOLERANCE

    rows, padded = rows_of([60, 50], vocabulary_of(adapted)), PaddedRows(0)
    assert influence(adapted, AttentionPackedRows(), rows) < INFLUENCE[4] / 10
    assert influence(adapted, _Leaking(0), rows) > INFLUENCE[4] * 10
    assert difference(adapted, AttentionPackedRows(), padded, rows) < PACKING_TOLERANCE[4] / 10
    assert difference(adapted, _Leaking(0), padded, rows) > PACKING_TOLERANCE[4] * 10


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_spreading_and_gathering_come_back(lengths):
    layout = Layout.of(lengths, "cpu")
    tokens = torch.arange(sum(lengths) * 6.0).view(1, sum(lengths), 2, 3)
    table = layout.spread(tokens.transpose(1, 2))
    assert table.shape == (len(lengths), 2, max(lengths), 3)
    assert torch.equal(layout.gather(table.transpose(1, 2)), tokens)
    assert table.abs().sum() == tokens.abs().sum()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="GPU")
@pytest.mark.parametrize(
    ("dtype", "kernel", "window"),
    [
        (torch.bfloat16, "flash", None),
        (torch.bfloat16, "flash", 16),
        (torch.float16, "efficient", None),
        (torch.float32, "efficient", None),
        (torch.float16, "table", 16),
    ],
)
def test_the_kernels_give_what_the_table_of_rows_gives(dtype, kernel, window, monkeypatch):
    """Against float32, forwards and backwards, heads in groups of four; without FlashAttention, as on a T4, too."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch.backends.cuda, "flash_sdp_enabled", lambda: kernel == "flash")
    lengths = (50, 3, 1, 128)
    layout = Layout.of(lengths, "cuda")
    parts = [torch.randn(1, heads, sum(lengths), 64, device="cuda") for heads in (8, 2, 2)]
    found = []
    for dtype_, kernel_ in ((torch.float32, "table"), (dtype, kernel)):
        own = [part.detach().clone().to(dtype_).requires_grad_() for part in parts]
        if kernel_ == "table":
            monkeypatch.setattr(torch.backends.cuda, "mem_efficient_sdp_enabled", lambda: False)
        assert attention_kernel(own[0].device, dtype_, 64, bool(window)) == kernel_
        output = _attention(*own, layout, window=window)
        output.float().square().sum().backward()
        found.append([output.float(), *(part.grad.float() for part in own)])
        monkeypatch.setattr(torch.backends.cuda, "mem_efficient_sdp_enabled", lambda: True)
    tolerance = 1e-4 if dtype == torch.float32 else 0.02
    for exact, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, exact, atol=tolerance * float(exact.abs().max()), rtol=0)


@pytest.mark.parametrize("window", [None, 4])
def test_attention_is_that_of_a_block_mask(window):
    """Against one product with the whole (tokens, tokens) mask, in float64."""
    torch.manual_seed(0)
    lengths = (5, 9, 1)
    query, key, value = (torch.randn(1, heads, sum(lengths), 8, dtype=torch.float64) for heads in (4, 2, 2))
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    steps = torch.arange(sum(lengths))
    seen = (row[:, None] == row) & (steps[:, None] >= steps)
    if window:
        seen &= steps[:, None] - steps < window
    scores = query @ key.repeat_interleave(2, 1).transpose(-1, -2) / 8**0.5
    expected = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value.repeat_interleave(2, 1)
    given_out = _attention(query, key, value, Layout.of(lengths, "cpu"), window=window)
    torch.testing.assert_close(given_out, expected.transpose(1, 2))
