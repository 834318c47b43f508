"""Replies that were kept: which count, which do not, and what a kill leaves."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from bnft.generated_rows import GeneratedRows, weights_fingerprint
from bnft.generation import Generated

IDS = ["a-1", "a-2", "b-1"]
PROMPTS = [[1, 2], [3], [4, 5, 6]]
REPLIES = [
    Generated("এক", 3, True, 0.25),
    Generated("দুই\nলাইন\u2028", 7, False, 0.5),
    Generated("", 0, True, 0.125),
]
HOW = {"limit": 16, "penalty": 1.0, "weights": "w"}


def keep(folder, which=(0, 1, 2), how=HOW, rank=0):
    rows = GeneratedRows(folder, "base", how, rank)
    with rows.open():
        for i in which:
            rows.add(IDS[i], PROMPTS[i], REPLIES[i])
    return folder / (f"base-{rank}.jsonl" if rank else "base.jsonl")


def found(folder, how=HOW, name="base", ids=IDS, prompts=PROMPTS):
    return GeneratedRows(folder, name, how).read(ids, prompts)


def test_what_was_kept_is_found(tmp_path):
    assert found(tmp_path) == {}
    path = keep(tmp_path, (1, 0))
    assert found(tmp_path) == {0: REPLIES[0], 1: REPLIES[1]}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [line["id"] for line in lines] == ["a-2", "a-1"]


@pytest.mark.parametrize(
    ("changed", "stays"),
    [
        ({"how": HOW | {"limit": 17}}, []),
        ({"how": HOW | {"penalty": 1.1}}, []),
        ({"how": HOW | {"weights": "v"}}, []),
        ({"name": "tuned"}, []),
        ({"prompts": [[1, 2], [3], [4, 5, 7]]}, [0, 1]),
        ({"ids": ["a-1", "x-2", "b-1"]}, [0, 2]),
        ({"how": dict(reversed(HOW.items()))}, [0, 1, 2]),
    ],
)
def test_a_row_made_under_other_settings_is_not_taken(tmp_path, changed, stays):
    keep(tmp_path)
    assert sorted(found(tmp_path, **changed)) == stays


def test_a_reply_that_is_not_as_it_was_written_is_not_taken(tmp_path):
    path = keep(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace("এক", "এত"), encoding="utf-8")
    assert found(tmp_path) == {1: REPLIES[1], 2: REPLIES[2]}


@pytest.mark.parametrize("cut", [1, 2, 30, 90])
def test_a_torn_last_line_is_dropped_and_the_next_one_is_whole(tmp_path, cut):
    path = keep(tmp_path, (0, 1))
    path.write_bytes(path.read_bytes()[:-cut])
    assert found(tmp_path) == {0: REPLIES[0]}
    keep(tmp_path, (2,))
    assert found(tmp_path) == {0: REPLIES[0], 2: REPLIES[2]}
    for line in path.read_bytes().split(b"\n")[:-1]:
        json.loads(line)


@pytest.mark.parametrize("line", [b"", b"null", b"[1]", b"{}", b'{"key": "x", "id": "a"}', b"\xff\xfe", b'"text"'])
def test_a_damaged_line_does_not_take_the_others_along(tmp_path, line):
    path = keep(tmp_path, (0,))
    path.write_bytes(line + b"\n" + path.read_bytes())
    assert found(tmp_path) == {0: REPLIES[0]}


def test_each_process_has_its_file_and_reads_all(tmp_path):
    keep(tmp_path, (0,))
    path = keep(tmp_path, (1, 2), rank=3)
    assert path.name == "base-3.jsonl"
    assert sorted(found(tmp_path)) == [0, 1, 2]
    (tmp_path / "base-old.jsonl").write_text("{}\n")  # not a process' file
    assert sorted(found(tmp_path)) == [0, 1, 2]


REPLY = st.builds(
    Generated,
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    tokens=st.integers(0, 99),
    ended=st.booleans(),
    seconds=st.floats(0, 1e6),
)


@given(data=st.data())
def test_no_damage_makes_a_reply_that_was_never_given(tmp_path, data):
    """Lines twice, in any order, in any file, cut, joined or with bytes changed: whole ones count, no other does."""
    written = data.draw(st.lists(st.tuples(st.sampled_from([0, 1, 2]), REPLY), min_size=1, max_size=5))
    for path in tmp_path.glob("*.jsonl"):
        path.unlink()
    rows = GeneratedRows(tmp_path, "base", HOW)
    with rows.open():
        for place, reply in written:
            rows.add(IDS[place], PROMPTS[place], reply)
    assert found(tmp_path) == dict(written)  # of one row's replies the last
    path = tmp_path / "base.jsonl"
    whole = dict(zip(path.read_bytes().split(b"\n"), written, strict=False))
    lines = data.draw(st.lists(st.sampled_from(list(whole)) | st.binary(max_size=20), max_size=8))
    content = bytearray(b"".join(line + b"\n" for line in lines))
    size = len(content)
    for place, byte in data.draw(
        st.lists(st.tuples(st.integers(0, max(0, size - 1)), st.integers(0, 255)), max_size=4)
    ):
        content[place : place + 1] = bytes([byte])
    content = content[: data.draw(st.integers(size - 40, size))] if data.draw(st.booleans()) else content
    path.write_bytes(content)
    known: dict[int, list[Generated]] = {}
    for line in bytes(content).split(b"\n")[:-1]:
        if line in whole:
            known.setdefault(whole[line][0], []).append(whole[line][1])
    given_at_all = {place: [reply for at, reply in written if at == place] for place, _ in written}
    read = found(tmp_path)
    assert set(known) <= set(read)
    assert all(reply in given_at_all[place] for place, reply in read.items())
    keep(tmp_path, (1,))
    assert found(tmp_path)[1] == REPLIES[1]


def test_other_weights_have_another_fingerprint(tiny_model):
    plain = weights_fingerprint(tiny_model)
    assert plain == weights_fingerprint(tiny_model)
    model = get_peft_model(tiny_model, LoraConfig(r=2, target_modules=["q_proj"])).eval()
    tuned = weights_fingerprint(model)
    with model.disable_adapter():
        base = weights_fingerprint(model)
    assert len({plain, tuned, base}) == 3  # plain has other names for the same numbers
    with torch.no_grad():
        model.base_model.model.model.layers[1].self_attn.q_proj.lora_B["default"].weight[5, 1] += 1e-3
    assert weights_fingerprint(model) != tuned
    with model.disable_adapter():
        assert weights_fingerprint(model) == base
