"""Which recipe and placement a machine gets."""

import pytest

from bnft.config import resolve
from bnft.errors import UserError
from bnft.memory_plan import GIB, Method, ModelFacts, memories
from bnft.plan import Gpu, RunPlan, check_fits, check_tracker, choose_recipe, disk_bytes, host_bytes, optimizer_steps
from bnft.settings import RunConfig

T4 = Gpu("Tesla T4", 14.74, (7, 5))
SMALL = Gpu("GeForce GTX 1650", 3.9, (7, 5))


@pytest.mark.parametrize(
    ("gpus", "recipe", "reason"),
    [
        ([], "laptop", "no CUDA GPU"),
        ([SMALL], "laptop", "3.9 GiB"),
        ([T4], "llama31-8b-qlora", "Tesla T4 with 14.7 GiB"),
        ([SMALL, T4], "llama31-8b-qlora", "Tesla T4"),
    ],
)
def test_the_recipe_follows_the_machine(gpus, recipe, reason):
    name, why = choose_recipe(gpus)
    assert name == recipe
    assert reason in why


def test_a_tracker_that_is_not_installed_is_named():
    config = RunConfig().replace("train.report_to", "trackio")
    with pytest.raises(UserError, match="pip install trackio"):
        check_tracker(config, installed=lambda name: False)
    check_tracker(config, installed=lambda name: True)


@pytest.mark.parametrize(
    ("conversations", "epochs", "max_steps", "steps"),
    [
        (30_568, 0.5, None, 956),  # the seed: about 950 steps of 16 rows for half an epoch
        (16, 1, None, 1),
        (17, 1, None, 2),
        (30_568, 0.5, 7, 7),
    ],
)
def test_optimizer_steps(conversations, epochs, max_steps, steps):
    config = resolve("llama31-8b-qlora", {})[0].replace("train.epochs", epochs).replace("train.max_steps", max_steps)
    assert optimizer_steps(config, conversations) == steps


LLAMA_8B = ModelFacts(32, 4096, 14336, 32, 8, 128, 128256, tied=False)
FREE_T4 = int(14.74 * GIB)


@pytest.mark.parametrize(
    ("method", "way", "gpus", "longest", "hint"),
    [
        (Method(four_bit=False), "single", 1, 2020, "--model.load_in_4bit true"),
        (Method(four_bit=False), "single", 2, 2020, "--model.load_in_4bit true or --parallel layers"),
        (Method(checkpointing="none"), "single", 1, 2020, "--train.gradient_checkpointing torch or --model.max_seq_"),
        (Method(), "single", 1, 32768, "--model.max_seq_length 1"),  # some 14,000 tokens
        (Method(four_bit=False, checkpointing="none"), "single", 1, 8192, "a smaller --model"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_flag_that_would_make_it_fit(method, way, gpus, longest, hint):
    with pytest.raises(UserError, match=f"conversations of {longest} tokens") as refused:
        check_fits(RunConfig(), LLAMA_8B, method, way, [FREE_T4] * gpus, longest)
    assert hint in refused.value.hint
    assert "of 14.7 GiB" in refused.value.message


def test_what_fits_and_what_has_no_gpu_is_not_refused():
    check_fits(RunConfig(), LLAMA_8B, Method(), "single", [FREE_T4], 2020)
    check_fits(RunConfig(), LLAMA_8B, Method(four_bit=False), "layers", [FREE_T4] * 2, 2020)
    check_fits(RunConfig(), LLAMA_8B, Method(four_bit=False), "single", [], 2020)


def test_disk_of_a_run_and_of_a_merge():
    disk = disk_bytes(LLAMA_8B, Method(), checkpoints=3, tokenizer=17_000_000, data=0)
    assert disk["merge"] / GIB == pytest.approx(14.97, abs=0.05)  # 16-bit Llama 3.1 8B on the Hub: 16.07 GB
    adapter = 4 * 41_943_040
    assert disk["run"] == pytest.approx(4 * (adapter + 17e6) + 3 * adapter / 2, rel=0.02)  # 8-bit moments: half of it


def test_unsloths_checkpointing_costs_memory_of_the_host():
    away = Method(checkpointing="unsloth", fused=True)
    more = host_bytes(LLAMA_8B, away, 0, True, 10_000, 0) - host_bytes(LLAMA_8B, Method(), 0, True, 10_000, 0)
    assert more == 10_000 * 32 * 4096 * 2


def test_files_that_are_read_are_counted_with_what_is_in_memory_and_not_with_what_is_needed():
    """Measured on an H200: 16.45 GiB with a checkpoint of 14.96 in 16 bit."""
    reading = plan(host=6 * GIB, mapped=int(14.96 * GIB))
    assert reading.record()["host_gib"] == pytest.approx(16.45, rel=0.05)
    assert reading.warnings(RunConfig(), 10**12, free_host=12 * GIB) == []
    assert plan(mapped=0).record()["host_gib"] == 6


def plan(**changes):
    fields = {
        "steps": 956,
        "longest": 2020,
        "tokens": 4_600_000,
        "passes": 956,
        "pass_tokens": 12_000,
        "checkpointing": "unsloth",
        "room": None,
        "again": 1.0,
        "memory": tuple(memories(LLAMA_8B, Method(), "single", 1)),
        "peaks": (9 * GIB,),
        "host": 6 * GIB,
        "mapped": 5 * GIB,
        "disk": {"run": GIB, "merge": 15 * GIB},
        "seconds": {"training": 7 * 3600.0, "evaluation": 2 * 3600.0},
        "speed": "estimated",
    }
    return RunPlan(**fields | changes)


@pytest.mark.parametrize(("planned", "trained"), [("none", "none"), ("unsloth", "torch"), ("torch", "torch")])
def test_the_training_follows_the_plan_where_that_leaves_something_out(planned, trained):
    """And never turns Unsloth's checkpointing, which the plan tells PEFT's by, into another setting."""
    config = RunConfig().replace("train.gradient_checkpointing", "torch")
    assert plan(checkpointing=planned).applied_to(config).train.gradient_checkpointing == trained


def test_the_plan_can_be_read():
    text = "\n".join(f"{name} {line}" for name, line in plan().lines())
    for part in (
        "4,600,000",
        "at most 12,000 tokens",
        "GPU 0 9.0 GiB at most: weights 5.31",
        "7.0 h",
        "evaluation 2.0 h",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("changes", "minutes", "warning"),
    [
        ({}, None, ""),
        (
            {"seconds": {"training": 11 * 3600.0, "evaluation": 2 * 3600.0}},
            None,
            "13 hours are more than a session of 12",
        ),
        ({}, 60, "stopped after --max-minutes 60"),
        ({"seconds": {"training": 1800.0, "evaluation": 60.0}}, 60, ""),
        ({"disk": {"run": 30 * GIB, "merge": 0}}, None, "the run writes 30.0 GiB, and 20.0 GiB are free"),
        ({"disk": {"run": 6 * GIB, "merge": 15 * GIB}}, None, "publish.py --low-disk"),
        ({"host": 13 * GIB}, None, "takes 13.0 GiB of memory, and 12.7 GiB are free"),  # Colab
    ],
)
def test_what_is_likely_to_go_wrong_is_said(changes, minutes, warning):
    config = RunConfig().replace("train.max_minutes", minutes)
    found = plan(**changes).warnings(config, free_disk=20 * GIB, free_host=int(12.7 * GIB))
    assert len(found) == bool(warning)
    assert warning in "".join(found)
