from dataclasses import replace

import pytest

from bnft.cpu_speed import product_rate
from bnft.memory_plan import Method, ModelFacts
from bnft.speed_plan import Speeds, Work, estimate_speeds, operations, seconds_of

LLAMA_8B = ModelFacts(32, 4096, 14336, 32, 8, 128, 128256, tied=False)
GEMMA_270M = ModelFacts(18, 640, 2048, 4, 1, 256, 262144, tied=True)
QLORA = Method(checkpointing="unsloth", fused=True)
SESSION = Work(
    steps=300,
    tokens=4800 * 303,
    passes=300,
    reply_share=0.6,
    again=1.0,
    read=3 * 3821 * 303,
    tested=0,
    replies=0,
    prompts=0,
    reply_batch=16,
    reply_tokens=512,
)


@pytest.mark.parametrize(
    ("again", "tokens"),
    [(1.0, 16_400), (0.0, 24_600)],  # limits of an H200 at 790 TFLOP/s with all 8.03 billion parameters
)
def test_operations_give_the_known_limits(again, tokens):
    training, _ = operations(LLAMA_8B, reply_share=1.0, again=again)
    assert 790e12 / training == pytest.approx(tokens, rel=0.12)  # here the head's work is counted apart


@pytest.mark.parametrize(
    ("gpu", "again", "work", "hours"),
    [
        (("NVIDIA H200", (9, 0)), 0.0, replace(SESSION, read=0), 4800 * 303 / 13_594 / 3600),  # measured, packed
        (("NVIDIA H200", (9, 0)), 0.0, replace(SESSION, tokens=137_640, passes=12, read=0), 137_640 / 15_400 / 3600),
        (("Tesla T4", (7, 5)), 1.0, SESSION, 2 + 35 / 60),  # seen: 2 h 35 min, padded two rows at a time
        (("Unheard of", (7, 0)), 1.0, SESSION, 2 + 35 / 60),
    ],
)
def test_estimated_hours(gpu, again, work, hours):
    work = replace(work, again=again)
    speeds = estimate_speeds(LLAMA_8B, QLORA, work, gpu, processes=1, cpu_rate=lambda: pytest.fail("no CPU's"))
    assert seconds_of(work, speeds)["training"] / 3600 == pytest.approx(hours, rel=0.1 if gpu[1] >= (8, 0) else 0.35)
    assert "estimated" in speeds.source


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [(256, 6.5), (176, 11.5)],  # measured on an H200: 512 prompts of 125 tokens, 128 new ones; the second like a T4
)
def test_estimated_replies_of_a_gpu(rows, seconds):
    work = replace(SESSION, replies=512, prompts=512 * 125, reply_batch=rows, reply_tokens=128, recorded=True)
    speeds = estimate_speeds(LLAMA_8B, QLORA, work, ("NVIDIA H200", (9, 0)), 1, lambda: pytest.fail("no CPU's"))
    assert seconds_of(work, speeds)["evaluation"] / 2 == pytest.approx(seconds, rel=0.3)


def test_the_estimate_for_a_cpu():
    """The laptop recipe on two cores of an AMD EPYC at 115 GFLOP/s: 124.6 tokens a second in ten steps, 236 read, and
    127 s of evaluation."""
    work = Work(72, 72 * 4 * 94, 72, 0.5, 0, 0, 104 * 94, 16, 750, 16, 80)
    method = Method(element=4, four_bit=False, checkpointing="none", chunk=64)
    speeds = estimate_speeds(GEMMA_270M, method, work, None, processes=1, cpu_rate=lambda: 115e9)
    assert speeds.training == pytest.approx(124.6, rel=0.1)
    assert speeds.reading == pytest.approx(236, rel=0.1)
    assert seconds_of(work, speeds)["evaluation"] == pytest.approx(127, rel=0.1)


def test_the_rate_of_products_is_that_of_this_machine():
    assert 1e8 < product_rate(256, 512, 1024) < 1e14


def test_processes_share_the_training_and_not_the_evaluation():
    work = Work(10, 96_000, 10, 0.5, 1, 1000, 1600, 20, 400, 16, 100)
    one = Speeds(100.0, 200.0, 0.1, "measured")
    assert seconds_of(work, one) == {"training": 960 + 5, "evaluation": 2 * (10 + 2 * 100 * 0.1)}
    two = seconds_of(work, one.with_processes(2), processes=2)
    assert two["training"] == pytest.approx(960 / 1.92 + 2.5)
    assert two["evaluation"] == seconds_of(work, one)["evaluation"]
