"""The chat's engine on a GPU: one reader and sixteen against plain `generate`, on an 8B model with random weights.

    python benchmarks/chat_gpu.py --folder /tmp/llama8b [--tokenizer FOLDER] [--tokens 128] [--rounds 2]
                                  [--emulate t4] [--packed] [--16-bit] [--dtype float32] [--adapter] [--output FILE]

Makes the model (Llama 3.1 8B's shape, 16 GB on disk) where the folder is missing. Random weights say nothing about
quality; speed, memory and equality can be measured on them. Every part prints its figures as one line of JSON, and a
part that fails does not lose the others. --tokenizer is a folder with Llama 3.1's tokenizer.json; without it the tiny
one of this program is taken. --emulate t4 acts like a Tesla T4: float16, 14.74 GiB, no flash kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import threading
import time
import traceback
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import transformers

from benchmarks.chat_readers import NotedTable, judged, plain, prompt_times, step_times, stop_time, streamed
from benchmarks.questions import QUESTIONS
from benchmarks.random_8b import make_model, open_model, with_adapter
from bnft.batching import FAILURES, BatchEngine, room_for
from bnft.prompts import encode_prompt, with_system
from bnft.settings import DataConfig
from bnft.streaming import Sampling, causal_part

CONTEXT = 4096
READERS = 16
T4_BYTES = int(14.74 * 2**30)
GIB = 2**30


def one_reader(model, engine, prompts, args) -> dict:
    greedy = Sampling(args.tokens, 0.0, 1.0, 1.0)
    plain(model, prompts[0], 4)
    streamed(engine, prompts[0], greedy)
    theirs, ours, equal, judgements = [], [], [], []
    table = engine._table
    for _ in range(args.rounds):
        for prompt in prompts[:3]:
            theirs.append(plain(model, prompt, args.tokens))
            engine._table = NotedTable(table)
            ours.append(streamed(engine, prompt, greedy))
            ids = engine._table.asked
            same = [a == b for a, b in zip(ids, theirs[-1]["ids"], strict=False)]
            equal.append(same.index(False) if False in same else len(same))
            if len(judgements) < 3:
                judgements.append(
                    {"engine": judged(model, prompt, ids), "generate": judged(model, prompt, theirs[-1]["ids"])}
                )
    engine._table = table
    for run in theirs:
        run["tokens"] = args.tokens
    rate = {
        name: statistics.median(run["tokens"] / run["seconds"] for run in runs)
        for name, runs in (("generate", theirs), ("engine", ours))
    }
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(theirs, ours, strict=True)]
    return {
        "tokens_per_second": {name: round(value, 1) for name, value in rate.items()},
        "times_generate": [round(statistics.median(ratios), 2), round(min(ratios), 2)],
        "first_token_ms": {
            "generate": round(1000 * statistics.median(run["first"] for run in theirs), 1),
            "engine": round(1000 * statistics.median(run["first"] for run in ours), 1),
        },
        "equal_tokens_before_the_first_difference": equal,
        "judged_by_one_pass": judgements,
    }


def many_readers(engine, prompts, args, single: float, generate: float) -> dict:
    """All come at the same moment; half of them greedy, half sampled."""
    settings = [
        Sampling(args.tokens, 0.0 if i % 2 else 0.7 + i / 40, 0.9, 1.0 + (i % 3) / 20, seed=i) for i in range(READERS)
    ]
    results = []
    for _ in range(args.rounds + 1):
        runs: list[dict] = [{}] * READERS

        def read(i: int, runs=runs) -> None:
            runs[i] = streamed(engine, prompts[i % len(prompts)], settings[i])

        threads = [threading.Thread(target=read, args=(i,)) for i in range(READERS)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started
        firsts = sorted(run["first"] for run in runs)
        results.append((sum(run["tokens"] for run in runs) / seconds, firsts))
    rate, firsts = sorted(results[1:])[len(results[1:]) // 2]
    return {
        "seats": engine.seats,
        "tokens_per_second": round(rate, 1),
        "times_one_reader_of_the_engine": round(rate / single, 2),
        "times_generate": round(rate / generate, 2),
        "first_token_ms": {"first": round(1000 * firsts[0]), "last": round(1000 * firsts[-1])},
    }


def full_card(model, engine, prompts) -> dict:
    """The card is filled while a reply is being written; then a long prompt comes, and then a step that cannot run."""
    answer: dict = {}

    def read() -> None:
        try:
            answer.update(streamed(engine, prompts[0], Sampling(700, 0.0, 1.0, 1.0)))
        except RuntimeError as error:
            answer["tokens"] = f"{type(error).__name__} in an unrecorded step"

    reader = threading.Thread(target=read)
    reader.start()
    while not engine._written:
        time.sleep(0.001)
    hog = []
    for size in (GIB, 2**26, 2**22):
        try:
            while True:
                hog.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            continue
    long = (prompts[0] * 40)[:3000]
    told = {}
    for name, work in (
        ("engine", lambda: streamed(engine, long, Sampling(8, 0.0, 1.0, 1.0))["tokens"]),
        ("generate", lambda: len(plain(model, long, 8)["ids"])),
    ):
        try:
            told[name] = f"{work()} tokens"
        except torch.OutOfMemoryError as error:
            told[name] = str(error)[:60]
    graphs, engine._rows._graphs = engine._rows._graphs, {}  # unrecorded work needs memory
    try:
        told["unrecorded"] = streamed(engine, long, Sampling(8, 0.0, 1.0, 1.0))["tokens"]
    except torch.OutOfMemoryError as error:
        told["unrecorded"] = str(error)[:60]
    engine._rows._graphs = graphs
    hog.clear()
    torch.cuda.empty_cache()
    reader.join()
    after = streamed(engine, long, Sampling(8, 0.0, 1.0, 1.0))
    return {"told": told, "who_was_being_answered_got": answer.get("tokens"), "afterwards": after["tokens"]}


def measure(name: str, work, results: dict):
    """Runs one part and prints its figures; a failure is told and the next part goes on."""
    started = time.perf_counter()
    try:
        results[name] = work()
    except FAILURES:
        results[name] = {"failed": traceback.format_exc(limit=-4)}
    print(f"{time.perf_counter() - started:6.1f} s {name}: {json.dumps(results[name], ensure_ascii=False)}", flush=True)
    return results[name]


def measure_all(model, tokenizer, args, results: dict) -> None:
    memory = None
    if args.emulate:
        memory = T4_BYTES - torch.cuda.memory_reserved()
    seats, unpacked = room_for(causal_part(model), CONTEXT, memory)
    unpacked = unpacked and not args.packed
    allocated = torch.cuda.memory_allocated()
    engines = []

    def open_one() -> None:
        engines.append(BatchEngine(model, tokenizer, (), CONTEXT, seats, unpacked))

    measure("engine", lambda: open_one() or engines[0].note, results)
    results["memory_gib"] = {"model": round(allocated / GIB, 2)}
    results["memory_gib"]["with_engine"] = round(torch.cuda.memory_reserved() / GIB, 2)
    (engine,) = engines
    messages = [with_system([{"role": "user", "content": q}], DataConfig().system_prompt) for q in QUESTIONS]
    prompts = [encode_prompt(tokenizer, message) for message in messages]
    results["prompt_tokens"] = [len(prompt) for prompt in prompts]
    one = measure("one_reader", lambda: one_reader(model, engine, prompts, args), results)
    rates = one.get("tokens_per_second", {"engine": 1.0, "generate": 1.0})
    measure("many_readers", lambda: many_readers(engine, prompts, args, rates["engine"], rates["generate"]), results)
    measure("step_ms", lambda: step_times(engine), results)
    measure("prompt_ms", lambda: prompt_times(engine, prompts), results)
    measure("stop", lambda: stop_time(engine, prompts), results)
    results["memory_gib"]["peak"] = round(torch.cuda.max_memory_reserved() / GIB, 2)
    print(json.dumps(results["memory_gib"]))
    measure("full_card", lambda: full_card(model, engine, prompts), results)
    engine.close()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--emulate", choices=["t4"])
    parser.add_argument("--16-bit", dest="sixteen_bit", action="store_true")
    parser.add_argument("--packed", action="store_true", help="4-bit weights stay packed where there is room, too")
    parser.add_argument("--dtype", default="auto", help="float32: hardly any ties, so texts must be equal")
    parser.add_argument("--adapter", action="store_true", help="with a random LoRA adapter, r=16, on it")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    if not args.folder.exists():
        started = time.perf_counter()
        make_model(args.folder, args.tokenizer)
        print(f"model made in {time.perf_counter() - started:.0f} s", flush=True)
        torch.cuda.empty_cache()
    if args.emulate:
        torch.cuda.set_per_process_memory_fraction(T4_BYTES / torch.cuda.get_device_properties(0).total_memory)
        torch.backends.cuda.enable_flash_sdp(False)
    import bitsandbytes
    import peft

    started = time.perf_counter()
    model, tokenizer = open_model(args.folder, not args.sixteen_bit, "float16" if args.emulate else args.dtype)
    model.generation_config.eos_token_id = None  # `generate` falls back to it
    model = with_adapter(model) if args.adapter else model
    results: dict = {
        "device": torch.cuda.get_device_name() + (f" acting as {args.emulate}" if args.emulate else ""),
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft, bitsandbytes)}
        | {"python": platform.python_version()},
        "model": f"{'16 bit' if args.sixteen_bit else 'NF4'}, {model.dtype}{', adapter' if args.adapter else ''}",
        "new_tokens": args.tokens,
        "rounds": args.rounds,
        "load_s": round(time.perf_counter() - started, 1),
    }
    print(json.dumps(results), flush=True)
    try:
        measure_all(model, tokenizer, args, results)
    finally:
        if args.output:
            args.output.write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")
    return int(any("failed" in part for part in results.values() if isinstance(part, dict)))


if __name__ == "__main__":
    sys.exit(main())
