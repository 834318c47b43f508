"""The output head's product in slices: the same numbers, on the model's own head and put back afterwards."""

import pytest
import torch

from bnft import head
from bnft.head import head_replaced, products, sliced_head


@pytest.mark.parametrize("rows", [1, 7, 2048, 2049, 5000])
@pytest.mark.parametrize("tokens", [1, 16])
def test_the_parts_are_the_product(rows, tokens):
    torch.manual_seed(0)
    weight, hidden = torch.randn(rows, 12), torch.randn(tokens, 12)
    out = torch.empty(rows, tokens)
    parts = list(products(weight, hidden, out))
    assert torch.allclose(torch.cat(parts), weight @ hidden.T, atol=1e-5)
    assert torch.allclose(out, weight @ hidden.T, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 5)])
def test_logits_are_the_model_s_own(tiny_model, monkeypatch, shape):
    monkeypatch.setattr(head, "_LARGE", 1)
    ids = torch.randint(0, 100, shape)
    with torch.inference_mode():
        expected = tiny_model(input_ids=ids).logits
        with sliced_head(tiny_model):
            got = tiny_model(input_ids=ids).logits
        assert torch.equal(tiny_model(input_ids=ids).logits, expected)
    assert got.shape == expected.shape
    assert torch.allclose(got, expected, atol=1e-5)


def test_a_head_is_put_back_after_an_error(tiny_model):
    own = tiny_model.get_output_embeddings().forward
    with pytest.raises(ValueError, match="on purpose"), head_replaced(tiny_model, lambda hidden: hidden):
        raise ValueError("on purpose")
    assert tiny_model.get_output_embeddings().forward == own
