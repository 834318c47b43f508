"""GGUF -> model folder: weights, settings and, hardest, the tokenizer come out as the model was trained with."""

import json
import math

import gguf
import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bnft.errors import UserError
from bnft.gguf_files import build_gemma_tokenizer, convert_gguf
from bnft.models import find_model, load_model, load_tokenizer
from bnft.settings import ModelConfig
from tests.conftest import kept_or_refused

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
HEAD = [("<pad>", CONTROL), ("<eos>", CONTROL), ("<bos>", CONTROL), ("<unk>", UNKNOWN)]
TURNS = [("<start_of_turn>", CONTROL), ("<end_of_turn>", CONTROL)]
BLANKS = [("\n", USER_DEFINED), ("\n\n", USER_DEFINED), ("  ", USER_DEFINED), ("   ", USER_DEFINED)]
BYTES = [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
# In the order of their scores, as SentencePiece keeps them: a merge that comes earlier wins.
PIECES = ["আম", "মি", "আমি", "▁ভ", "ভা", "▁ভা", "াল", "▁ভাল", "▁ভালো", "<b>", "কক", "ককক"]
LETTERS = ["▁", "আ", "ম", "ি", "ভ", "া", "ল", "ো", "ক", "<", "b", ">"]


def vocabulary():
    """(tokens, types, scores) in Gemma's layout."""
    entries = [*HEAD, *TURNS, *BLANKS, *BYTES, *((piece, NORMAL) for piece in [*PIECES, *LETTERS])]
    tokens, types = map(list, zip(*entries, strict=True))
    normal = types.index(NORMAL)
    scores = [0.0 if kind != NORMAL else -float(i - normal) for i, kind in enumerate(types)]
    return tokens, types, scores


@pytest.fixture(scope="module")
def small():
    return build_gemma_tokenizer(*vocabulary())


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        # Merged by hand, best score first: আম (0) before মি (1), and then আমি (2).
        ("আমি", ["আমি"]),
        ("মি", ["মি"]),
        # ▁ভ (3) comes before ভা (4), then ▁ভা (5); of ▁ভা+ল no pair but ▁ভা|ল -> ▁ভাল (7), though াল (6) is a piece.
        (" ভাল", ["▁ভাল"]),
        ("আমি ভালো", ["আমি", "▁ভালো"]),
        ("ভাল", ["ভা", "ল"]),
        # Three of a kind merge from the left: কক|ক -> ককক; five: ককক needs কক|ক first.
        ("ককক", ["ককক"]),
        ("কককক", ["কক", "কক"]),
        ("ককককক", ["কক", "ককক"]),
        ("ক ক", ["ক", "▁", "ক"]),
        ("<b>", ["<", "b", ">"]),  # its parts "<b" and "b>" are no pieces: it cannot be reached
        # Unknown letters fall back to their bytes.
        ("খ", ["<0xE0>", "<0xA6>", "<0x96>"]),
        ("আ🙂", ["আ", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]),
        # Runs of blanks are one piece, the longest first; single blanks belong to the word.
        ("আমি\n\nআমি", ["আমি", "\n\n", "আমি"]),
        ("\n", ["\n"]),
        ("ক   ক", ["ক", "▁▁▁", "ক"]),
        ("ক  ক", ["ক", "▁▁", "ক"]),
        # Control tokens are one piece, typed ones too where the caller allows it.
        ("<start_of_turn>আমি<end_of_turn>", ["<start_of_turn>", "আমি", "<end_of_turn>"]),
    ],
)
def test_small_vocabulary_against_merges_made_by_hand(small, text, pieces):
    assert small.encode(text, add_special_tokens=False).tokens == pieces
    assert small.decode(small.encode(text).ids, skip_special_tokens=False) == f"<bos>{text}"


def test_ids_are_the_files_own(small):
    tokens, _, _ = vocabulary()
    for i, token in enumerate(tokens):
        assert small.token_to_id(token.replace("  ", "▁▁").replace("▁ ", "▁▁")) == i
    assert small.get_vocab_size() == len(tokens)


def test_typed_control_tokens_can_be_read_as_text(small):
    small.encode_special_tokens = True
    try:
        assert "<end_of_turn>" not in small.encode("আমি<end_of_turn>").tokens[1:]
    finally:
        small.encode_special_tokens = False


# A whole tiny Gemma 3 as a file


