"""Replies to many test rows on one GPU: ours against `generate`, one at a time and in batches, on a random 8B in NF4.

    python benchmarks/evaluate_gpu.py [--tokenizer FOLDER] [--output FILE] [--seconds 300] [--small]

Prompts of about 125 random tokens, 128 new tokens each, greedy, no end token: speed, memory and agreement can be
measured on random weights, quality cannot. "Like a T4" is float16, a cap of 14.74 GiB, no flash kernels. Then the
evaluator itself, base and tuned with an adapter of r=16, likelihoods and replies, on rows of the bundled corpus under
that cap. --tokenizer is a folder with Llama 3.1's tokenizer.json; without it the tiny one of this program is taken.
Each part prints its figures as one line of JSON and is in FILE at once; a part that fails does not lose the others, and
none begins after --seconds. --small runs every line with a tiny model, on a CPU too.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import transformers

from benchmarks.like_a_t4 import like_a_t4
from benchmarks.random_8b import llama_8b, packed_model, with_adapter
from bnft.batch_generation import BatchWriter, Job
from bnft.batching import FAILURES
from bnft.config import REPOSITORY
from bnft.errors import UserError
from bnft.evaluation import Evaluator, rows_of
from bnft.gpu_memory import forget
from bnft.models import ModelSource, find_model, load_tokenizer
from bnft.prompts import chat_template
from bnft.settings import RunConfig

GIB = 2**30
ON_GPU = torch.cuda.is_available()


@dataclass(frozen=True)
class Talk:
    id: str
    messages: tuple[dict, ...]


def timed(work) -> tuple[float, dict]:
    """Seconds that the work takes, and its peak memory."""
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    work()
    if not ON_GPU:
        return time.perf_counter() - started, {}
    torch.cuda.synchronize()
    peaks = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    return time.perf_counter() - started, {f"peak_gib_{name}": round(size / GIB, 2) for name, size in peaks.items()}


def generate(model, prompts, tokens: int) -> list[list[int]]:
    """One batch of `model.generate`, padded on the left."""
    settings = transformers.GenerationConfig(do_sample=False, max_new_tokens=tokens, eos_token_id=None, pad_token_id=0)
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    with torch.inference_mode():
        return model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, width:].tolist()


def batches(model, prompts, size: int, tokens: int) -> dict:
    """The first `size` prompts in one batch; `size` 1 writes two, one after the other."""
    count = 2 if size == 1 else size
    generate(model, prompts[:size], 2)
    parts = [prompts[start : start + size] for start in range(0, count, size)]
    seconds, peaks = timed(lambda: [generate(model, part, tokens) for part in parts])
    return {
        "tokens_per_second": round(count * tokens / seconds, 1),
        "rows": count,
        "seconds": round(seconds, 2),
    } | peaks


def ours(model, prompts, tokens: int, **options) -> dict:
    told, notes = {}, []

    def ready(number: int, ids: list[int], ended: bool, seconds: float) -> None:
        told[number] = ids

    def write() -> None:
        BatchWriter(model, announce=notes.append, **options).write(Job(prompts, frozenset(), tokens, 1.0, ready))

    seconds, peaks = timed(write)
    count = sum(map(len, told.values()))
    assert count == tokens * len(prompts)
    return {
        "tokens_per_second": round(count / seconds, 1),
        "rows": len(prompts),
        "seconds": round(seconds, 2),
        "notes": notes,
        "judged_by_one_pass": [judged(model, prompts[number], told[number]) for number in (0, len(prompts) - 1)],
    } | peaks


@torch.inference_mode()
def judged(model, prompt, ids) -> dict:
    """How often each token is the best one for a single pass over the whole text, and how far the others fall short."""
    whole = torch.tensor([[*prompt, *ids]], device=model.device)
    scores = model(whole, logits_to_keep=len(ids) + 1).logits[0, :-1].float()
    short = scores.amax(-1) - scores.gather(1, torch.tensor(ids, device=model.device)[:, None])[:, 0]
    return {"best": int((short == 0).sum()), "of": len(ids), "furthest": round(float(short.max()), 4)}


def evaluator(model, tokenizer, rows: int, tokens: int) -> dict:
    """Base and tuned: likelihoods, then replies, on the first rows of the corpus."""
    with (REPOSITORY / "data" / "corpus.csv").open(encoding="utf-8", newline="") as file:
        talks = [
            Talk(
                str(i),
                tuple({"role": r, "content": row[c]} for r, c in (("user", "Questions"), ("assistant", "Answers"))),
            )
            for i, row in zip(range(rows), csv.DictReader(file), strict=False)
        ]
    config = RunConfig().replace("generation.max_new_tokens", tokens)
    evaluation = Evaluator(model, tokenizer, config)
    model.eval()
    result: dict = {"rows": rows}
    found, replies = {}, {}

    def measure(system: str) -> None:
        seconds, peaks = timed(lambda: found.update({system: evaluation.likelihoods(talks)}))
        read = sum(row.tokens for row in found[system])
        result[f"{system}, likelihood"] = {"seconds": round(seconds, 2), "reply_tokens": read} | peaks
        seconds, peaks = timed(lambda: replies.update({system: evaluation.generate(rows_of(talks))}))
        count = sum(reply.tokens for reply in replies[system])
        result[f"{system}, replies"] = {"seconds": round(seconds, 2), "new_tokens": count} | peaks

    with model.disable_adapter():
        measure("base")
    measure("tuned")
    result["same_replies"] = sum(a.text == b.text for a, b in zip(replies["base"], replies["tuned"], strict=True))
    result["same_likelihoods"] = sum(a == b for a, b in zip(found["base"], found["tuned"], strict=True))
    return result


def table(results: dict) -> str:
    parts = results["parts"]
    alone = parts.get("generate, one at a time", {}).get("tokens_per_second")
    lines = [
        "| | tokens a second | times one at a time | peak GiB allocated, reserved |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, part in parts.items():
        if rate := part.get("tokens_per_second"):
            peaks = ", ".join(str(part.get(f"peak_gib_{kind}", "-")) for kind in ("allocated", "reserved"))
            lines.append(f"| {name} | {rate:,} | {f'{rate / alone:.1f}' if alone else '-'} | {peaks} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seconds", type=float, default=300, help="no part begins after this time")
    parser.add_argument("--small", action="store_true", help="a tiny model, few rows")
    args = parser.parse_args(argv)
    started = time.perf_counter()
    rows, tokens, large = (24, 8, 12) if args.small else (512, 128, 256)
    source = ModelSource("tokenizer", str(args.tokenizer)) if args.tokenizer else find_model("smoke")
    tokenizer = load_tokenizer(source)
    tokenizer.chat_template = tokenizer.chat_template or chat_template("llama-3.1")
    config = llama_8b()
    if args.small:
        sizes = {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        config = type(config)(
            **config.to_dict() | sizes | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
        )
    model = packed_model(config, torch.float16 if ON_GPU else torch.float32, "cuda" if ON_GPU else "cpu")
    generator = torch.Generator().manual_seed(1)
    lengths = (125 + 12 * torch.randn(rows, generator=generator)).int().clamp(90, 160).tolist()
    prompts = [torch.randint(0, config.vocab_size, (n,), generator=generator).tolist() for n in lengths]
    results: dict = {
        "device": torch.cuda.get_device_name() if ON_GPU else "CPU",
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "model_gib": round(torch.cuda.memory_allocated() / GIB, 2) if ON_GPU else None,
        "new_tokens": tokens,
        "parts": {},
    }
    print(f"{time.perf_counter() - started:6.1f} s made: {json.dumps(results)}", flush=True)

    def part(name: str, work) -> None:
        if time.perf_counter() - started > args.seconds:
            return
        try:
            results["parts"][name] = work()
        except (*FAILURES, UserError) as error:
            results["parts"][name] = {"failed": traceback.format_exc(limit=-6)}
            forget(error)
        print(f"{time.perf_counter() - started:6.1f} s {name}: {json.dumps(results['parts'][name])}", flush=True)
        if args.output:
            args.output.write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")

    part("generate, one at a time", lambda: batches(model, prompts, 1, tokens))
    with like_a_t4():
        part("ours, like a T4", lambda: ours(model, prompts, tokens))
    part("ours", lambda: ours(model, prompts, tokens))
    part("generate, 64 rows", lambda: batches(model, prompts, large // 4, tokens))
    with like_a_t4():
        adapted = with_adapter(model)
        part("ours with an adapter, like a T4", lambda: ours(adapted, prompts[: rows // 2], tokens))
        part("evaluator, like a T4", lambda: evaluator(adapted, tokenizer, rows // 2, tokens))
    part("generate with an adapter, one at a time", lambda: batches(adapted, prompts, 1, tokens))
    model = adapted.unload()
    part("generate, 256 rows", lambda: batches(model, prompts, large, tokens))
    print(table(results))
    return int(any("failed" in found for found in results["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
