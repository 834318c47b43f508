"""A model of Llama 3.1 8B's shape with random weights: made on a GPU, in the folder that is given or in memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from bnft.models import ModelSource, find_model, load_model, load_tokenizer
from bnft.settings import ModelConfig
from bnft.smoke_model import ROPE


def llama_8b():
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        rope_parameters=ROPE,
    )


def packed_model(config, dtype: torch.dtype, device: str):
    """In NF4 with double quantisation, as `open_model` loads it, without the way over a disk."""
    from bitsandbytes.nn import Linear4bit, Params4bit
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)

    def random(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device).normal_(0, 0.02)

    for parent in list(model.model.layers.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is torch.nn.Linear:
                sizes = layer.in_features, layer.out_features
                packed = Linear4bit(*sizes, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta")
                weight = Params4bit(random(*sizes[::-1]), compress_statistics=True, quant_type="nf4", module=packed)
                packed.weight = weight.to(device)
                setattr(parent, name, packed)
            elif hasattr(layer, "weight") and layer.weight.dim() == 1:
                layer.weight = torch.nn.Parameter(torch.ones(layer.weight.shape, dtype=dtype, device=device))
    for module in (model.model.embed_tokens, model.lm_head):
        module.weight = torch.nn.Parameter(random(*module.weight.shape))
    norm = model.model.norm
    norm.weight = torch.nn.Parameter(torch.ones(norm.weight.shape, dtype=dtype, device=device))
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(device)
    model.is_loaded_in_4bit = True  # PEFT looks at it
    model.generation_config.eos_token_id = None  # `generate` falls back to it
    return model.requires_grad_(False).eval()


def make_model(folder: Path, tokenizer: Path | None) -> None:
    from transformers import LlamaForCausalLM

    config = llama_8b()
    torch.manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device="cuda")
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.fill_(1.0) if "norm" in name else value.normal_(0, 0.02)
    model.save_pretrained(folder)
    source = tokenizer or Path(find_model("smoke").base)
    for file in [*source.glob("tokenizer*.json"), *source.glob("*.jinja")]:
        shutil.copy(file, folder)


def open_model(folder: Path, four_bit: bool, dtype: str):
    source = ModelSource("random-8b", str(folder))
    tokenizer = load_tokenizer(source)
    if not tokenizer.chat_template:
        from bnft.prompts import chat_template

        tokenizer.chat_template = chat_template("llama-3.1")
    return load_model(source, ModelConfig(dtype=dtype, load_in_4bit=four_bit)), tokenizer


def with_adapter(model):
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules=targets)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.01)
    return model