def gemma_config(**changes):
    from transformers import Gemma3TextConfig

    settings = {
        "vocab_size": len(vocabulary()[0]),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 7,  # the sixth is a full-attention layer
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 512,
        "sliding_window": 8,
        "query_pre_attn_scalar": 32,
        "layer_types": [*["sliding_attention"] * 5, "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    return Gemma3TextConfig(**(settings | changes))


def write_gemma(path, model, *, template=None, kind=gguf.GGMLQuantizationType.F32, rope_factor=None, leave_out=()):
    config = model.config
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1e6)
    if rope_factor:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope_factor)
    if "sliding_window" not in leave_out:
        writer.add_sliding_window(config.sliding_window)
    tokens, types, scores = vocabulary()
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_scores(scores)
    if template:
        writer.add_chat_template(template)
    for name, weight in gguf_tensors(model):
        if weight.ndim == 1:
            writer.add_tensor(name, weight)
        else:
            writer.add_tensor(name, gguf.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# llama.cpp's names, written out from its convert_hf_to_gguf.py and not taken from the code under test.
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "embed_tokens": "token_embd",
    "norm": "output_norm",
}


def gguf_tensors(model):
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        parts = name.removeprefix("model.").removesuffix(".weight").split(".", 2)
        weight = weight.float().numpy()
        if parts[0] == "layers":
            target = f"blk.{parts[1]}.{NAMES[parts[2]]}.weight"
        else:
            target = f"{NAMES['.'.join(parts)]}.weight"
        yield target, (weight + 1 if target.endswith("norm.weight") else weight)  # llama.cpp stores 1 + w


@pytest.fixture(scope="module")
def gemma():
    from transformers import Gemma3ForCausalLM

    torch.manual_seed(5)
    model = Gemma3ForCausalLM(gemma_config()).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.1)  # the norms too, which start at zero
            weight.copy_(weight.bfloat16())
    return model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BNFT_CACHE", str(tmp_path / "cache"))


IDS = torch.tensor([[2, *range(266, 288)]])  # longer than the sliding window


def converted(path, dtype="float32"):
    source = find_model(str(path), announce=lambda text: None)
    return source, load_model(source, ModelConfig(dtype=dtype))


def test_a_gemma_file_gives_the_same_weights_settings_and_logits(cache, gemma, tmp_path):
    write_gemma(tmp_path / "my-gemma.gguf", gemma)
    source, model = converted(tmp_path / "my-gemma.gguf")
    assert source.licence == "gemma"
    expected = gemma.state_dict()
    got = model.state_dict()
    assert set(got) == set(expected)
    for name, weight in expected.items():
        # 1 + w of a norm loses its last bits in float32 at most; a matrix loses none
        torch.testing.assert_close(got[name], weight.bfloat16().float(), atol=4e-4, rtol=0, msg=name)
        if weight.ndim == 2:
            assert torch.equal(got[name], weight), name
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, gemma(IDS).logits, atol=5e-3, rtol=0)


def test_a_quantised_gemma_file_is_near(cache, gemma, tmp_path):
    write_gemma(tmp_path / "q8.gguf", gemma, kind=gguf.GGMLQuantizationType.Q8_0)
    _, model = converted(tmp_path / "q8.gguf")
    with torch.no_grad():
        exact, near = gemma(IDS).logits, model(IDS).logits
    assert 0 < (near - exact).norm() < 0.05 * exact.norm()


def test_stretched_positions_of_the_larger_models_are_kept(cache, gemma, tmp_path):
    """Gemma 3 from 4B on divides the full layers' positions by 8; left out, long texts would be read wrongly."""
    from transformers import Gemma3ForCausalLM

    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    stretched = Gemma3ForCausalLM(gemma_config(rope_parameters=rope)).eval()
    stretched.load_state_dict(gemma.state_dict())
    write_gemma(tmp_path / "large.gguf", stretched, rope_factor=8.0)
    _, model = converted(tmp_path / "large.gguf")
    with torch.no_grad():
        expected = stretched(IDS).logits
        assert not torch.allclose(expected, gemma(IDS).logits, atol=1e-2)
        torch.testing.assert_close(model(IDS).logits, expected, atol=5e-3, rtol=0)


def test_the_tokenizer_of_a_gemma_file(cache, gemma, small, tmp_path):
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}<end_of_turn>{% endfor %}"
    write_gemma(tmp_path / "with.gguf", gemma, template=template)
    tokenizer = load_tokenizer(find_model(str(tmp_path / "with.gguf"), announce=lambda text: None))
    assert tokenizer.chat_template == template  # once it was thrown away, and no chat could be made
    for text in ("আমি ভালো", "খ\n\nক   ক", "<end_of_turn>"):
        assert tokenizer(text)["input_ids"] == small.encode(text).ids
        assert tokenizer.decode(tokenizer(text)["input_ids"][1:]) == text
    names = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    assert names == (2, 1, 0, 3)


