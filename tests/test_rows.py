"""Rows of a cache by themselves: what a step writes, what a move takes along, and what nobody may see."""

import pytest
import torch

from bnft.adapters import AdapterSwitch, switched_copy
from bnft.rows import Rows, bytes_per_row
from bnft.streaming import Sampling

GREEDY = Sampling(8, 0.0, 1.0, 1.0)
PROMPTS = [[5, 300, 41, 1999, 7], [9, 8, 7, 6, 5, 4, 3], [1200, 33]]


@pytest.fixture
def rows(tiny_model):
    switch = AdapterSwitch()
    with torch.inference_mode():
        yield Rows(switched_copy(tiny_model.model, switch), tiny_model.lm_head, switch, None, 3, 2048)


def greedy(model, prompt, count):
    """Each token the best after a pass over the whole text, without any cache."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def admit(rows, prompt, target, sampling=GREEDY):
    rows.open(prompt, sampling, False)
    if prompt[:-1]:
        rows.read(prompt[:-1], 0)
    rows.move(rows.staging, target)


def test_a_step_gives_each_row_its_next_token(rows, tiny_model):
    for row, prompt in enumerate(PROMPTS):
        admit(rows, prompt, row)
    steps = [rows.step(3, 16 + i).tokens() for i in range(5)]
    assert [list(tokens) for tokens in zip(*steps, strict=True)] == [greedy(tiny_model, p, 5) for p in PROMPTS]


def test_a_reply_goes_on_in_another_row(rows, tiny_model):
    for row, prompt in enumerate(PROMPTS):
        admit(rows, prompt, row)
    first = [rows.step(3, 16).tokens()[2] for _ in range(2)]
    rows.leave(0)
    rows.move(2, 0)
    last = [rows.step(2, 16).tokens()[0] for _ in range(2)]
    assert first + last == greedy(tiny_model, PROMPTS[2], 4)


def test_a_prompt_is_read_while_others_write(rows, tiny_model):
    admit(rows, PROMPTS[0], 0)
    prompt = PROMPTS[1] * 3
    rows.open(prompt, GREEDY, False)
    written = []
    for start in range(0, len(prompt) - 1, 5):
        rows.read(prompt[start : min(start + 5, len(prompt) - 1)], start)
        written.append(rows.step(1, 32).tokens()[0])
    rows.move(rows.staging, 1)
    assert rows.step(2, 32).tokens()[1] == greedy(tiny_model, prompt, 1)[0]
    assert written == greedy(tiny_model, PROMPTS[0], 4)


@pytest.mark.parametrize("reach", [10, 512, 513, 2048, 9999])
def test_the_length_of_the_cache_that_is_looked_at_changes_nothing(rows, tiny_model, reach):
    admit(rows, PROMPTS[1], 0)
    assert rows.step(1, reach).tokens() == greedy(tiny_model, PROMPTS[1], 1)


def test_sizes_that_are_used(rows):
    assert rows._counts() == [1, 2, 3]
    assert rows._lengths() == [512, 1024, 2048]


def test_bytes_of_a_row(tiny_model):
    """2 layers, keys and values, 2 heads of 16 numbers, 4 bytes each, 100 positions."""
    assert bytes_per_row(tiny_model.model, 100) == 2 * 2 * 2 * 16 * 4 * 100
