"""Kills a command again and again, runs it again, and compares what is then there with an undisturbed run's.

    python benchmarks/kill_at_random.py [train evaluate ...] [--kills 20] [--seed 1] [--keep FOLDER]

Half of the kills fall at a random moment, half just before a random change of a file: SIGKILL to the whole process
group. What the repetition leaves must be, file by file, what one run without a kill leaves: nothing torn, nothing
missing, no litter. Files are compared without what the clock or the machine decides. Libraries are imported once,
before the commands are forked off, so that the kills fall where there is something to tear.

What is published goes to a small Hub on this machine, whose repositories are compared as files are; besides, whenever
publishing is killed, each of them holds what it held before or all that it is to hold.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from folder_state import differences, state

REPOSITORY = Path(__file__).resolve().parent.parent
IMPORTED = ("torch", "datasets", "trl", "peft", "bitsandbytes", "matplotlib.pyplot", "evaluate", "sacrebleu")
CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.truncate", "os.utime"}
LIMIT = 600  # seconds for any one command


@dataclass(frozen=True)
class Command:
    """What is killed.

    Attributes:
        prepared: command lines that make what it starts from; {} stands for the folder.
        first: the command line that is killed.
        again: the one that a user gives then, from the folder as it was left.
    """

    prepared: tuple[str, ...]
    first: str
    again: Callable[[Path], str]


SMOKE = "train.py --recipe smoke --output-dir {}/outputs --run-name run --train.save_steps 1 --train.eval_steps 1"


def trained_again(folder: Path) -> str:
    """Where nothing stands yet, the same once more; else what the message of a second start says."""
    return "train.py --resume {}/outputs/run" if (folder / "outputs/run/config.yaml").exists() else SMOKE


PUBLISH = "publish.py --repo user/bn --compare-rows 2 --run {}/outputs"
RATERS = "benchmarks/raters.py {}/outputs/run"

COMMANDS = {
    "train": Command((), SMOKE, trained_again),
    "evaluate": Command(
        (f"{SMOKE} --eval-samples 2",),
        "train.py --eval-only {}/outputs/run --eval-samples 6",
        lambda folder: "train.py --eval-only {}/outputs/run --eval-samples 6",
    ),
    "merge": Command((SMOKE,), f"{PUBLISH}/run --dry-run", lambda folder: f"{PUBLISH}/run --dry-run"),
    # Over another run, so that the Hub has weights and a card that must not be mixed with the new ones.
    "publish": Command(
        (SMOKE, SMOKE.replace("--run-name run", "--run-name before --seed 5"), f"{PUBLISH}/before"),
        f"{PUBLISH}/run",
        lambda folder: f"{PUBLISH}/run",
    ),
    "rate": Command((SMOKE,), RATERS, lambda folder: RATERS),
    "summary": Command(
        (SMOKE, RATERS),
        "-m bnft.rate {}/outputs/run --summary",
        lambda folder: "-m bnft.rate {}/outputs/run --summary",
    ),
    "report": Command((SMOKE,), "-m bnft.report {}/outputs", lambda folder: "-m bnft.report {}/outputs"),
}


class Shelf:
    """The small Hub of this machine: what it holds, put back before each kill."""

    def __init__(self, hub):
        self.hub = hub

    def kept(self):
        return copy.deepcopy((self.hub.repos, self.hub.collections, self.hub.objects))

    def put_back(self, kept) -> None:
        self.hub.repos, self.hub.collections, self.hub.objects = copy.deepcopy(kept)

    def repositories(self) -> dict[str, dict[str, str]]:
        return {
            f"{kind} {name}": {path: entry["oid"] for path, entry in repo.files().items()}
            for (kind, name), repo in self.hub.repos.items()
        }

    def state(self) -> dict[str, str]:
        opened = {f"hub {name}": f"private: {repo.private}" for (_, name), repo in self.hub.repos.items()}
        return opened | {f"hub {name}": repr(files) for name, files in self.repositories().items()}

    def mixed(self, before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> list[str]:
        """Repositories that hold neither what they held nor what they are to hold."""
        found = self.repositories().items()
        return [f"mixed {name}" for name, files in found if files not in (before.get(name), after.get(name))]


def run(line: str, folder: Path, after: float = 0.0, change: int = 0) -> tuple[int, float, int]:
    """Runs a command line in a process group of its own; kills it after so many seconds, or before the n-th change.

    Returns:
        Exit status (negative: the signal), seconds, and changes of files that it made.
    """
    counted, log = folder.with_suffix(".changes"), folder.with_suffix(".log")
    started = time.monotonic()
    child = os.fork()
    os.setpgid(child, child)  # here and in the child: whichever comes first, the group is there
    if not child:
        _become(line.replace("{}", str(folder)).split(), folder, log, counted, change)
    deadline = started + (after or LIMIT)
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
            break
        time.sleep(0.005)
    changes = int(counted.read_text()) if counted.exists() else 0
    counted.unlink(missing_ok=True)
    return os.waitstatus_to_exitcode(ended[1]), time.monotonic() - started, changes


def _become(words: list[str], folder: Path, log: Path, counted: Path, fatal: int) -> None:
    """In the child: the command line, with its changes of files counted."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["BNFT_CACHE"] = str(folder / "cache")
    changes = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal changes
        if event not in CHANGES or not str(arguments[0]).startswith(str(folder)):
            return
        if event == "open" and not (arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        changes += 1
        if changes == fatal:
            os.killpg(0, signal.SIGKILL)

    sys.addaudithook(watch)
    module = words[0] == "-m"
    sys.argv = words[1:] if module else [str(REPOSITORY / words[0]), *words[1:]]
    status: object = 1
    try:
        if module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if not fatal:
            counted.write_text(str(changes))
        os._exit(status if isinstance(status, int) else 1)


def try_command(name: str, kills: int, rng: random.Random, scratch: Path, shelf: Shelf) -> int:
    """Prints a line a kill and returns how many were survived."""
    command, start, folder = COMMANDS[name], scratch / f"{name}-start", scratch / f"{name}-now"
    folder.mkdir()
    for line in command.prepared:
        trained = scratch / "trained"
        if line == SMOKE and trained.exists():
            shutil.copytree(trained, folder, symlinks=True, dirs_exist_ok=True)
        elif run(line, folder)[0]:
            raise SystemExit(f"{line} failed:\n{folder.with_suffix('.log').read_text()[-2000:]}")
        elif line == SMOKE:
            shutil.copytree(folder, trained, symlinks=True)  # for the next command
    shutil.copytree(folder, start, symlinks=True)
    kept, before = shelf.kept(), shelf.repositories()
    status, seconds, changes = run(command.first, folder)
    if status:
        raise SystemExit(f"{command.first} failed:\n{folder.with_suffix('.log').read_text()[-2000:]}")
    expected, after = state(folder) | shelf.state(), shelf.repositories()
    print(
        f"\n{name}: undisturbed {seconds:.1f} s, {changes} changes of files, leaves {len(expected)} files", flush=True
    )
    print("| kill | moment | ended | again | what differs |\n| ---: | --- | ---: | ---: | --- |", flush=True)
    survived = 0
    for kill in range(kills):
        shutil.rmtree(folder)
        folder.with_suffix(".log").unlink()
        shutil.copytree(start, folder, symlinks=True)
        shelf.put_back(kept)
        if kill % 2:
            change, moment = rng.randint(1, changes), 0.0
        else:
            change, moment = 0, rng.uniform(0, seconds)
        ended, _, _ = run(command.first, folder, moment, change)
        told = shelf.mixed(before, after)
        again, _, _ = run(command.again(folder), folder)
        told += differences(state(folder) | shelf.state(), expected)
        survived += not told and not again
        if told or again:
            left = scratch / f"{name}-kill-{kill + 1}"
            shutil.copytree(folder, left, symlinks=True)
            shutil.copy(folder.with_suffix(".log"), left / "log")
        when = f"change {change}" if change else f"{moment:.2f} s"
        print(f"| {kill + 1} | {when} | {ended} | {again} | {'; '.join(told[:4]) or 'nothing'} |", flush=True)
    print(f"{name}: {survived} of {kills} kills survived", flush=True)
    return survived


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", help=f"{', '.join(COMMANDS)} [all]")
    parser.add_argument("--kills", type=int, default=20, help="kills of each command [20]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", help="folder that keeps what was left after kills that were not survived [none]")
    arguments = parser.parse_args()
    names = arguments.commands or list(COMMANDS)
    if unknown := set(names) - COMMANDS.keys():
        parser.error(f"no command {', '.join(sorted(unknown))}; there are {', '.join(COMMANDS)}")
    sys.path.insert(0, str(REPOSITORY))
    from tests.hub_server import running_hub

    survived = 0
    with tempfile.TemporaryDirectory() as temporary, running_hub() as hub:
        scratch = Path(arguments.keep or temporary).resolve()
        scratch.mkdir(parents=True, exist_ok=True)
        # huggingface_hub reads these at its import
        os.environ |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.write_token, "HF_HOME": f"{temporary}/home"}
        os.environ |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        for module in IMPORTED:
            importlib.import_module(module)
        for name in names:
            rng = random.Random(f"{arguments.seed}-{name}")
            survived += try_command(name, arguments.kills, rng, scratch, Shelf(hub))
    return 0 if survived == arguments.kills * len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
