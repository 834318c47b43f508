"""Merged weights are taken again only where they are those of this adapter and base, byte by byte."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bnft.base_weights import LocalBase
from bnft.errors import UserError
from bnft.merged_folder import MergedFolder
from bnft.model_cache import file_sha256
from tests.test_merge import make_adapter


@pytest.fixture
def told():
    return []


@pytest.fixture
def merged(tiny, tmp_path, told):
    made = MergedFolder(tmp_path / "publish", make_adapter(tiny.base, tmp_path / "adapter"), told.append)
    made.make("smoke", LocalBase(Path(tiny.base)))
    return made


def contents(folder):
    return {path.name: file_sha256(path) for path in folder.iterdir()}


def test_it_is_made_once(merged, tiny, told):
    before = contents(merged.folder)
    assert merged.record()["files"] == before, "the checksums are those of the files"
    merged.compare(lambda adapter, folder: {"rows": 1})
    merged.make("smoke", LocalBase(Path(tiny.base)))
    assert "not made again" in told[-1]
    assert merged.record()["comparison"] == {"rows": 1}


def flip(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda m: flip(m.folder / "model.safetensors"), "model.safetensors"),
        (lambda m: (m.folder / "model.safetensors").write_bytes(b"torn"), "model.safetensors"),
        (lambda m: (m.folder / "config.json").unlink(), "config.json"),
        (lambda m: (m.folder.parent / "merged.json").write_text('{"torn'), "merging into"),
        (lambda m: (m.folder.parent / "merged.json").write_text("[]"), "merging into"),
    ],
)
def test_what_is_damaged_is_named_and_made_again(merged, tiny, told, harm, named):
    before = contents(merged.folder)
    harm(merged)
    told.clear()
    merged.make("smoke", LocalBase(Path(tiny.base)))
    assert named in told[0]
    assert contents(merged.folder) == before


def test_another_base_leaves_no_shard_of_the_first_and_nothing_of_a_killed_program(merged, tiny, tmp_path):
    """A shard under its old name would be uploaded too, and transformers would take it before the new ones."""
    AutoModelForCausalLM.from_pretrained(tiny.base).save_pretrained(tmp_path / "base", max_shard_size="300KB")
    (merged.folder / ".model-00002-of-00004.safetensors.part").write_bytes(b"half")
    merged.make("other", LocalBase(tmp_path / "base"))
    found = {path.name for path in merged.folder.iterdir()}
    assert "model.safetensors" not in found
    assert found == set(merged.record()["files"])


def test_weights_of_another_adapter_are_not_told_of(merged, tiny, tmp_path):
    merged.check_belongs()
    weights = merged.lora / "adapter_model.safetensors"
    flip(weights)
    with pytest.raises(UserError, match="was not merged yet"):
        merged.check_belongs()
    before = contents(merged.folder)
    merged.make("smoke", LocalBase(Path(tiny.base)))
    assert contents(merged.folder) != before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_weights_that_are_no_numbers_are_refused_by_name(merged, tiny, value):
    weights = merged.lora / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name][0, 0] = value
    save_file(tensors, weights)
    if value == 1e30:  # a finite number there, but none of the merged type
        tensors[name.replace("lora_B", "lora_A")] *= 1e20
        save_file(tensors, weights)
    named = name.removeprefix("base_model.model.").partition(".lora_")[0]
    with pytest.raises(UserError, match=rf"{named}\.weight holds values that are no finite"):
        merged.make("smoke", LocalBase(Path(tiny.base)))
    assert not list(merged.folder.glob("*.safetensors"))
