"""Let people judge a run's replies, blind: base, tuned and reference, two at a time.

    python -m bnft.rate outputs/RUN                 opens the rating page; ratings go to outputs/RUN/ratings.csv
    python -m bnft.rate outputs/RUN --share         for raters elsewhere
    python -m bnft.rate outputs/RUN --summary       what they said so far, into metrics.json

Ratings are kept in the folder of the run; no upload takes them along.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bnft.config import resolve
from bnft.errors import run_command
from bnft.flags import Parser, add_address_flags


def build_parser() -> Parser:
    parser = Parser("-m bnft.rate", __doc__)
    parser.add_argument("run", metavar="RUN", help="the folder of a measured run")
    parser.add_argument("--summary", action="store_true", help="print and record what raters said, open no page")
    add_address_flags(parser)
    return parser


def open_page(folder: Path, seed: int):
    from bnft.rating_items import decoding_of, read_items
    from bnft.rating_page import build_rating_page
    from bnft.rating_store import RatingStore
    from bnft.records import git_commit

    items, store = read_items(folder), RatingStore(folder)
    ratings = store.read()
    print(f"{len(items)} items of {folder.name}, {len(ratings)} ratings so far, kept in {store.path}")
    return build_rating_page(items, seed, store, decoding_of(folder), git_commit() or "unknown")


def run(argv: list[str] | None) -> int:
    flags = build_parser().parse_args(argv)
    from bnft.records import RunDirectory

    folder = RunDirectory.open(flags.run).folder
    config, _ = resolve(str(folder / "config.yaml"), {})
    if flags.summary:
        from bnft.rating_summary import print_summary, record_summary

        print_summary(record_summary(folder, config.eval.bootstrap, config.seed))
        return 0
    demo = open_page(folder, config.seed)
    from bnft.rating_page import rating_look
    from bnft.ui_look import serve, stay_open

    address = serve(demo, flags.host, flags.port, flags.share, **rating_look())
    print(f"open {address} (Ctrl+C ends it)", flush=True)
    stay_open(demo)
    return 0


def main(argv: list[str] | None = None) -> int:
    return run_command(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
