"""Merging against PEFT's own `merge_and_unload`, refusals by name, and memory that the model's size does not move."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bnft import merge as merging
from bnft import tensor_files
from bnft.base_weights import LocalBase, sixteen_bit_base
from bnft.config import REPOSITORY
from bnft.errors import UserError
from bnft.merge import merge, read_adapter
from bnft.models import ModelSource

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_adapter(base, folder, **settings):
    """An adapter with random factors: a fresh one changes nothing, for B is zero."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(1)
    options = {"r": 4, "lora_alpha": 8, "target_modules": SEVEN, "task_type": "CAUSAL_LM"} | settings
    model = get_peft_model(model, LoraConfig(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.05)
    model.save_pretrained(folder)
    return folder


def by_peft(base, adapter, dtype):
    """The weights that PEFT merges in memory, as a state dict."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


def ours(base, adapter, folder, dtype=""):
    folder.mkdir()
    result = merge(read_adapter(adapter), LocalBase(Path(base)), folder, dtype)
    weights = {}
    for path in folder.glob("*.safetensors"):
        weights |= load_file(path)
    return result, weights


def differing(ours, theirs):
    """Names whose bits differ; a tied head that PEFT lists and a file does not is the embedding once more."""
    assert set(ours) <= set(theirs)
    assert set(theirs) - set(ours) <= {"lm_head.weight"}
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="lora"),
        pytest.param({"use_rslora": True, "r": 8}, id="rank-stabilised"),
        pytest.param({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 3}}, id="patterns"),
        pytest.param({"target_modules": ["q_proj"], "layers_to_transform": [1]}, id="one-layer"),
        pytest.param({"modules_to_save": ["lm_head", "norm"]}, id="modules-to-save"),
        pytest.param({"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, id="embedding-and-head"),
        pytest.param({"lora_dropout": 0.3, "init_lora_weights": "gaussian"}, id="dropout"),
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_every_tensor_is_the_one_that_peft_merges(tiny, tmp_path, settings, dtype):
    adapter = make_adapter(tiny.base, tmp_path / "adapter", **settings)
    result, weights = ours(tiny.base, adapter, tmp_path / "merged", dtype)
    assert differing(weights, by_peft(tiny.base, adapter, getattr(torch, dtype))) == []
    assert result.dtype == dtype
    assert result.changed + result.copied == len(weights)
    base = load_file(Path(tiny.base) / "model.safetensors")
    moved = [n for n in base if not torch.equal(base[n].to(weights[n].dtype), weights[n])]
    assert len(moved) == result.changed > 0


@pytest.mark.parametrize("piece", [4096, 2**20])
def test_the_size_of_the_pieces_changes_no_bit(tiny, tmp_path, monkeypatch, piece):
    """A layer's 128 x 64 matrix in bfloat16 has 16 KiB: four pieces of 4 KiB, one of 1 MiB."""
    adapter = make_adapter(tiny.base, tmp_path / "adapter", target_modules=["embed_tokens", *SEVEN])
    monkeypatch.setattr(tensor_files, "PIECE", piece)
    _, weights = ours(tiny.base, adapter, tmp_path / "merged")
    assert differing(weights, by_peft(tiny.base, adapter, torch.bfloat16)) == []


def test_a_model_in_shards_keeps_its_shards(tiny, tmp_path):
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny.base).save_pretrained(base, max_shard_size="300KB")
    names = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(names) > 2
    adapter = make_adapter(base, tmp_path / "adapter")
    result, weights = ours(base, adapter, tmp_path / "merged")
    assert sorted(p.name for p in (tmp_path / "merged").glob("*.safetensors")) == names
    assert differing(weights, by_peft(base, adapter, torch.bfloat16)) == []
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()  # through the index
    assert differing(weights, again) == []
    assert set(result.files) == {*names, "model.safetensors.index.json", "config.json"}


def test_on_a_small_disk_one_shard_is_there_at_a_time(tiny, tmp_path):
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny.base).save_pretrained(base, max_shard_size="300KB")
    adapter = make_adapter(base, tmp_path / "adapter")
    target, seen, most = tmp_path / "merged", {}, []
    target.mkdir()

    def send(path):
        most.append(len(list(target.glob("*.safetensors"))))
        seen.update(load_file(path))
        path.unlink()

    merge(read_adapter(adapter), LocalBase(base), target, finished=send)
    assert set(most) == {1}
    assert differing(seen, by_peft(base, adapter, torch.bfloat16)) == []


