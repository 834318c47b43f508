"""Peak memory and seconds of merging an adapter into a random model of Llama 3.1 8B's shape, ours against PEFT's.

    python benchmarks/merge.py --layers 32 --folder /big/disk          two times 16 GB of disk
    python benchmarks/merge.py --layers 8 --folder /tmp --peft         a quarter of the model, PEFT beside it

Each merge runs in a process of its own; its peak is told above what the same imports take.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
HIDDEN, MIDDLE, KEYS, VOCABULARY, RANK = 4096, 14336, 1024, 128256, 16
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (MIDDLE, HIDDEN),
    "mlp.up_proj": (MIDDLE, HIDDEN),
    "mlp.down_proj": (HIDDEN, MIDDLE),
}

# The high-water mark of a process's memory, begun anew: ru_maxrss would hold the parent's.
MEMORY = """
import sys, time
def gib(name):
    return int(open("/proc/self/status").read().split(name + ":")[1].split()[0]) / 2**20
def begin():
    open("/proc/self/clear_refs", "w").write("5")
    return gib("VmRSS"), time.monotonic()
"""
OURS = (
    MEMORY
    + """
from pathlib import Path
import torch, peft, transformers
from bnft.base_weights import LocalBase
from bnft.merge import merge, read_adapter
before, started = begin()
merge(read_adapter(Path(sys.argv[2])), LocalBase(Path(sys.argv[1])), Path(sys.argv[3]))
print(gib("VmHWM") - before, time.monotonic() - started)
"""
)
PEFT = (
    MEMORY
    + """
import torch, peft, transformers
before, started = begin()
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
model = peft.PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload()
model.save_pretrained(sys.argv[3], max_shard_size="5GB")
print(gib("VmHWM") - before, time.monotonic() - started)
"""
)


def make_base(folder: Path, layers: int) -> None:
    """Random bfloat16 weights in shards of four layers, written a tensor at a time."""
    import torch

    sys.path.insert(0, str(REPOSITORY))
    from bnft.tensor_files import TensorWriter

    shards = [{"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}]
    for first in range(0, layers, 4):
        shard = {}
        for layer in range(first, min(first + 4, layers)):
            shard |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in SHAPES.items()}
            for norm in ("input_layernorm", "post_attention_layernorm"):
                shard[f"model.layers.{layer}.{norm}.weight"] = (HIDDEN,)
        shards.append(shard)
    shards.append({"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)})
    index = {}
    for number, shard in enumerate(shards):
        name = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        index |= dict.fromkeys(shard, name)
        with TensorWriter(folder / name, {key: (torch.bfloat16, shape) for key, shape in shard.items()}) as writer:
            for shape in shard.values():
                writer.write(torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": MIDDLE,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(settings))


def make_adapter(folder: Path, layers: int) -> None:
    import torch
    from safetensors.torch import save_file

    factors = {}
    for layer in range(layers):
        for name, (rows, columns) in SHAPES.items():
            key = f"base_model.model.model.layers.{layer}.{name}"
            factors[f"{key}.lora_A.weight"] = torch.empty(RANK, columns).normal_(0, 0.02)
            factors[f"{key}.lora_B.weight"] = torch.empty(rows, RANK).normal_(0, 0.02)
    save_file(factors, folder / "adapter_model.safetensors")
    targets = sorted(name.split(".")[1] for name in SHAPES)
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def equal(first: Path, second: Path) -> bool:
    """Whether two folders hold the same tensors, bit by bit, whatever their shards."""
    import torch

    from bnft.tensor_files import TensorFile

    def where(folder):
        return {
            name: file for path in folder.glob("*.safetensors") for file in [TensorFile(path)] for name in file.entries
        }

    ours, theirs = where(first), where(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n].read(n), theirs[n].read(n)) for n in ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--peft", action="store_true", help="merge with PEFT too: all weights are in memory then")
    flags = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bnft-merge-", dir=flags.folder))
    try:
        for name in ("base", "adapter", "ours", "peft"):
            (folder / name).mkdir()
        started = time.monotonic()
        make_base(folder / "base", flags.layers)
        make_adapter(folder / "adapter", flags.layers)
        size = sum(path.stat().st_size for path in (folder / "base").glob("*.safetensors")) / 2**30
        print(f"base: {flags.layers} layers, {size:.2f} GiB, made in {time.monotonic() - started:.0f} s", flush=True)
        for name, code in (("ours", OURS), *((("peft", PEFT),) if flags.peft else ())):
            command = [sys.executable, "-c", code, *(str(folder / part) for part in ("base", "adapter", name))]
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
            peak, seconds = map(float, done.stdout.split()[-2:])
            print(f"{name}: {peak:.2f} GiB above the imports, {seconds:.0f} s", flush=True)
        if flags.peft:
            print(f"every tensor equal: {equal(folder / 'ours', folder / 'peft')}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
