"""The loss with the head on reply tokens alone equals the plain one, value and gradients."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from bnft import reply_loss
from bnft.prompts import IGNORED, encode, with_system
from bnft.reply_loss import reply_log_likelihoods


@pytest.fixture
def lora_model(tiny_model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    tiny_model.requires_grad_(False)
    model = get_peft_model(tiny_model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02)  # at zero lora_A would get no gradient
    return model.train()


def batch_of(tokenizer, conversations, side="right"):
    rows = [encode(tokenizer, with_system(c.messages, "বাংলায় উত্তর দিন।")) for c in conversations]
    width = max(len(row.input_ids) for row in rows)

    def tensor(values, fill):
        padded = []
        for row in values:
            padding = [fill] * (width - len(row))
            padded.append([*padding, *row] if side == "left" else [*row, *padding])
        return torch.tensor(padded)

    return {
        "input_ids": tensor([row.input_ids for row in rows], tokenizer.pad_token_id),
        "labels": tensor([row.labels for row in rows], IGNORED),
        "attention_mask": tensor([[1] * len(row.input_ids) for row in rows], 0),
    }


def plain_loss(model, input_ids, labels, attention_mask):
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1].float()
    return cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("chunk", [7, 64, 10_000])
def test_loss_and_gradients_are_those_of_the_full_logits(
    monkeypatch, lora_model, tiny_tokenizer, conversations, side, chunk
):
    monkeypatch.setattr(reply_loss, "CHUNK", chunk)
    batch = batch_of(tiny_tokenizer, [conversations[0], conversations[8], conversations[10]], side)
    expected = plain_loss(lora_model, **batch)
    expected_gradients = gradients(lora_model, expected)
    got = -reply_log_likelihoods(lora_model, **batch).mean()
    assert abs(got.item() - expected.item()) < 1e-6
    for name, gradient in gradients(lora_model, got).items():
        assert (gradient - expected_gradients[name]).norm() < 1e-5 * expected_gradients[name].norm(), name
    assert any("lora_A" in name and g.norm() > 0 for name, g in expected_gradients.items())


def test_values_stand_in_reading_order(lora_model, tiny_tokenizer, conversations):
    batch = batch_of(tiny_tokenizer, conversations[:3])
    logits = lora_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    log_probabilities = logits.float().log_softmax(-1)
    expected = [
        log_probabilities[row, place - 1, batch["labels"][row, place]]
        for row in range(3)
        for place in range(1, batch["labels"].shape[1])
        if batch["labels"][row, place] != IGNORED
    ]
    got = reply_log_likelihoods(lora_model, **batch)
    torch.testing.assert_close(got, torch.stack(expected), atol=1e-5, rtol=0)


def test_weighted_rows_reach_the_gradient_one_by_one(lora_model, tiny_tokenizer, conversations):
    """Not only the mean: any function of the values has the right gradient."""
    batch = batch_of(tiny_tokenizer, conversations[:2])
    scored = batch["labels"][:, 1:] != IGNORED
    logits = lora_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1][scored]
    values = -cross_entropy(logits.float(), batch["labels"][:, 1:][scored], reduction="none")
    weights = torch.linspace(-1, 2, len(values))
    expected = gradients(lora_model, (values * weights).sum())
    got = gradients(lora_model, (reply_log_likelihoods(lora_model, **batch) * weights).sum())
    for name in expected:
        assert (got[name] - expected[name]).norm() < 1e-5 * expected[name].norm(), name


def test_a_row_without_a_reply_adds_nothing(lora_model, tiny_tokenizer, conversations):
    batch = batch_of(tiny_tokenizer, conversations[:2])
    alone = reply_log_likelihoods(lora_model, **{name: rows[:1] for name, rows in batch.items()})
    batch["labels"][1] = IGNORED
    torch.testing.assert_close(reply_log_likelihoods(lora_model, **batch), alone, atol=1e-5, rtol=1e-5)
    batch["labels"][0] = IGNORED
    assert reply_log_likelihoods(lora_model, **batch).shape == (0,)


def test_a_label_in_the_first_place_has_nothing_before_it_and_is_left_out(lora_model):
    ids = torch.tensor([[0, 9, 8]])
    assert reply_log_likelihoods(lora_model, ids, ids, attention_mask=torch.ones_like(ids)).shape == (2,)


def test_no_gradient_is_kept_where_none_is_asked_for(lora_model, tiny_tokenizer, conversations):
    batch = batch_of(tiny_tokenizer, conversations[:2])
    with torch.inference_mode():
        values = reply_log_likelihoods(lora_model, **batch)
    assert not values.requires_grad
    torch.testing.assert_close(values, reply_log_likelihoods(lora_model, **batch).detach())


def test_the_head_works_as_before_afterwards(lora_model, tiny_tokenizer, conversations):
    batch = batch_of(tiny_tokenizer, conversations[:1])
    before = lora_model(input_ids=batch["input_ids"]).logits
    reply_log_likelihoods(lora_model, **batch)
    torch.testing.assert_close(lora_model(input_ids=batch["input_ids"]).logits, before)
    with pytest.raises(RuntimeError):
        reply_log_likelihoods(lora_model, torch.zeros(1, 4), batch["labels"])  # ids are no floats
    torch.testing.assert_close(lora_model(input_ids=batch["input_ids"]).logits, before)


@pytest.mark.parametrize("fault", ["trained", "bias"])
def test_the_head_must_be_frozen_and_without_bias(lora_model, tiny_tokenizer, conversations, fault):
    head = lora_model.get_output_embeddings()
    if fault == "trained":
        head.weight.requires_grad_(True)
    else:
        head.bias = torch.nn.Parameter(torch.zeros(head.out_features), requires_grad=False)
    with pytest.raises(ValueError, match="frozen and without bias"):
        reply_log_likelihoods(lora_model, **batch_of(tiny_tokenizer, conversations[:1]))


# In a large vocabulary the gradient leaves out improbable tokens: never in the loss, and within 1 % (its module says).
FILTER_TOLERANCE = 0.01


def peaked(rows=96, vocabulary=5000, size=32):
    """Hidden states whose distributions are as sharp as a trained model's: most tokens below NEGLIGIBLE."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(vocabulary, size, generator=generator) + 0.5  # rows share a mean, as real heads' do
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    hidden = weight[targets] * 0.6 + torch.randn(rows, size, generator=generator) * 0.3
    return hidden, weight, targets


