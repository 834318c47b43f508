"""How long 38,000 made-up rows take from file to split, and how much memory.

    python benchmarks/data_38k.py [--rows 38000]

The rows have the shape of the Bengali Empathetic Conversations Corpus (a counselling part with long answers, then
talks of two short rows) and its faults, with words drawn at random, so that nothing but a temporary file is needed.
"""

from __future__ import annotations

import argparse
import csv
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CONSONANTS, SIGNS = "কখগঘচছজঝটঠডঢতথদধনপফবভমযরলশষসহ", ["", "া", "ি", "ী", "ু", "ে", "ো", "্র"]
COUNSELLING_SHARE = 0.08


def write_rows(path: Path, count: int, dice: random.Random) -> None:
    """Rows of about 320 characters in the mean: more than the real file's 209, so that time is not flattered."""
    words = [
        "".join(dice.choice(CONSONANTS) + dice.choice(SIGNS) for _ in range(dice.randint(1, 4))) for _ in range(8000)
    ]
    weights = [1 / rank for rank in range(1, len(words) + 1)]  # as in language: few words make up most of a text

    def text(low: int, high: int) -> str:
        ending = dice.choices(("।", "?", "", "৷", " ।", "  "), (60, 10, 15, 5, 3, 7))[0]
        return " ".join(dice.choices(words, weights, k=dice.randint(low, high))) + ending

    moods = [text(1, 1).strip("।?৷ ") for _ in range(32)]
    asked = [text(8, 60) for _ in range(round(count * COUNSELLING_SHARE / 2))]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["Topics", "Question-Title", "Questions", "Answers"])
        for _ in range(round(count * COUNSELLING_SHARE)):
            writer.writerow([", ".join(dice.sample(moods, 2)), text(3, 6), dice.choice(asked), text(60, 250)])
        said: list[list[str]] = []
        for row in range(round(count * (1 - COUNSELLING_SHARE))):
            if row % 2 == 0:
                mood = dice.choice(moods)
            turn = [text(1, 1) if dice.random() < 0.02 else text(8, 40), text(3, 26)]
            if said and dice.random() < 0.05:  # an exact or a near copy of an earlier exchange
                turn = [said[row // 2][0] + dice.choice(["", " হ্যাঁ"]), said[row // 2][1]]
            said.append(turn)
            writer.writerow([mood, text(1, 2), *turn])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=38_000)
    rows = parser.parse_args(argv).rows
    from bnft.data import DatasetProcessor, format_report
    from bnft.settings import DataConfig

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made_up.csv"
        write_rows(path, rows, random.Random(1))
        size = path.stat().st_size / 2**20
        start = time.perf_counter()
        report = DatasetProcessor(DataConfig(path=str(path))).process().report
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB
    print(format_report(report))
    print(f"{rows:,} rows ({size:.1f} MiB): {seconds:.1f} s, peak memory {peak:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
