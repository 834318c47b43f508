"""How fast one reader's reply comes: plain `generate` against the chat's engine, in turns, on the same prompts.

The engine runs twice: with its quick copies of the weights, and without, where only streaming itself differs.

    python benchmarks/streaming.py [--model embedded] [--tokens 96] [--rounds 3] [--load-in-4bit] [--dtype auto]
                                   [--busy]

Greedy and without end tokens, so that both write the same number of tokens; the texts must be the same but for ties.
With --busy it counts the process' CPU seconds on one thread, for a machine that does other work as well.
The table goes to benchmarks/streaming.md too (--no-write leaves that file as it is).
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.questions import QUESTIONS
from bnft.models import find_model, load_model, load_tokenizer
from bnft.prompts import encode_prompt, with_system
from bnft.settings import DataConfig, ModelConfig

GENERATE, STREAMING, QUICK = "`generate`", "`Engine.stream`, no quick copies", "`Engine.stream`"
TIE = 1e-3  # two scores nearer than this are a tie in float32
RESULTS = Path(__file__).with_suffix(".md")


_clock = time.perf_counter


@dataclass(frozen=True)
class Timed:
    text: str
    ids: list[int]
    seconds: float
    first: float


class _Clock:
    """A streamer of `generate` that only looks at the time of the first token."""

    def __init__(self):
        self.calls: list[float] = []

    def put(self, value):
        self.calls.append(_clock())  # the prompt, then every token

    def end(self):
        pass


def plain(model, tokenizer, prompt: list[int], tokens: int) -> Timed:
    import torch
    from transformers import GenerationConfig

    ids = torch.tensor([prompt], device=model.device)
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=tokens, eos_token_id=None, pad_token_id=tokenizer.pad_token_id
    )
    clock, started = _Clock(), _clock()
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings, streamer=clock
        )
    new = output[0, len(prompt) :].tolist()
    seconds = _clock() - started
    text = tokenizer.decode(new, skip_special_tokens=True).strip()
    return Timed(text, new, seconds, clock.calls[1] - started)


def engine_run(engine, prompt: list[int], tokens: int) -> Timed:
    from bnft.streaming import Sampling

    started, first, text = _clock(), 0.0, ""
    for piece in engine.stream(prompt, Sampling(tokens, 0.0, 1.0, 1.0)):
        first, text = first or _clock() - started, piece.text
    return Timed(text, [], _clock() - started, first)


def same_text(model, tokenizer, prompt: list[int], expected: Timed, text: str) -> str:
    """ "equal", or where the two part and how far apart the best two scores are there."""
    import torch

    from bnft.text import drop_torn_tail

    if drop_torn_tail(expected.text) == drop_torn_tail(text):
        return "equal"
    for count in range(1, len(expected.ids) + 1):
        if not text.startswith(
            drop_torn_tail(tokenizer.decode(expected.ids[:count], skip_special_tokens=True).strip())
        ):
            ids = torch.tensor([[*prompt, *expected.ids[: count - 1]]], device=model.device)
            with torch.inference_mode():
                best, second = model(ids, logits_to_keep=1).logits[0, -1].float().topk(2).values.tolist()
            kind = "a tie" if best - second <= TIE else "DIFFERENT"
            return f"{kind} at token {count}: the best two scores are {best - second:.5f} apart"
    return "DIFFERENT"


def machine() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {torch.cuda.device_count()} visible"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def report(name: str, tokens: int, runs: dict[str, list[Timed]], verdicts: list[str], load: float) -> str:
    import torch
    import transformers

    def row(kind: str) -> str:
        rates = [tokens / run.seconds for run in runs[kind]]
        first = 1000 * statistics.median(run.first for run in runs[kind])
        return f"| {kind} | {statistics.median(rates):.1f} | {max(rates):.1f} | {first:.0f} |"

    def against_generate(kind: str, value) -> float:
        return statistics.median(value(g, e) for g, e in zip(runs[GENERATE], runs[kind], strict=True))

    busy = _clock is time.process_time
    faster = against_generate(QUICK, lambda g, e: g.seconds / e.seconds)
    added = against_generate(STREAMING, lambda g, e: 100 * (e.seconds / g.seconds - 1))
    later = {kind: against_generate(kind, lambda g, e: 1000 * (e.first - g.first)) for kind in (STREAMING, QUICK)}
    lines = [
        "# One reader: plain `generate` against the streaming engine",
        "",
        f"`python benchmarks/streaming.py --model {name} --tokens {tokens}{' --busy' * busy}` on {date.today()}:",
        f"{machine()};",
        f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()};",
        f"{len(runs[QUICK])} replies of {tokens} tokens each way, in turns; load of the machine {load:.1f} before; "
        + ("seconds are CPU seconds." if busy else "seconds are the clock's."),
        "",
        "| | tokens/s, median | best | first token, ms, median |",
        "| --- | --- | --- | --- |",
        *map(row, runs),
        "",
        f"Engine against the `generate` run before it: {faster:.2f} times the tokens a second (median).",
        f"Streaming alone, without quick copies: {added:+.1f} % time (median); first token {later[STREAMING]:+.0f} ms, "
        f"with quick copies {later[QUICK]:+.0f} ms.",
        f"Greedy texts: {'; '.join(verdicts)}.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load-in-4bit", action="store_true")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--busy", action="store_true", help="count CPU seconds on one thread")
    parser.add_argument("--no-write", action="store_true")
    args = parser.parse_args(argv)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    import torch

    from bnft.streaming import Engine, causal_part

    if args.busy:
        global _clock
        _clock = time.process_time
        torch.set_num_threads(1)
    source = find_model(args.model)
    tokenizer = load_tokenizer(source)
    model = load_model(source, ModelConfig(dtype=args.dtype, load_in_4bit=args.load_in_4bit))
    causal_part(model).generation_config.eos_token_id = None  # `generate` falls back to it
    started = _clock()
    engines = {QUICK: Engine(model, tokenizer, end_ids=())}
    print(f"engine made in {_clock() - started:.1f} s")
    engines[STREAMING] = Engine(model, tokenizer, end_ids=(), quick=False)
    messages = [with_system([{"role": "user", "content": q}], DataConfig().system_prompt) for q in QUESTIONS]
    prompts = [encode_prompt(tokenizer, m) for m in messages]
    ways = {
        GENERATE: lambda prompt, tokens: plain(model, tokenizer, prompt, tokens),
        STREAMING: lambda prompt, tokens: engine_run(engines[STREAMING], prompt, tokens),
        QUICK: lambda prompt, tokens: engine_run(engines[QUICK], prompt, tokens),
    }
    for way in ways.values():
        way(prompts[0], 4)
    runs: dict[str, list[Timed]] = {kind: [] for kind in ways}
    verdicts = []
    for number in range(args.rounds):
        for prompt in prompts:
            for kind, way in ways.items():
                runs[kind].append(way(prompt, args.tokens))
            print(*(f"{args.tokens / made[-1].seconds:6.1f}" for made in runs.values()), flush=True)
            if number == 0:
                verdicts.append(same_text(model, tokenizer, prompt, runs[GENERATE][-1], runs[QUICK][-1].text))
    text = report(args.model, args.tokens, runs, verdicts, load)
    print(text)
    if not args.no_write:
        RESULTS.write_text(text, encoding="utf-8")
    return int(any("DIFFERENT" in verdict for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
