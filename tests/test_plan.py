"""Which recipe and placement a machine gets."""

import pytest

from bnft.config import resolve
from bnft.errors import UserError
from bnft.plan import Gpu, check_placement, check_tracker, choose_recipe, optimizer_steps
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


@pytest.mark.parametrize("way", ["layers", "ddp", "fsdp"])
def test_more_gpus_than_there_are_is_an_error(way):
    config = RunConfig().replace("train.parallel", way)
    with pytest.raises(UserError, match=f"--parallel {way} needs at least two GPUs, 1 found"):
        check_placement(config, [T4])


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
