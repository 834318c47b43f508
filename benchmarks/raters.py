"""Made-up raters who rate a run at once through its page, until each has rated so many pairs; a killed one goes on.

    python benchmarks/raters.py outputs/RUN [--raters 3] [--pairs 6]

Ends with status 1 where a rating is missing of which its rater was told that it is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bnft.rate import open_page
from bnft.rating_form import QUESTIONS, say
from bnft.rating_items import Item, plan, read_items
from bnft.rating_store import RatingStore, key_of
from bnft.ui_look import serve
from tests.test_rate import sent_directly

SEED = 3407


def rate_on(folder: Path, address: str, items: list[Item], rater: str, pairs: int) -> None:
    """Gives the rater's answers, which follow from what is shown, one after the other."""
    told, store = note_of(folder, rater), RatingStore(folder)
    who = {"rater": rater, "native": "yes", "region": "BD"}
    for _, seen in zip(range(pairs), plan(items, rater, SEED), strict=False):
        key = key_of(seen.columns(rater))
        if key in map(key_of, store.read()):
            continue
        token = seen.token(rater)
        answers = [q.low + int(token, 16) % (q.high - q.low + 1) for _ in "ab" for q in QUESTIONS]
        answer = sent_directly(address, [who, token, *answers, "A"])
        if any(json.dumps(say(word))[1:-1] in answer or say(word) in answer for word in ("kept_one", "round_done")):
            with told.open("a", encoding="utf-8") as file:
                file.write(json.dumps(key) + "\n")
        else:
            raise SystemExit(f"{rater} was not told that a rating is kept, but: {answer[:300]}")


def note_of(folder: Path, rater: str) -> Path:
    return folder.parent / f"told-{rater}.txt"


def lost(folder: Path, rater: str) -> set[str]:
    """What the rater was told is kept, and is not."""
    note, kept = note_of(folder, rater), {json.dumps(key_of(row)) for row in RatingStore(folder).read()}
    told = note.read_text(encoding="utf-8").split("\n")[:-1] if note.exists() else []
    note.unlink(missing_ok=True)
    return set(told) - kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("--raters", type=int, default=3, help="who rate at once [3]")
    parser.add_argument("--pairs", type=int, default=6, help="that each of them rates [6]")
    flags = parser.parse_args()
    raters, items = [f"rater{number}" for number in range(flags.raters)], read_items(flags.run)
    demo = open_page(flags.run, SEED)
    address = serve(demo, "127.0.0.1", None, False)
    with ThreadPoolExecutor(len(raters)) as pool:
        list(pool.map(lambda rater: rate_on(flags.run, address.rstrip("/"), items, rater, flags.pairs), raters))
    demo.close(verbose=False)
    missing = [key for rater in raters for key in lost(flags.run, rater)]
    print(f"{len(RatingStore(flags.run).read())} ratings, {len(missing)} lost of those told to be kept")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
