"""Processes that train together: what they add up and tell each other, and which of them tells an error."""

import subprocess
import sys

import pytest

from bnft.config import REPOSITORY
from bnft.errors import UserError
from bnft.world import World, any_over, barrier, broadcast_object, current_world, joined, largest_over, sum_over

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


@pytest.mark.parametrize(
    ("values", "world"),
    [
        (("", "", ""), World()),
        (("1", "1", "2"), World(1, 1, 2)),
        (("5", "1", "8"), World(5, 1, 8)),  # the second process of the second of two hosts
        (("", "", "4"), World()),  # WORLD_SIZE alone: other programs' launchers leave it behind
    ],
)
def test_the_world_is_what_the_launcher_says(monkeypatch, values, world):
    for name, value in zip(NAMES, values, strict=True):
        monkeypatch.setenv(name, value)
    assert current_world() == world
    assert current_world().leads == (world.rank == 0)


def test_a_world_that_cannot_be_is_told(monkeypatch):
    for name, value in zip(NAMES, ("one", "0", "2"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="RANK=one, LOCAL_RANK=0, WORLD_SIZE=2"):
        current_world()


def test_alone_nothing_happens():
    import torch

    alone, tensor = World(), torch.ones(3)
    with joined(alone):
        sum_over([tensor], alone)
        barrier(alone)
        assert tensor.tolist() == [1, 1, 1]
        assert any_over(True, alone) is True
        assert any_over(False, alone) is False
        assert largest_over(3, alone) == 3
        assert broadcast_object({"a": 1}, alone) == {"a": 1}
    assert not torch.distributed.is_initialized()


def together(body: str, processes: int = 2, **options) -> subprocess.CompletedProcess:
    """Runs `body` in `run(world)` in several processes under torchrun, as a script with its own way out."""
    script = (
        "import sys, torch\nimport bnft.world\nfrom bnft.errors import Interrupted, UserError, run_command\n"
        "from bnft.world import *\n"
        "def body(world):\n    " + body.strip().replace("\n", "\n    ") + "\n    return 0\n"
        "def main():\n    world = current_world()\n    with joined(world):\n        return body(world)\n"
        "if __name__ == '__main__':\n    sys.exit(run_command(main))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*command, "--no-python", sys.executable, "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


SUMS = """
tensors = [torch.full((2, 3), world.rank + 1.0), torch.tensor([world.rank], dtype=torch.float64),
           torch.full((5,), 0.5, requires_grad=True), torch.arange(8.0).reshape(2, 4).t()]
bnft.world.BUCKET = 8
pointers = [tensor.data_ptr() for tensor in tensors]
sum_over(tensors, world)
assert pointers == [tensor.data_ptr() for tensor in tensors]
assert tensors[0].tolist() == [[3.0] * 3] * 2, tensors
assert tensors[1].tolist() == [1.0], tensors
assert tensors[2].tolist() == [1.0] * 5, tensors
assert torch.equal(tensors[3], 2 * torch.arange(8.0).reshape(2, 4).t()), tensors
sum_over([], world)
assert any_over(world.rank == 1, world) is True
assert any_over(False, world) is False
assert largest_over(5 - world.rank, world) == 5
assert broadcast_object(f"told by {world.rank}", world) == "told by 0"
barrier(world)
print("printed by", world.rank)
sys.stderr.write("done\\n")
"""


def test_two_processes_add_up_and_agree():
    done = together(SUMS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["printed", "by", "0"]
    assert done.stderr.count("done") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise UserError('the recipe is wrong')", "the recipe is wrong"),
        ("if world.rank == 1:\n    raise UserError('GPU 1 is full')\nbarrier(world)", "GPU 1 is full"),
    ],
    ids=["in every process", "in one"],
)
def test_an_error_is_told_once(body, told):
    done = together(body)
    assert done.returncode != 0
    assert done.stderr.count(f"error: {told}") == 1
    assert "lost the others" not in done.stderr
    assert "gloo" not in done.stderr
