"""GGUF file -> ordinary model folder (config, safetensors, tokenizer), written once.

Gemma 3 is converted here: its tokenizer is a byte-fallback BPE, which transformers' own GGUF reader rebuilds as a
Unigram (other token ids than the model was trained on), and that reader parses the 262,144-entry header three times.
Other architectures go through transformers. Knows nothing about caches, adapters or training.
"""

from __future__ import annotations

import json
from pathlib import Path

from bnft.errors import UserError

# GGUF name -> transformers name, for one Gemma 3 block and for the whole model.
_BLOCK = {
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_WHOLE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}

# GGUF token types, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4


# What readers run into in a file whose counts, types and names are not what they should be.
_DAMAGE = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, NotImplementedError, RecursionError)


def convert_gguf(gguf_path: Path, folder: Path, chat_template: str | None = None) -> None:
    """Writes the model in `gguf_path`, de-quantised to bfloat16, into the existing empty `folder`.

    Raises:
        UserError: the file is no GGUF, damaged, or of an architecture that cannot be read.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        reader = _open(gguf_path)
        architecture = reader.fields["general.architecture"].contents()
        layers = reader.fields.get(f"{architecture}.block_count")
        if layers and not 0 < layers.contents() <= len(reader.tensors):  # believed, it would become a list that long
            raise ValueError(f"{len(reader.tensors)} tensors cannot be {layers.contents()} layers")
    except (*_DAMAGE, OSError) as error:
        raise UserError(f"cannot read {gguf_path} as GGUF: {error}", "Give a complete GGUF version 3 file.") from error
    if architecture == "gemma3":
        try:
            _write_gemma3_tokenizer(reader, folder, chat_template)
            _write_gemma3_weights(reader, folder, _write_gemma3_config(reader, folder))
        except (*_DAMAGE, StrictDataclassError) as error:
            what = f"{error} is missing, or unknown in a Gemma 3 text model" if isinstance(error, KeyError) else error
            raise UserError(
                f"cannot convert {gguf_path}: {what}", "Give the model as a folder with safetensors weights instead."
            ) from error
    else:
        stretch = next((float(t.data.max()) for t in reader.tensors if t.name == "rope_freqs.weight"), None)
        _convert_with_transformers(gguf_path, folder, chat_template, architecture, stretch)


def _open(gguf_path: Path):
    """A GGUF reader over plain arrays: slicing a memory map half a million times costs five times as much."""
    import gguf
    import numpy

    class Reader(gguf.GGUFReader):
        @property
        def data(self):
            return self._data

        @data.setter
        def data(self, value):
            self._data = value.view(numpy.ndarray)

    return Reader(str(gguf_path))


def _write_gemma3_weights(reader, folder: Path, config) -> None:
    import torch
    from gguf import dequantize
    from safetensors.torch import save_file

    tensors = {}
    for tensor in reader.tensors:
        if tensor.name in _WHOLE:
            name = _WHOLE[tensor.name]
        else:
            _, block, rest = tensor.name.split(".", 2)
            name = f"model.layers.{block}.{_BLOCK[rest]}"
        weights = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        if name.endswith("norm.weight"):
            weights = weights - 1  # GGUF stores 1 + w, transformers' Gemma stores w
        tensors[name] = weights.to(torch.bfloat16).contiguous()
    _refuse_other_shapes(config, {name: tuple(weights.shape) for name, weights in tensors.items()})
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _refuse_other_shapes(config, found: dict[str, tuple]) -> None:
    """A weight that is missing would be drawn at random when the model is loaded, with no more than a warning."""
    import torch
    from transformers import Gemma3ForCausalLM

    with torch.device("meta"):
        weights = Gemma3ForCausalLM(config).state_dict()
    expected = {name: tuple(weight.shape) for name, weight in weights.items() if name != "lm_head.weight"}
    wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    if wrong:
        told = f"{wrong[0]} is {found.get(wrong[0], 'missing')}, expected {expected.get(wrong[0], 'none')}"
        raise ValueError(f"{told} ({len(wrong)} weights are wrong)")


def _write_gemma3_config(reader, folder: Path):
    from transformers import Gemma3TextConfig, GenerationConfig

    def value(key: str):
        return reader.fields[f"gemma3.{key}"].contents()

    layers = value("block_count")
    full_rope = {"rope_type": "default", "rope_theta": value("rope.freq_base")}
    if "gemma3.rope.scaling.factor" in reader.fields:  # from 4B on the full layers' positions are stretched
        full_rope |= {"rope_type": "linear", "factor": value("rope.scaling.factor")}
    config = Gemma3TextConfig(
        architectures=["Gemma3ForCausalLM"],
        vocab_size=len(reader.fields["tokenizer.ggml.tokens"].data),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=layers,
        num_attention_heads=value("attention.head_count"),
        num_key_value_heads=value("attention.head_count_kv"),
        head_dim=value("attention.key_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        max_position_embeddings=value("context_length"),
        sliding_window=value("attention.sliding_window"),
        # The 27B model alone scales its queries by hidden size over heads; the smaller ones by the head's size.
        query_pre_attn_scalar=value("embedding_length") // value("attention.head_count")
        if layers == 62
        else value("attention.key_length"),
        # Five sliding layers, then a full one: Gemma 3 technical report, section 2.
        layer_types=["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(layers)],
        rope_parameters={
            "full_attention": full_rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        tie_word_embeddings=True,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    GenerationConfig(bos_token_id=2, eos_token_id=[1, 106], pad_token_id=0).save_pretrained(folder)
    return config


def _write_gemma3_tokenizer(reader, folder: Path, chat_template: str | None) -> None:
    from transformers import PreTrainedTokenizerFast

    fields = reader.fields
    tokens = [bytes(f.parts[i]).decode("utf-8") for f in [fields["tokenizer.ggml.tokens"]] for i in f.data]
    types = [int(f.parts[i][0]) for f in [fields["tokenizer.ggml.token_type"]] for i in f.data]
    scores = [float(f.parts[i][0]) for f in [fields["tokenizer.ggml.scores"]] for i in f.data]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_gemma_tokenizer(tokens, types, scores),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=reader.fields["gemma3.context_length"].contents(),
    )
    own_template = fields.get("tokenizer.chat_template")
    tokenizer.chat_template = chat_template or (own_template.contents() if own_template else None)
    tokenizer.save_pretrained(folder)


def build_gemma_tokenizer(tokens: list[str], types: list[int], scores: list[float]):
    """Gemma's SentencePiece BPE as a `tokenizers.Tokenizer`.

    SentencePiece keeps no merge list: a pair may merge when its concatenation is a token, the best score first.
    So the merges are all such pairs, in the order of the merged token's score.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE

    def is_blank_run(i: int) -> bool:
        return types[i] == _USER_DEFINED and tokens[i].strip() == ""

    names = [token.replace(" ", "▁") if is_blank_run(i) else token for i, token in enumerate(tokens)]
    vocabulary = {name: i for i, name in enumerate(names)}
    merges = []
    for i, name in enumerate(names):
        if types[i] != _NORMAL and not is_blank_run(i):
            continue
        # Runs of blanks are matched whole before anything else, so they merge first, the short ones before the long.
        order = -scores[i] if types[i] == _NORMAL else -1e9 + len(name)
        pairs = [(name[:k], name[k:]) for k in range(1, len(name)) if name[:k] in vocabulary and name[k:] in vocabulary]
        merges += sorted((order, vocabulary[left], vocabulary[right]) for left, right in pairs)
    merges.sort()
    pairs = [(names[left], names[right]) for _, left, right in merges]
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=pairs, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([names[i] for i in range(len(names)) if types[i] == _CONTROL])
    tokenizer.add_tokens(
        [
            AddedToken(names[i], normalized=False)
            for i in range(len(names))
            if types[i] == _USER_DEFINED and not is_blank_run(i)
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return tokenizer


def _convert_with_transformers(
    gguf_path: Path, folder: Path, chat_template: str | None, architecture: str, stretch: float | None
) -> None:
    import torch
    from tokenizers import decoders
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf_path.parent), "gguf_file": gguf_path.name}
    try:
        # Settings that lie beside the file are read as well; unsaid, what they ask for would be offered to the user.
        tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            **source, trust_remote_code=False, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
    except (*_DAMAGE, RuntimeError) as error:
        raise UserError(
            f"cannot convert {gguf_path}: architecture {architecture!r}: {error}",
            "Give the model as a folder with safetensors weights instead.",
        ) from error
    if chat_template and not tokenizer.chat_template:
        tokenizer.chat_template = chat_template
    backend = tokenizer.backend_tokenizer
    if "ByteLevel" in str(backend.pre_tokenizer):  # transformers adds SentencePiece steps to it
        backend.decoder = decoders.ByteLevel()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The weights are plain now: nobody who loads the folder should look for GGUF blocks.
    config_file = folder / "config.json"
    settings = json.loads(config_file.read_text(encoding="utf-8"))
    settings.pop("quantization_config", None)
    if architecture == "llama" and stretch:  # Llama 3.1 and later; transformers' reader passes over the tensor
        settings["rope_parameters"] |= {
            "rope_type": "llama3",
            "factor": stretch,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    config_file.write_text(json.dumps(settings, indent=2), encoding="utf-8")
