"""Merged against adapter: the same weights give the same figures, other weights do not."""

import json
from pathlib import Path

import pytest

from bnft.base_weights import LocalBase
from bnft.merge import merge, read_adapter
from bnft.merged_check import compare_merged
from bnft.settings import RunConfig
from tests.test_merge import make_adapter


@pytest.fixture
def pair(tiny, tiny_tokenizer, tmp_path):
    """An adapter, and the tiny model with it merged in."""
    adapter, merged = make_adapter(tiny.base, tmp_path / "adapter"), tmp_path / "merged"
    (adapter / "bnft.json").write_text(json.dumps({"base_model": tiny.base}))
    merged.mkdir()
    merge(read_adapter(adapter), LocalBase(Path(tiny.base)), merged)
    for folder in (adapter, merged):
        tiny_tokenizer.save_pretrained(folder)
    return str(adapter), str(merged)


@pytest.fixture
def config():
    config = RunConfig().replace("model.dtype", "float32").replace("generation.max_new_tokens", 8)
    return config.replace("eval.bootstrap", 100)


def test_merged_and_adapter_agree(pair, config, conversations):
    figures = compare_merged(config, *pair, conversations, 6)
    assert figures["rows"] == 6
    assert figures["dtype"] == "float32"
    # rounding to bfloat16 moves a weight by at most 0.4 %
    assert figures["merged_bits_per_byte"] == pytest.approx(figures["adapter_bits_per_byte"], rel=1e-3)
    assert figures["merged_bits_per_byte"] != figures["adapter_bits_per_byte"]
    assert 0 <= figures["same_replies"] <= 6


def test_the_unmerged_base_does_not_pass_for_merged(pair, tiny, config, conversations):
    good = compare_merged(config, *pair, conversations, 6)
    bad = compare_merged(config, pair[0], tiny.base, conversations, 6)
    error = abs(bad["merged_bits_per_byte"] - bad["adapter_bits_per_byte"])
    assert error > 10 * abs(good["merged_bits_per_byte"] - good["adapter_bits_per_byte"])
