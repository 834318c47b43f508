"""The output head's product with a few hidden states: `hidden @ weight.T` against bnft/head.py.

    python benchmarks/head.py [--rows 262144] [--columns 640]

Prints milliseconds (median of several turns) for random weights in float32.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def milliseconds(work, turns: int = 7) -> float:
    work()
    taken = []
    for _ in range(turns):
        started = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=262_144)
    parser.add_argument("--columns", type=int, default=640)
    args = parser.parse_args(argv)
    import torch

    from bnft.head import products

    weight = torch.randn(args.rows, args.columns)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {args.rows} x {args.columns}")
    print("| tokens | hidden @ weight.T | in slices, head on the left | ratio |\n| --- | --- | --- | --- |")
    for tokens in (1, 4, 16, 64, 256):
        hidden = torch.randn(tokens, args.columns)
        out = torch.empty(args.rows, tokens)
        plain = milliseconds(lambda hidden=hidden: hidden @ weight.T)
        sliced = milliseconds(lambda hidden=hidden, out=out: list(products(weight, hidden, out)))
        print(f"| {tokens} | {plain:.0f} ms | {sliced:.0f} ms | {plain / sliced:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
