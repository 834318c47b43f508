"""All runs of a folder on one page, for a supervisor: tables, plots, samples, data; a single file that asks nobody.

    python -m bnft.report outputs             writes outputs/report/report.html and its pictures
    python -m bnft.report outputs/RUN         the same for one run, into outputs/RUN/report

The page is one file with everything in it: send it on as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bnft.errors import run_command
from bnft.flags import Parser


def build_parser() -> Parser:
    parser = Parser("-m bnft.report", __doc__)
    parser.add_argument("folder", nargs="?", default="outputs", help="the folder of your runs, or one run [outputs]")
    return parser


def run(argv: list[str] | None) -> int:
    flags = build_parser().parse_args(argv)
    from bnft.progress import StageBar
    from bnft.report_page import write_report

    with StageBar() as bar:
        page, problems = write_report(Path(flags.folder), bar.show)
    for problem in problems:
        print(f"note: {problem}", file=sys.stderr)
    print(f"report: {page}")
    return 0


def main(argv: list[str] | None = None) -> int:
    return run_command(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
