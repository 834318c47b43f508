"""Models from strangers: nothing in their files runs a program, opens a pickle or leaves their folder."""

import json
import os
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open

from bnft.base_weights import LocalBase
from bnft.device_maps import empty_model
from bnft.errors import UserError
from bnft.model_code import INDEX, shards_of
from bnft.models import find_model, load_model, load_tokenizer
from bnft.prompts import encode_prompt
from bnft.settings import ModelConfig, RunConfig

FLOAT32 = ModelConfig(dtype="float32")


class Program:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny.base, tmp_path / "model")


@pytest.fixture
def adapter(tiny, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("BNFT_CACHE", os.path.dirname(os.path.dirname(tiny.base)))
    folder = tmp_path / "adapter"
    get_peft_model(tiny_model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    (folder / "bnft.json").write_text('{"base_model": "smoke"}')
    return folder


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def index_of(folder, shard):
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, shard)}))


@pytest.mark.parametrize("name", ["_attn_implementation", "attn_implementation", "experts_implementation"])
def test_settings_that_name_a_program_on_the_hub(copy, name):
    """`_attn_implementation` there beats what the loader is told, and `trust_remote_code` is not asked."""
    for value in ("somebody/kernel", {"": "sdpa", "text_config": "somebody/kernel:attention"}):
        change(copy / "config.json", **{name: value})
        with pytest.raises(UserError, match="asks for a program from elsewhere"):
            load_model(find_model(str(copy)), FLOAT32)
    change(copy / "config.json", **{name: None}, text_config={name: "somebody/kernel"})
    with pytest.raises(UserError, match="asks for a program from elsewhere"):
        empty_model(find_model(str(copy)), RunConfig())


@pytest.mark.parametrize("shard", ["weights.bin", "../part.safetensors", "/etc/passwd", "a/b.safetensors", ""])
def test_an_index_names_safetensors_files_beside_it_and_nothing_else(copy, tmp_path, shard):
    torch.save({"x": Program(tmp_path / "ran")}, copy / "weights.bin")
    index_of(copy, shard)
    with pytest.raises(UserError, match="no safetensors file beside it"):
        load_model(find_model(str(copy)), FLOAT32)
    with pytest.raises(UserError, match="no safetensors file beside it"):
        LocalBase(copy)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("written", ["[]", "{", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', '{"weight_map": []}'])
def test_a_damaged_index(tmp_path, written):
    (tmp_path / INDEX).write_text(written)
    with pytest.raises(UserError):
        shards_of(tmp_path / INDEX)


@pytest.mark.parametrize(
    "settings",
    [
        {"peft_type": "PROMPT_TUNING", "tokenizer_name_or_path": "x", "tokenizer_kwargs": {"trust_remote_code": True}},
        {"peft_type": "XLORA", "adapters": {"0": "/elsewhere"}},
        {"peft_type": None},
        {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
    ],
)
def test_an_adapter_that_is_more_than_lora(adapter, settings):
    change(adapter / "adapter_config.json", **settings)
    with pytest.raises(UserError, match="no plain LoRA adapter"):
        find_model(str(adapter))


@pytest.mark.parametrize(
    "settings",
    [{"r": "x"}, {"target_modules": [[1]]}, {"init_lora_weights": "corda"}, {"arrow_config": {"arrow_top_k": 1}}],
)
def test_an_adapter_whose_settings_make_no_sense_is_one_message(adapter, settings):
    change(adapter / "adapter_config.json", **settings)
    with pytest.raises(UserError, match="cannot load"):
        load_model(find_model(str(adapter)), FLOAT32)


@pytest.mark.parametrize("its_own", [True, False])
def test_an_adapter_on_a_run_is_refused_even_on_its_own(adapter, tmp_path, its_own):
    run = tmp_path / "run"
    shutil.copytree(adapter, run / "lora_model")
    folder = run / "lora_model" if its_own else adapter
    change(folder / "bnft.json", base_model=str(run))
    with pytest.raises(UserError, match="adapter on another adapter"):
        find_model(str(folder))


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__.os.mkdir('ran') }}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception('x') }}",
        "{% for",
        "{{ 1 + 'x' }}",
    ],
)
def test_a_chat_template_stays_in_its_sandbox(copy, template, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (copy / "chat_template.jinja").write_text(template)
    tokenizer = load_tokenizer(find_model(str(copy)))
    with pytest.raises(UserError, match="chat template cannot be used"):
        encode_prompt(tokenizer, [{"role": "user", "content": "ক"}])
    assert not (tmp_path / "ran").exists()