def head_gradient(hidden, weight, targets):
    hidden = hidden.clone().requires_grad_()
    values = reply_loss._HeadLogLikelihood.apply(hidden, weight, targets)
    values.sum().backward()
    return values.detach(), hidden.grad


def test_the_filtered_gradient_is_within_its_tolerance_and_the_loss_is_exact(monkeypatch):
    hidden, weight, targets = peaked()
    values, exact = head_gradient(hidden, weight, targets)
    monkeypatch.setattr(reply_loss, "FILTERED_VOCABULARY", 100)
    kept = []
    log_softmax = torch.Tensor.log_softmax
    monkeypatch.setattr(torch.Tensor, "log_softmax", lambda t, d: kept.append(t.shape[1]) or log_softmax(t, d))
    filtered_values, filtered = head_gradient(hidden, weight, targets)
    torch.testing.assert_close(filtered_values, values, rtol=0, atol=0)
    assert kept
    assert max(kept) < len(weight)  # something was left out, or nothing is tested here
    assert (filtered - exact).norm() < FILTER_TOLERANCE * exact.norm()


def test_a_flat_distribution_over_a_large_vocabulary_keeps_its_gradient(monkeypatch):
    """Every token is as improbable as the next: were they left out, the gradient would be gone."""
    hidden, weight, targets = peaked()
    monkeypatch.setattr(reply_loss, "FILTERED_VOCABULARY", 10**9)
    _, exact = head_gradient(hidden * 0.01, weight, targets)
    monkeypatch.setattr(reply_loss, "FILTERED_VOCABULARY", 100)
    _, filtered = head_gradient(hidden * 0.01, weight, targets)
    assert (filtered - exact).norm() < FILTER_TOLERANCE * exact.norm()


def test_the_trainers_loss_is_the_mean_over_the_whole_accumulated_batch(lora_model, tiny_tokenizer, conversations):
    batch = batch_of(tiny_tokenizer, conversations[:4])
    count = int((batch["labels"][:, 1:] != IGNORED).sum())
    whole = plain_loss(lora_model, **batch)
    parts = [
        -reply_log_likelihoods(lora_model, **{name: rows[i : i + 2] for name, rows in batch.items()}).sum() / count
        for i in (0, 2)
    ]
    assert abs(sum(part.item() for part in parts) - whole.item()) < 1e-5


def test_a_copy_of_the_model_is_left_alone(lora_model, tiny_tokenizer, conversations):
    other = copy.deepcopy(lora_model)
    batch = batch_of(tiny_tokenizer, conversations[:1])
    torch.testing.assert_close(reply_log_likelihoods(lora_model, **batch), reply_log_likelihoods(other, **batch))