def test_tied_embeddings_of_the_real_gemma(embedded, tmp_path):
    adapter = make_adapter(embedded.base, tmp_path / "adapter", r=16, lora_alpha=16)
    result, weights = ours(embedded.base, adapter, tmp_path / "merged")
    assert "lm_head.weight" not in weights
    assert result.changed == 18 * 7
    assert differing(weights, by_peft(embedded.base, adapter, torch.bfloat16)) == []
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()


def refused(base, adapter, folder):
    with pytest.raises(UserError) as caught:
        ours(base, adapter, folder)
    assert not list(folder.glob("*")) if folder.exists() else True
    return str(caught.value)


@pytest.mark.parametrize("settings", [{"target_modules": ["embed_tokens", "q_proj"]}, {"modules_to_save": ["lm_head"]}])
@pytest.mark.filterwarnings("ignore")
def test_a_changed_embedding_of_a_tied_model_is_refused_by_name(tiny, tmp_path, settings):
    model = AutoModelForCausalLM.from_pretrained(tiny.base, tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "tied")
    adapter = make_adapter(tmp_path / "tied", tmp_path / "adapter", **settings)
    message = refused(tmp_path / "tied", adapter, tmp_path / "merged")
    assert "embed_tokens.weight" in message or "lm_head.weight" in message


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights: 'olora'"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
    ],
)
def test_other_kinds_of_adapters_are_refused_by_name(tiny, tmp_path, settings, named):
    adapter = make_adapter(tiny.base, tmp_path / "adapter", **settings)
    assert named in refused(tiny.base, adapter, tmp_path / "merged")


def test_what_this_version_does_not_know_is_refused(tiny, tmp_path):
    adapter = make_adapter(tiny.base, tmp_path / "adapter")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_something_new": True}))
    assert "use_something_new" in refused(tiny.base, adapter, tmp_path / "merged")


def test_merging_twice_is_refused(tiny, tmp_path):
    adapter = make_adapter(tiny.base, tmp_path / "adapter")
    ours(tiny.base, adapter, tmp_path / "merged")
    assert "merged into that base already" in refused(tmp_path / "merged", adapter, tmp_path / "twice")


def test_an_adapter_of_another_base_is_refused(tiny, tmp_path):
    adapter = make_adapter(tiny.base, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name.replace("layers.1.", "layers.7."): value for name, value in weights.items()}, file)
    assert "model.layers.7." in refused(tiny.base, adapter, tmp_path / "merged")
    save_file({n: v[:, :-8].contiguous() if "lora_A" in n else v for n, v in weights.items()}, file)
    assert "not for this base" in refused(tiny.base, adapter, tmp_path / "other")


def quantised(tiny, folder):
    """A base as bitsandbytes saves it: bytes in place of numbers, and a note in config.json."""
    shutil.copytree(tiny.base, folder)
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path.write_text(json.dumps(settings))
    return folder


def test_four_bit_weights_are_never_merged_into(tiny, tmp_path):
    adapter = make_adapter(tiny.base, tmp_path / "adapter")
    base = quantised(tiny, tmp_path / "x-bnb-4bit")
    assert "bitsandbytes" in refused(base, adapter, tmp_path / "merged")
    (base / "config.json").write_text((Path(tiny.base) / "config.json").read_text())  # the note lost, the bytes stay
    weights = load_file(base / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(weights | {name: weights[name].to(torch.uint8)}, base / "model.safetensors")
    assert "stored as U8" in refused(base, adapter, tmp_path / "merged2")


def test_the_16_bit_base_behind_a_4_bit_one_is_found_and_told(tiny, tmp_path):
    base = quantised(tiny, tmp_path / "Tiny-unsloth-bnb-4bit")
    shutil.copytree(tiny.base, tmp_path / "Tiny")
    told = []
    name, weights = sixteen_bit_base(ModelSource("x", str(base)), None, told.append)
    assert name == str(tmp_path / "Tiny") == str(weights.folder)
    assert str(tmp_path / "Tiny") in told[0]
    assert sixteen_bit_base(ModelSource("x", str(base)), tiny.base, told.append)[0] == tiny.base
    other = quantised(tiny, tmp_path / "Tiny-GPTQ")
    with pytest.raises(UserError, match="--base"):
        sixteen_bit_base(ModelSource("x", str(other)), None, told.append)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "neither config.json"),
        ({"config.json": '{"model_type": "llama"}'}, "holds no weights"),
        ({"config.json": "{", "model.safetensors": ""}, "cannot read"),
    ],
)
def test_a_base_that_is_no_model_is_refused_by_its_name(tiny, tmp_path, files, said):
    asked = tmp_path / "asked"
    asked.mkdir()
    for name, content in files.items():
        (asked / name).write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        sixteen_bit_base(ModelSource("x", str(tiny.base)), str(asked), print)
    assert str(asked) in caught.value.message