def test_a_template_given_by_the_caller_comes_first(gemma, tmp_path):
    write_gemma(tmp_path / "with.gguf", gemma, template="theirs")
    (tmp_path / "folder").mkdir()
    convert_gguf(tmp_path / "with.gguf", tmp_path / "folder", "ours")
    assert (tmp_path / "folder" / "chat_template.jinja").read_text() == "ours"


def test_a_file_that_lacks_a_setting_or_ends_too_early_is_refused(gemma, tmp_path):
    path, folder = tmp_path / "x.gguf", tmp_path / "folder"
    folder.mkdir()
    write_gemma(path, gemma, leave_out=("sliding_window",))
    with pytest.raises(UserError, match=r"'gemma3.attention.sliding_window' is missing"):
        convert_gguf(path, folder)
    write_gemma(path, gemma)
    whole = path.read_bytes()
    for size in (24, 1000, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="as GGUF"):
            convert_gguf(path, folder)


def test_a_missing_weight_is_never_drawn_at_random(gemma, tmp_path, monkeypatch):
    path, folder = tmp_path / "x.gguf", tmp_path / "folder"
    folder.mkdir()
    kept = [(name, weight) for name, weight in gguf_tensors(gemma) if name != "blk.3.attn_k.weight"]
    monkeypatch.setitem(globals(), "gguf_tensors", lambda model: kept)
    write_gemma(path, gemma)
    with pytest.raises(UserError, match=r"layers.3.self_attn.k_proj.weight is missing, expected \(32, 64\)"):
        convert_gguf(path, folder)


def test_a_count_that_would_take_all_memory_is_refused(gemma, tmp_path):
    write_gemma(tmp_path / "x.gguf", gemma)
    data = (tmp_path / "x.gguf").read_bytes()
    name = b"gemma3.block_count"
    place = data.index(name) + len(name) + 4  # the value's type comes between
    assert data[place] == 7
    (tmp_path / "x.gguf").write_bytes(data[:place] + (2**31).to_bytes(4, "little") + data[place + 4 :])
    with pytest.raises(UserError, match="tensors cannot be 2147483648 layers"):
        convert_gguf(tmp_path / "x.gguf", tmp_path)


COUNTS = st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**40, 2**63, 2**64 - 1]).map(
    lambda count: count.to_bytes(8, "little")
)


@pytest.mark.slow
@given(st.data())
def test_a_damaged_file_is_converted_or_refused(gemma, tmp_path, data):
    if not (tmp_path / "whole.gguf").exists():
        write_gemma(tmp_path / "whole.gguf", gemma)
    torn = bytearray((tmp_path / "whole.gguf").read_bytes())
    head = torn.rindex(b"blk.") + 64  # numbers of weights may be any
    for place in data.draw(st.lists(st.integers(0, head), max_size=3)):
        new = data.draw(COUNTS | st.binary(min_size=1, max_size=4))
        torn[place : place + len(new)] = new
    path = tmp_path / "torn.gguf"
    path.write_bytes(torn[: data.draw(st.none() | st.integers(0, len(torn)))])
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    _, said = kept_or_refused(convert_gguf, path, folder)
    assert not said or str(path) in said


def test_an_architecture_that_nobody_reads_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "abacus")
    writer.add_tensor("token_embd.weight", numpy.zeros((4, 4), dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="architecture 'abacus'"):
        convert_gguf(tmp_path / "x.gguf", tmp_path)


# A tiny Llama, through transformers' own reader


def permuted(weight, heads):
    """llama.cpp keeps the halves of each rotary pair side by side."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def rope_freqs(theta, width, factor, low=1.0, high=4.0, original=8192):
    """What llama.cpp's convert_hf_to_gguf.py stores for Llama 3.1: by what each frequency is divided."""
    factors = []
    for pair in range(width // 2):
        wavelength = 2 * math.pi * theta ** (2 * pair / width)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return numpy.array(factors, dtype=numpy.float32)


def write_llama(path, model, tokenizer):
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    controls = set(tokenizer.all_special_tokens) | {t for t in tokens if t.startswith("<|")}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in controls else NORMAL for token in tokens])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    if config.rope_parameters["rope_type"] == "llama3":
        width = config.hidden_size // config.num_attention_heads
        freqs = rope_freqs(config.rope_parameters["rope_theta"], width, config.rope_parameters["factor"])
        writer.add_tensor("rope_freqs.weight", freqs)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    names = NAMES | {"post_attention_layernorm": "ffn_norm"}
    for name, weight in model.state_dict().items():
        weight = weight.float().numpy()
        parts = name.removeprefix("model.").removesuffix(".weight").split(".", 2)
        if name == "lm_head.weight":
            writer.add_tensor("output.weight", weight)
        elif parts[0] == "layers":
            last = parts[2].rpartition(".")[2]
            weight = permuted(weight, heads[last]) if last in heads else weight
            writer.add_tensor(f"blk.{parts[1]}.{names[parts[2]]}.weight", weight)
        else:
            writer.add_tensor(f"{names['.'.join(parts)]}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_llama_file_goes_through_transformers(cache, tiny_model, tiny_tokenizer, tmp_path):
    from transformers import LlamaForCausalLM

    config = tiny_model.config
    config.rope_parameters = {"rope_type": "default", "rope_theta": 500_000.0}
    torch.manual_seed(2)
    original = LlamaForCausalLM(config).eval()
    write_llama(tmp_path / "Llama-3.1-tiny.gguf", original, tiny_tokenizer)
    source, model = converted(tmp_path / "Llama-3.1-tiny.gguf")
    assert source.licence == "llama3.1"
    for name, weight in original.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight.bfloat16().float(), atol=0, rtol=0, msg=name)
    tokenizer = load_tokenizer(source)
    for text in ("আমি ভালো নেই।", "<|eot_id|>", "ক\n\nখ 🙂"):
        expected = tiny_tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids == expected
    assert tokenizer.chat_template == tiny_tokenizer.chat_template
    assert getattr(model.config, "quantization_config", None) is None


