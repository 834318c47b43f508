from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnft.config import resolve
from bnft.memory_plan import (
    GIB,
    Method,
    adapter_parameters,
    fits,
    memories,
    memory_of,
    read_facts,
    token_budget,
    usable,
)

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
GEMMA = {
    "model_type": "gemma3_text",
    "num_hidden_layers": 18,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "vocab_size": 262144,
}
FACTS = read_facts(LLAMA)
QLORA = Method()
T4 = int(14.74 * GIB)


@pytest.mark.parametrize(
    ("settings", "parameters", "adapter"),
    [
        (LLAMA, 8_030_261_248, 41_943_040),  # the model card's 8.03 billion; PEFT's count of the r=16 adapter
        (GEMMA, 268_098_176, 3_796_992),  # 271,895,168 with the adapter, as a run of the laptop recipe counted them
        ({"text_config": GEMMA}, 268_098_176, 3_796_992),  # a model that sees too: its language half
    ],
)
def test_parameters_are_counted_from_the_shape(settings, parameters, adapter):
    facts = read_facts(settings)
    assert facts.parameters == pytest.approx(parameters, rel=3e-4)  # norms are left out
    assert adapter_parameters(facts, QLORA) == adapter


@pytest.mark.parametrize("settings", [{}, {"n_layer": 12, "n_embd": 768}, LLAMA | {"num_local_experts": 8}])
def test_a_shape_that_the_formulas_do_not_cover_is_not_guessed(settings):
    assert read_facts(settings) is None


def upcast(memory):
    """As `prepare_model_for_kbit_training` leaves a model: embedding, head and with them the stream in float32."""
    stream = FACTS.layers * FACTS.hidden * 2
    return replace(memory, weights=memory.weights + 2 * 2 * FACTS.embedding_parameters, kept=memory.kept + stream)


UNSLOTH = replace(QLORA, checkpointing="unsloth", fused=True)
# Rows of a step were drawn anew, so that the longest of them is not on record: 1,000 tokens give all four figures.
LONGEST = 1000


@pytest.mark.parametrize(
    ("memory", "rows", "measured"),
    # Peak GiB on one H200, random Llama 3.1 8B in NF4, r=16, 16 rows a step, padded, transformers 5.17, TRL 1.15,
    # Unsloth 2026.10
    [
        (upcast(memory_of(FACTS, QLORA)), 2, 9.63),
        (upcast(memory_of(FACTS, QLORA)), 16, 20.95),
        (memory_of(FACTS, UNSLOTH), 2, 6.36),
        (memory_of(FACTS, UNSLOTH), 16, 9.47),
        (memory_of(FACTS, UNSLOTH), 2, 6.27),  # in float16, without flash kernels, capped like a T4
        (memory_of(FACTS, UNSLOTH), 2, 6.74),  # each of two GPUs, DDP, whose buckets of gradients are not counted
    ],
)
def test_measured_peaks_are_predicted_within_a_tenth(memory, rows, measured):
    assert memory.peak(rows * LONGEST) / GIB == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    ("method", "tokens", "rows", "measured"),
    # The same model and GPU, rows packed, the longest 2,020 tokens: peaks of the largest step of a run, 2026-11-22
    [
        (replace(UNSLOTH, checkpointing="none", attention="flash"), 8456, 16, 34.81),
        (replace(QLORA, checkpointing="none", attention="flash"), 8453, 16, 53.4),
        (UNSLOTH, 9259, 16, 8.88),  # in float16, without flash kernels, capped like a T4
        (UNSLOTH, 4655, 8, 7.41),  # each of two such GPUs
    ],
)
def test_measured_peaks_of_packed_rows_are_predicted_within_a_tenth(method, tokens, rows, measured):
    assert memory_of(FACTS, method).peak(tokens, 2020, rows) / GIB == pytest.approx(measured, rel=0.1)


def test_measured_weights_are_predicted():
    memory = memory_of(FACTS, QLORA)
    assert (memory.weights + memory.adapter) / GIB == pytest.approx(5.50, rel=0.02)
    upcasted = upcast(memory)
    assert (upcasted.weights + upcasted.adapter) / GIB == pytest.approx(7.43, rel=0.02)


def test_what_autograd_keeps_is_what_the_formula_says():
    """Two Llama layers of 1,024 x 3,584 under PEFT, bfloat16 autocast, 1,024 tokens: 95,632 bytes a token at most."""
    small = read_facts(LLAMA | {"num_hidden_layers": 2, "hidden_size": 1024, "intermediate_size": 3584} | HEADS)
    memory = memory_of(small, replace(QLORA, four_bit=False))
    assert memory.kept + memory.working + memory.attention == pytest.approx(95_632, rel=0.02)
    deeper = memory_of(replace(small, layers=4), replace(QLORA, four_bit=False))
    assert deeper.kept - memory.kept == pytest.approx(99_728 - 95_632)


