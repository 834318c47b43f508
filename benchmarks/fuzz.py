"""Every property of the tests with many more inputs than the tests try: any bytes as a file, any text as a message.

    python benchmarks/fuzz.py [--inputs 2000] [--rooms corpus_files,emitter] [--embedded]

Finds the hypothesis properties in tests/, runs them, and prints inputs tried, seconds and faults by room. An input
that breaks a property is printed in its smallest form, and kept in .hypothesis, so that the tests meet it again.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
TRIED = re.compile(r"(\d+) (?:passing|failing)")


class Tally:
    """A pytest plug-in: only the properties are run, and what was tried is counted by room."""

    def __init__(self) -> None:
        self.rooms: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0, 0])  # properties, inputs, seconds, faults

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if getattr(item.obj, "is_hypothesis_test", False)]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if report.when == "call":
            room = self.rooms[item.path.stem.removeprefix("test_")]
            told = getattr(item, "hypothesis_statistics", "")
            tried = sum(int(count) for count in TRIED.findall(told))
            room[:] = [a + b for a, b in zip(room, (1, tried, report.duration, report.failed), strict=True)]
        return report


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=2000, help="inputs of each property [2000]")
    parser.add_argument("--rooms", default="", help="names of rooms, joined by commas [all]")
    parser.add_argument("--embedded", action="store_true", help="also those that load the embedded model, or are slow")
    flags = parser.parse_args(argv)
    os.environ["BNFT_FUZZ_INPUTS"] = str(flags.inputs)  # tests/conftest.py sets Hypothesis by it
    names = [name.strip() for name in flags.rooms.split(",") if name.strip()]
    files = [str(REPOSITORY / "tests" / f"test_{name}.py") for name in names] or [str(REPOSITORY / "tests")]
    tally = Tally()
    options = ["-q", "-m", "" if flags.embedded else "not slow", "-p", "no:cacheprovider"]
    status = pytest.main([*files, *options, "--rootdir", str(REPOSITORY)], plugins=[tally])
    print(f"\n| {'room':<20} | properties | inputs tried | seconds | faults |\n| --- | ---: | ---: | ---: | ---: |")
    for room, (properties, inputs, seconds, faults) in sorted(tally.rooms.items()):
        print(f"| {room:<20} | {properties} | {inputs:,} | {seconds:.0f} | {faults} |")
    print(
        f"| all | | {sum(room[1] for room in tally.rooms.values()):,} | | {sum(r[3] for r in tally.rooms.values())} |"
    )
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
