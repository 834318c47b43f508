import dataclasses
import math

import pytest

from bnft.config import resolve
from bnft.errors import UserError
from bnft.fitting import fit_passes, step_tokens
from bnft.memory_plan import GIB, Method, ModelFacts
from bnft.placement import Placement
from bnft.plan import Gpu
from bnft.planning import known_speeds, make_plan, plan_warnings, remember_speeds
from bnft.speed_plan import Speeds

ON_CPU = Placement("single", 1, (), "no GPU")
LLAMA_8B = ModelFacts(32, 4096, 14336, 32, 8, 128, 128256, tied=False)


@pytest.fixture
def smoke(tiny, monkeypatch, tmp_path):
    """The recipe's settings with the tiny model's folder, and a cache without speeds."""
    monkeypatch.setenv("BNFT_CACHE", str(tmp_path))
    return resolve("smoke", {"model.name": tiny.base})[0]


@pytest.fixture
def splits(conversations):
    return {"train": conversations, "validation": conversations[:3], "test": conversations[3:6]}


def test_a_plan_counts_what_the_trainer_will_do(smoke, splits):
    plan = make_plan(smoke, ON_CPU, splits, [])
    assert plan.steps == 4
    assert plan.passes == 4 * 2  # 2 x 2 rows a step; on a CPU the settings' passes
    assert plan.pass_tokens is None
    assert plan.longest <= 512
    assert plan.tokens == sum(step_tokens(smoke, plan_lengths(smoke, splits), 4))
    assert plan.peaks == ()
    assert plan.host > GIB / 2
    assert plan_warnings(plan, smoke, "not/there/yet") == []


def plan_lengths(config, splits):
    from bnft.models import find_model, load_tokenizer
    from bnft.prompts import encode, with_system

    tokenizer = load_tokenizer(find_model(config.model.name))
    prompt = config.data.system_prompt
    return [len(encode(tokenizer, with_system(c.messages, prompt), 512).input_ids) for c in splits["train"]]


def test_a_gpu_takes_the_step_in_one_pass_and_a_small_one_in_several(smoke, splits):
    placement = Placement("single", 1, (Gpu("Tesla T4", 14.74, (7, 5)),), "one GPU")
    large = make_plan(smoke, placement, splits, [14 * GIB])
    assert large.passes == 4
    assert len(large.peaks) == 1
    needed = GIB // 2 + large.peaks[0]
    small = make_plan(smoke, placement, splits, [math.ceil(needed / 0.97) - 100_000])
    assert small.passes > 4
    assert small.peaks[0] < large.peaks[0]
    with pytest.raises(UserError, match="cannot be trained here"):
        make_plan(smoke, placement, splits, [GIB // 2])


@pytest.mark.parametrize(("free", "checkpointing"), [(139, "none"), (14.74, "torch"), (None, "torch")])
def test_nothing_is_computed_again_where_a_gpu_holds_all_of_it(free, checkpointing):
    """Rows of 16 x 303 tokens of Llama 3.1 8B; on a CPU it stays as set."""
    config = resolve("llama31-8b-qlora", {"train.gradient_checkpointing": "torch"})[0]
    gpus = (Gpu("NVIDIA H200", free, (9, 0)),) if free else ()
    placement, room = Placement("single", 1, gpus, "as set"), [int(free * GIB)] if free else []
    fit = fit_passes(config, LLAMA_8B, Method(), placement, [303] * 64, 4, room)
    assert fit.method.checkpointing == checkpointing
    assert fit.pass_tokens == (16 * 303 if free else None)
    assert [sum(map(sum, step)) for step in fit.parts] == [16 * 303] * 4
    as_set = fit_passes(config.replace("train.fit_batch", False), LLAMA_8B, Method(), placement, [303] * 64, 4, room)
    assert (as_set.method.checkpointing, as_set.pass_tokens) == ("torch", None)


@pytest.mark.parametrize(
    ("gpu", "passes", "again"),
    [
        (Gpu("Tesla T4", 14.74, (7, 5)), range(3, 6), (0.0, 0.15)),  # computing again takes longer than launching
        (Gpu("NVIDIA H200", 14.74, (9, 0)), range(1, 2), (0.6, 0.8)),  # launching takes longer
    ],
)
def test_passes_are_of_the_size_that_is_the_quickest_here(gpu, passes, again):
    """Steps of 16 x 303 tokens of Llama 3.1 8B in the same 14.74 GiB."""
    config = resolve("llama31-8b-qlora", {})[0]
    method = Method(checkpointing="unsloth", fused=True, attention="efficient")
    placement = Placement("single", 1, (gpu,), "as set")
    fit = fit_passes(config, LLAMA_8B, method, placement, [303] * 64, 4, [int(14.74 * GIB)])
    assert len(fit.shapes) / 4 in passes
    assert again[0] <= fit.again <= again[1]
    assert fit.peaks[0] <= 0.9 * 14.74 * GIB


def test_unequal_gpus_are_planned_by_the_smaller_one():
    config = resolve("llama31-8b-qlora", {})[0]
    gpus = (Gpu("NVIDIA A100", 79.0, (8, 0)), Gpu("Tesla T4", 14.74, (7, 5)))
    free = [int(gpu.gib * GIB) for gpu in gpus]
    fit = fit_passes(config, LLAMA_8B, Method(), Placement("ddp", 2, gpus, "as set"), [303] * 64, 4, free)
    assert fit.room.size < free[1]
    assert max(fit.peaks) < free[1]


def test_two_processes_share_the_rows(smoke, splits):
    gpus = (Gpu("Tesla T4", 14.74, (7, 5)),) * 2
    plan = make_plan(smoke, Placement("ddp", 2, gpus, "as set"), splits, [14 * GIB] * 2)
    assert plan.passes == 4 * 2
    assert plan.tokens == make_plan(smoke, ON_CPU, splits, []).tokens


def test_measured_speeds_are_taken_where_nothing_that_decides_them_changed(smoke, splits, tmp_path):
    remember_speeds(smoke, ON_CPU, Speeds(100.0, 200.0, 0.5, "measured", host=3 * GIB))
    plan = make_plan(smoke, ON_CPU, splits, [])
    assert plan.seconds["training"] >= plan.tokens / 100
    assert plan.host == 3 * GIB
    assert known_speeds(smoke.replace("train.max_steps", 100), ON_CPU)
    assert known_speeds(smoke.replace("lora.r", 8), ON_CPU) is None
    two = known_speeds(smoke, dataclasses.replace(ON_CPU, way="ddp", processes=2))
    assert two.training == pytest.approx(192)
    for file in (tmp_path / "speeds").iterdir():
        file.write_text("{")
    assert known_speeds(smoke, ON_CPU) is None


@pytest.mark.slow
def test_ten_steps_are_measured(smoke, splits):
    from bnft.calibration import calibrate

    calibrate(smoke, splits, ON_CPU)
    plan = make_plan(smoke, ON_CPU, splits, [])
    assert "measured in 10 steps" in plan.speed
    assert 0 < plan.seconds["training"] < 60
    assert plan.host > GIB / 4
