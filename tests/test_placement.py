"""Which placement a machine and a wish give, and what is said when they contradict each other."""

import pytest

from bnft.config import resolve
from bnft.errors import UserError
from bnft.placement import check_free_memory, choose_placement
from bnft.plan import Gpu
from bnft.settings import RunConfig
from bnft.world import World

T4 = Gpu("Tesla T4", 14.74, (7, 5))
SMALL = Gpu("GeForce GTX 1650", 3.9, (7, 5))
ALONE = World()


@pytest.fixture(autouse=True)
def _every_gpu_is_seen(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def wanting(way, **changes):
    config = RunConfig().replace("train.parallel", way)
    for name, value in changes.items():
        config = config.replace(f"train.{name}", value)
    return config


def place(way, gpus, world=ALONE, needed=8.0, training=True, **changes):
    found = choose_placement(wanting(way, **changes), gpus, world, lambda gpu: gpu.gib >= needed, training)
    return found.way, found.processes, len(found.gpus)


@pytest.mark.parametrize(
    ("way", "gpus", "needed", "expected"),
    [
        ("auto", [], 8, ("single", 1, 0)),
        ("single", [], 8, ("single", 1, 0)),
        ("auto", [T4], 8, ("single", 1, 1)),
        ("auto", [T4], 20, ("single", 1, 1)),  # whether it fits at all is the plan's to say
        ("auto", [T4, T4], 8, ("ddp", 2, 2)),
        ("auto", [T4] * 8, 8, ("ddp", 8, 8)),
        ("auto", [T4, T4], 20, ("layers", 1, 2)),
        ("auto", [T4, SMALL], 8, ("single", 1, 1)),
        ("auto", [SMALL, T4], 8, ("layers", 1, 2)),
        ("single", [T4, T4], 8, ("single", 1, 1)),
        ("layers", [T4, T4], 8, ("layers", 1, 2)),
        ("ddp", [T4] * 4, 8, ("ddp", 4, 4)),
        ("fsdp", [T4, T4], 8, ("fsdp", 2, 2)),
    ],
)
def test_a_wish_and_the_gpus_give_a_placement(way, gpus, needed, expected):
    assert place(way, gpus, needed=needed) == expected


def test_auto_starts_no_more_processes_than_a_step_has_rows():
    assert place("auto", [T4] * 8, batch_size=2, accumulation=2) == ("ddp", 4, 4)
    assert place("auto", [T4] * 8, batch_size=1, accumulation=1) == ("single", 1, 1)


@pytest.mark.parametrize(
    ("way", "world", "gpus", "needed", "expected"),
    [
        ("auto", World(1, 1, 2), [T4, T4], 8, ("ddp", 2, 2)),
        ("auto", World(1, 1, 2), [T4, T4], 20, ("fsdp", 2, 2)),
        ("ddp", World(0, 0, 2), [], 8, ("ddp", 2, 0)),  # two processes on a CPU, as in the tests
        ("auto", World(0, 0, 2), [], 8, ("ddp", 2, 0)),
        ("fsdp", World(5, 1, 8), [T4, T4, T4, T4], 8, ("fsdp", 8, 4)),
    ],
)
def test_a_given_world_is_joined(way, world, gpus, needed, expected):
    assert place(way, gpus, world, needed) == expected


@pytest.mark.parametrize(
    ("way", "gpus", "world", "changes", "parts"),
    [
        ("ddp", [], ALONE, {}, ["--parallel ddp needs at least two GPUs, 0 found"]),
        (
            "layers",
            [T4],
            ALONE,
            {},
            ["--parallel layers needs at least two GPUs, 1 found", "--parallel auto or single"],
        ),
        ("fsdp", [T4], ALONE, {}, ["--parallel fsdp needs at least two GPUs, 1 found"]),
        ("ddp", [T4] * 4, ALONE, {"batch_size": 3, "accumulation": 1}, ["4 processes cannot share 3 rows"]),
        ("ddp", [], World(0, 0, 20), {}, ["20 processes cannot share 16 rows", "at most 16"]),
        ("single", [], World(0, 0, 2), {}, ["--parallel single is one process, and 2 were started"]),
        ("layers", [T4, T4], World(0, 0, 2), {}, ["--parallel layers is one process, and 2 were started"]),
        ("ddp", [T4], World(1, 1, 2), {}, ["process 1 of this machine has no GPU: 1 found", "at most 1"]),
    ],
)
def test_contradictions_are_told(way, gpus, world, changes, parts):
    with pytest.raises(UserError) as told:
        place(way, gpus, world, **changes)
    for part in parts:
        assert part in str(told.value)


@pytest.mark.parametrize("visible", ["0", ""])
def test_a_hidden_gpu_is_told_with_the_variable_that_hides_it(monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpus = [T4] if visible else []
    with pytest.raises(UserError, match=f"{len(gpus)} found; CUDA_VISIBLE_DEVICES='{visible}'") as told:
        place("ddp", gpus)
    assert "Unset CUDA_VISIBLE_DEVICES, or name two GPUs in it" in str(told.value)


def test_evaluation_alone_shares_out_rows_or_else_layers():
    assert place("single", [T4], training=False) == ("single", 1, 1)
    assert place("ddp", [T4, T4], training=False) == ("ddp", 2, 2)
    assert place("auto", [T4, T4], needed=20, training=False) == ("layers", 1, 2)
    assert place("fsdp", [], training=False) == ("single", 1, 0)
    assert place("auto", [], World(0, 0, 2), training=False) == ("ddp", 2, 0)
    with pytest.raises(UserError, match="process 1 of this machine has no GPU"):
        place("auto", [T4], World(1, 1, 2), training=False)


def test_a_filled_gpu_is_told():
    with pytest.raises(UserError) as told:
        check_free_memory("GPU 1 (Tesla T4)", 3.24, 14.74, 7.96)
    assert "GPU 1 (Tesla T4) has 3.2 of its 14.7 GiB free, this run needs 8.0 GiB there" in str(told.value)
    assert "nvidia-smi" in told.value.hint
    assert told.value.exit_code == 2
    check_free_memory("GPU 0", 9.0, 14.74, 7.96)
    check_free_memory("GPU 0", 3.0, 4.0, 7.96)  # too small in any case, which the plan tells


def test_the_record_names_what_is_used():
    config = resolve("llama31-8b-qlora", {})[0]
    placement = choose_placement(config, [T4, T4], ALONE, lambda gpu: True)
    assert str(placement).startswith("2 processes, ddp, Tesla T4 + Tesla T4 (the model fits one GPU")
    assert str(choose_placement(config, [], ALONE, lambda gpu: True)) == "one process, CPU (no GPU)"
