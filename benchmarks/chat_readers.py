"""Readers of an engine and of plain `generate`, with a clock in hand; benchmarks/chat_gpu.py puts them together."""

from __future__ import annotations

import threading
import time

import torch

from bnft.streaming import Sampling


class Clock:
    """A streamer of `generate` that looks at the time: the prompt, then every token."""

    def __init__(self):
        self.calls: list[float] = []

    def put(self, value):
        self.calls.append(time.perf_counter())

    def end(self):
        pass


class NotedTable:
    """The engine's token table, remembering what it was asked for."""

    def __init__(self, table):
        self.table, self.asked = table, []

    def __getitem__(self, token):
        self.asked.append(token)
        return self.table[token]

    def __getattr__(self, name):
        return getattr(self.table, name)


def plain(model, prompt, tokens) -> dict:
    from transformers import GenerationConfig

    settings = GenerationConfig(do_sample=False, max_new_tokens=tokens, eos_token_id=None, pad_token_id=0)
    ids = torch.tensor([prompt], device="cuda")
    clock = Clock()
    torch.cuda.synchronize()
    started = time.perf_counter()
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings, streamer=clock
        )
    new = output[0, len(prompt) :].tolist()
    return {"ids": new, "seconds": time.perf_counter() - started, "first": clock.calls[1] - started}


def streamed(engine, prompt, sampling, stop=None) -> dict:
    started, first, tokens = time.perf_counter(), 0.0, 0
    for piece in engine.stream(prompt, sampling, stop):
        first, tokens = first or time.perf_counter() - started, piece.tokens
    return {"seconds": time.perf_counter() - started, "first": first, "tokens": tokens}


@torch.inference_mode()
def judged(model, prompt, ids) -> dict:
    """How often each token is the best one for a single pass over the whole text, and how far the others fall short."""
    whole = torch.tensor([[*prompt, *ids]], device="cuda")
    scores = model(whole, logits_to_keep=len(ids) + 1).logits[0, :-1].float()
    chosen = scores.gather(1, torch.tensor(ids, device="cuda")[:, None])[:, 0]
    short = scores.amax(-1) - chosen
    return {"best": int((short == 0).sum()), "of": len(ids), "furthest": round(float(short.max()), 4)}


@torch.inference_mode()
def step_times(engine) -> dict:
    """Milliseconds of one recorded step, by rows and cache length; nobody reads meanwhile."""
    rows, times = engine._rows, {}
    for kind, count, length in sorted(rows._graphs):
        if kind != "_step":
            continue
        rows.step(count, length).tokens()
        started = time.perf_counter()
        for _ in range(20):
            flight = rows.step(count, length)
        flight.tokens()
        times[f"{count}x{length}"] = round(50 * (time.perf_counter() - started), 2)
    return times


@torch.inference_mode()
def prompt_times(engine, prompts) -> dict:
    rows, times = engine._rows, {}
    for length in (len(prompts[0]), 256):
        prompt = (prompts[0] * 40)[:length]
        for _ in range(3):
            torch.cuda.synchronize()
            started = time.perf_counter()
            rows.open(prompt, Sampling(8, 0.0, 1.0, 1.0), False)
            opened = time.perf_counter() - started
            rows.read(prompt, 0)
            torch.cuda.synchronize()
        times[length] = {
            "open_ms": round(1000 * opened, 1),
            "read_ms": round(1000 * (time.perf_counter() - started - opened), 1),
        }
    return times


def stop_time(engine, prompts) -> dict:
    """From a set stop event until the row is free."""
    waits = []
    for number in range(5):
        stop = threading.Event()
        stream = engine.stream(prompts[number % 4], Sampling(400, 0.0, 1.0, 1.0), stop)
        for _ in range(20 + number):
            next(stream)
        started = time.perf_counter()
        stop.set()
        while engine._written:
            time.sleep(0.0002)
        waits.append(1000 * (time.perf_counter() - started))
        list(stream)
    return {"ms_until_the_row_is_free": [round(wait, 1) for wait in waits]}