@pytest.mark.parametrize(
    ("family", "kept", "peak"),
    # bytes a token and layer, and at most, of 4 layers of Gemma 3 270M's width under PEFT, float32, no checkpointing
    [("llama", 53_720, 238_372), ("gemma3_text", 64_036, 277_052)],
)
def test_what_autograd_keeps_without_checkpointing(family, kept, peak):
    shape = GEMMA | {"model_type": family, "num_hidden_layers": 4, "vocab_size": 512}
    memory = memory_of(read_facts(shape), Method(element=4, four_bit=False, checkpointing="none", chunk=64))
    assert (memory.kept + memory.kept_table) / 4 == pytest.approx(kept, rel=0.02)
    assert memory.kept + memory.kept_table + memory.working == pytest.approx(peak, rel=0.03)


HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 512}


@pytest.mark.parametrize(
    ("method", "gib", "longest", "enough"),
    [
        (QLORA, 14.74, 2020, True),  # the recipe on a T4
        (QLORA, 6.0, 2020, False),
        (replace(QLORA, four_bit=False), 14.74, 2020, False),  # 15 GiB of weights alone
        (replace(QLORA, four_bit=False), 22.0, 2020, True),  # an L4
        (replace(QLORA, checkpointing="none"), 14.74, 2020, False),
    ],
)
def test_what_fits_one_gpu(method, gib, longest, enough):
    assert fits(FACTS, method, "single", [int(gib * GIB)], longest) is enough


def test_sixteen_bit_layers_over_two_t4s_fit():
    method = replace(QLORA, four_bit=False)
    assert fits(FACTS, method, "layers", [T4, T4], 2020)
    first, last = memories(FACTS, method, "layers", 2)
    assert first.weights + last.weights == memory_of(FACTS, method).weights
    assert first.weights == pytest.approx(last.weights, rel=0.05)
    assert first.logits == 0  # the head is on the last


def test_the_shards_of_fsdp_are_smaller_than_the_whole():
    whole, shard = memories(FACTS, QLORA, "single", 1)[0], memories(FACTS, QLORA, "fsdp", 4)[0]
    assert whole.weights / 4 < shard.weights < whole.weights / 2
    assert shard.optimizer == whole.optimizer // 4


def test_a_large_gpu_takes_the_whole_step_and_a_small_one_less():
    memory = memory_of(FACTS, QLORA)
    step = 16 * 2020
    assert token_budget(memory, 139 * GIB, 2020, 16, step) == step
    assert 2020 < token_budget(memory, T4, 2020, 16, step) < step
    assert token_budget(memory, 6 * GIB, 2020, 16, step) == 2020  # never less: whether it fits is another question


@given(st.integers(6, 80), st.integers(64, 4096), st.integers(1, 32))
def test_a_budget_fits_and_one_token_more_does_not(gib, longest, rows):
    memory, free, most = memory_of(FACTS, QLORA), gib * GIB, longest * rows
    tokens = token_budget(memory, free, longest, rows, most)
    assert longest <= tokens <= most
    if tokens > longest:
        assert memory.peak(tokens, longest, rows) <= usable(free)
    if tokens < most:
        assert memory.peak(tokens + 1, longest, rows) > usable(free)


@pytest.mark.parametrize(
    ("more", "window"),
    [
        ({}, 0),
        ({"sliding_window": 512}, 512),
        ({"sliding_window": None}, 0),
        ({"sliding_window": 4096, "use_sliding_window": False}, 0),  # as Qwen2's config.json has it
    ],
)
def test_how_far_some_layers_look_back(more, window):
    shape = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    assert read_facts(shape | {"vocab_size": 1000} | more).window == window


@pytest.mark.parametrize(
    ("recipe", "strategy", "checkpointing", "fused"),
    [
        ("llama31-8b-qlora", "unsloth", "unsloth", True),
        ("llama31-8b-qlora", "peft", "torch", False),  # only Unsloth's own checkpointing leaves the GPU
        ("laptop", "peft", "none", False),
    ],
)
def test_the_method_of_a_recipe(recipe, strategy, checkpointing, fused):
    method = Method.of(resolve(recipe, {})[0], "float16", strategy)
    assert (method.checkpointing, method.fused, method.element) == (checkpointing, fused, 2)