def test_an_adapter_is_no_base(tiny, tmp_path):
    adapter = make_adapter(tiny.base, tmp_path / "adapter")
    with pytest.raises(UserError, match="is an adapter"):
        sixteen_bit_base(ModelSource("x", str(tiny.base)), str(adapter), print)


def test_a_disk_that_is_too_small_is_told_before_writing(tiny, tmp_path, monkeypatch):
    adapter = make_adapter(tiny.base, tmp_path / "adapter")
    monkeypatch.setattr(merging, "LEAST_FREE", 2**60)
    message = refused(tiny.base, adapter, tmp_path / "merged")
    assert "GiB more" in message
    assert "--low-disk" in message


def test_a_damaged_base_is_told(tiny, tmp_path):
    adapter = make_adapter(tiny.base, tmp_path / "adapter")
    base = shutil.copytree(tiny.base, tmp_path / "base")
    with (base / "model.safetensors").open("r+b") as file:
        file.truncate(100_000)
    assert "cut short" in refused(base, adapter, tmp_path / "merged")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 16]},  # fewer bytes than its shape asks for
        {"dtype": "F32", "shape": [2, 2], "data_offsets": [-4, 16]},
        {"dtype": "F32", "shape": [2, 1], "data_offsets": [8, 16]},  # bytes that belong to no tensor
        {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [0]},
    ],
)
def test_a_directory_that_contradicts_its_file_is_told(tmp_path, entry):
    header = json.dumps({"w": entry}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(UserError, match=r"damaged|cannot read"):
        tensor_files.TensorFile(path)


# The high-water mark of the process, begun anew: ru_maxrss would hold that of the process which started it.
MEASURE = """
import sys
from pathlib import Path
from bnft.base_weights import LocalBase
from bnft.merge import merge, read_adapter
import peft.utils.other  # what merging imports is not what merging takes

def mib(name):
    return int(open("/proc/self/status").read().split(name + ":")[1].split()[0]) / 1024

adapter, base, target = map(Path, sys.argv[1:])
read = read_adapter(adapter)
open("/proc/self/clear_refs", "w").write("5")
before = mib("VmRSS")
merge(read, LocalBase(base), target)
print(mib("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's memory figures")
def test_memory_is_bounded_by_pieces_not_by_the_model(tmp_path):
    """A file of 768 MiB in one shard, merged within half of that: a piece, its change in float32, and the factors."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir(), adapter.mkdir(), (tmp_path / "merged").mkdir()
    shape = (8192, 4096)
    names = [f"model.layers.{i}.mlp.up_proj" for i in range(12)]
    with tensor_files.TensorWriter(
        base / "model.safetensors", {f"{n}.weight": (torch.bfloat16, shape) for n in names}
    ) as writer:
        weight = torch.randn(shape, dtype=torch.bfloat16)
        for _ in names:
            writer.write(weight)
    (base / "config.json").write_text("{}")
    factors = {}
    for name in names:
        factors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(16, shape[1])
        factors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(shape[0], 16)
    save_file(factors, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 16}))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(adapter), str(base), str(tmp_path / "merged")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    size = (base / "model.safetensors").stat().st_size / 2**20
    assert size > 767
    assert 50 < float(done.stdout) < 400 < size