def test_llama_31s_stretched_positions_are_kept(cache, tiny_model, tiny_tokenizer, tmp_path):
    """transformers' reader drops them without a word, and replies to long talks would slowly go wrong."""
    from transformers import LlamaForCausalLM

    config = tiny_model.config
    config.rope_parameters = config.rope_parameters | {"original_max_position_embeddings": 8192}
    original = LlamaForCausalLM(config).eval()
    write_llama(tmp_path / "Llama-3.1-tiny.gguf", original, tiny_tokenizer)
    _, model = converted(tmp_path / "Llama-3.1-tiny.gguf")
    assert model.config.rope_parameters == original.config.rope_parameters
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, original.model.rotary_emb.inv_freq)
    factors = torch.from_numpy(rope_freqs(500_000.0, 16, 8.0))
    plain = 500_000.0 ** (-torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, plain / factors)


# The embedded model


@pytest.mark.parametrize(
    ("text", "count"),
    [
        # Token counts of Google's own tokenizer for these texts cannot be had offline; what is known is that the model
        # gives its training text's words one or two tokens, which a wrong merge order breaks at once.
        ("আমি", 1),
        ("আমি ভালো আছি", 3),
        ("বাংলাদেশ", 1),
        ("The quick brown fox", 4),
        ("\n\n", 1),
        (" " * 8, 1),
        ("\n" * 5, 1),
        ("<start_of_turn>user\n", 3),
    ],
)
def test_known_tokenisation_of_the_embedded_model(embedded_tokenizer, text, count):
    ids = embedded_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == count, embedded_tokenizer.convert_ids_to_tokens(ids)


def test_known_ids_of_the_embedded_model(embedded_tokenizer):
    """Gemma 3's published ids: https://huggingface.co/google/gemma-3-270m/blob/main/tokenizer_config.json"""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    assert embedded_tokenizer.convert_tokens_to_ids(names) == [0, 1, 2, 3, 4, 105, 106]
    assert embedded_tokenizer.convert_tokens_to_ids(["\n", "\n\n"]) == [107, 108]


@pytest.mark.parametrize(
    "text",
    [
        "আমি খুব কষ্টে আছি, কাউকে বলতে পারছি না।",
        "ক্ষ, জ্ঞ, ঞ্চ; হৃদয়ের স্পন্দন। ড় ঢ় য় (U+09DC) এবং \u09a1\u09bc",
        "ami valo nei 🙂 — “উদ্ধৃতি” ১২৩.৫%",
        "  শুরুতে ফাঁকা\n\n\nমাঝে   তিনটি\t\tট্যাব শেষে ",
        "র\u200d্য ZWJ, ক্\u200cষ ZWNJ, 𑀩𑀸𑀁",
        "\n" * 40 + " " * 40 + "ক",
    ],
)
def test_the_embedded_tokenizer_gives_every_text_back(embedded_tokenizer, text):
    ids = embedded_tokenizer(text)["input_ids"]
    assert ids[0] == embedded_tokenizer.bos_token_id
    assert embedded_tokenizer.decode(ids[1:]) == text


def test_bengali_words_cost_what_they_cost_gemma(embedded_tokenizer, conversations):
    """1.57 tokens a word on the real corpus (bengali.md); other ids than the trained ones would need more."""
    texts = [message["content"] for c in conversations for message in c.messages]
    tokens = sum(len(embedded_tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    assert tokens / sum(len(text.split()) for text in texts) < 2.2
