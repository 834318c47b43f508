"""Every row once: in the steps of an epoch, in the shares of the processes, in the passes of a share."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from bnft.steps import StepSampler, micro_batches, shares


def test_the_order_is_the_seeds_and_the_epochs():
    sampler = StepSampler(10, 4, seed=1)
    first = list(sampler)
    assert [len(step) for step in first] == [4, 4, 2]
    assert len(sampler) == 3
    assert sorted(i for step in first for i in step) == list(range(10))
    assert list(StepSampler(10, 4, seed=1)) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(StepSampler(10, 4, seed=2)) != first


@given(st.lists(st.integers(1, 2020), max_size=40), st.integers(1, 8))
def test_shares_hold_every_row_once_and_are_balanced(lengths, count):
    parts = shares(lengths, count)
    assert len(parts) == count
    assert sorted(itertools.chain(*parts)) == list(range(len(lengths)))
    sizes = [sum(lengths[i] for i in part) for part in parts]
    assert max(sizes) - min(sizes) <= max(lengths, default=0)  # Graham's bound


@given(st.lists(st.integers(1, 2020), max_size=40), st.integers(1, 9000), st.integers(1, 16), st.booleans())
def test_passes_hold_every_row_once_within_their_bounds(lengths, tokens, rows, padded):
    parts = micro_batches(lengths, tokens, rows, padded)
    assert sorted(itertools.chain(*parts)) == list(range(len(lengths)))
    for part in parts:
        cost = max(lengths[i] for i in part) * len(part) if padded else sum(lengths[i] for i in part)
        assert len(part) == 1 or (len(part) <= rows and cost <= tokens)


def test_one_pass_where_everything_fits():
    assert len(micro_batches([300] * 16, 4800, 16, padded=False)) == 1
    assert len(micro_batches([300] * 16, 4799, 16, padded=False)) == 2
    assert [len(part) for part in micro_batches([9, 1, 9, 1], 18, 16, padded=True)] == [2, 2]
