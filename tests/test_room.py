"""How much of a pass is kept for the backward pass: never more than fits, and all of it where all of it fits."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnft.memory_plan import GIB, Method, ModelFacts, memory_of, usable
from bnft.room import FILLED, Room, reply_rows, shape_of

LLAMA_8B = ModelFacts(32, 4096, 14336, 32, 8, 128, 128256, tied=False)
LIKE_A_T4 = Method(checkpointing="unsloth", fused=True, attention="efficient")


def room_of(gib: float, method: Method = LIKE_A_T4) -> Room:
    whole = memory_of(LLAMA_8B, replace(method, checkpointing="none"))
    return Room(memory_of(LLAMA_8B, method), whole, LLAMA_8B.layers, usable(round(gib * GIB)))


def test_no_layer_and_every_layer_are_the_two_ends():
    room = room_of(14.74)
    assert room.keeping(0) == room.memory
    assert room.keeping(room.layers) == room.whole


@pytest.mark.parametrize(
    ("gib", "tokens", "least", "most"),
    [
        (14.74, 303, 32, 32),  # a T4 and one row of mean length: everything
        (14.74, 16 * 303, 1, 31),  # a whole step of 16: some
        (7.0, 16 * 303, 0, 0),  # a card that has hardly room for the weights
        (139.0, 16 * 303, 32, 32),
    ],
)
def test_the_layers_that_are_kept(gib, tokens, least, most):
    assert least <= room_of(gib).kept_layers((tokens, 303, 16)) <= most


lengths = st.lists(st.integers(1, 2020), min_size=1, max_size=32)
methods = st.sampled_from([LIKE_A_T4, Method(), Method(four_bit=False, attention="flash")])


@given(st.floats(1, 80), methods, lengths, st.booleans())
def test_as_many_as_fit_and_no_more(gib, method, lengths, packed):
    room, shape = room_of(gib, method), shape_of(lengths, packed)
    kept = room.kept_layers(shape)
    assert not kept or room.peak(shape) <= room.size
    assert kept == room.layers or room.keeping(kept + 1).peak(*shape) > FILLED * room.size
    assert not kept or room.smaller(shape).kept_layers(shape) <= kept * 3 // 4
    assert 0 <= room.computed_again([shape, shape]) <= 1


@given(st.floats(6, 80), lengths, st.integers(1, 2020))
def test_a_longer_pass_keeps_no_more(gib, lengths, more):
    room = room_of(gib)
    assert room.kept_layers(shape_of([*lengths, more], True)) <= room.kept_layers(shape_of(lengths, True))


@pytest.mark.parametrize(
    ("gib", "positions", "rows"),
    [(14.74, 320, 176), (14.74, 448, 120), (5.0, 448, 1)],  # seen of a model in 4 bit on an H200 that acts like a T4
)
def test_replies_are_written_as_many_at_a_time_as_was_seen(gib, positions, rows):
    assert reply_rows(LLAMA_8B, LIKE_A_T4, round(gib * GIB), positions) == pytest.approx(rows, rel=0.1)


@pytest.mark.parametrize(("packed", "shape"), [(True, (12, 7, 3)), (False, (21, 7, 3))])
def test_the_shape_of_a_pass(packed, shape):
    assert shape_of([3, 7, 2], packed) == shape
