"""Put a finished run on the Hugging Face Hub: adapter, merged weights, model card with its numbers, and a chat.

    python publish.py --repo USER/NAME --dry-run            everything into a folder, nothing sent
    python publish.py --repo USER/NAME                      USER/NAME, USER/NAME-lora and the chat USER/NAME-chat
    python publish.py --repo USER/NAME --run outputs/RUN    a run other than the newest
    python publish.py --repo USER/NAME --only card          the cards anew, nothing else

Run -> merge -> cards -> private upload -> comparison with the Hub -> public. A rerun sends only what changed.
"""

from __future__ import annotations

import sys
from argparse import Namespace

from bnft.config import path_of
from bnft.errors import UserError, run_command
from bnft.flags import Parser


def build_parser() -> Parser:
    parser = Parser("publish.py", __doc__)
    parser.add_argument("--repo", metavar="USER/NAME", required=True, help="where the merged model goes on the Hub")
    parser.add_argument("--run", metavar="RUN", help="folder of a finished run [the newest]")
    parser.add_argument("--only", metavar="PARTS", help="some of adapter,merged,card,space [all]")
    parser.add_argument("--space", metavar="USER/NAME", help="name of the chat [USER/NAME-chat]")
    parser.add_argument("--private", action="store_true", help="stay private; otherwise public once all is verified")
    parser.add_argument("--dry-run", action="store_true", help="write everything to RUN/publish and send nothing")
    parser.add_argument("--revision", metavar="BRANCH", help="upload to this branch [main]")
    parser.add_argument("--base", metavar="DIR|HUB_ID", help="16-bit weights to merge into [found by the base's name]")
    parser.add_argument("--low-disk", action="store_true", help="merge, send and delete one shard at a time")
    parser.add_argument(
        "--compare-rows", type=int, default=32, help="test rows on which merged and adapter are compared [32]"
    )
    parser.add_argument("--hardware", default="", help="the Space's machine, as the Hub names it [its free CPU]")
    parser.add_argument("--output-dir", default="outputs", help="folder of all runs [outputs]")
    return parser


def read_wishes(flags: Namespace):
    """The flags, checked without a network and before anything slow is imported."""
    from bnft.wishes import PARTS, Wishes

    parts = tuple(part.strip() for part in flags.only.split(",")) if flags.only else PARTS
    for part in parts:
        if part not in PARTS:
            raise UserError(f"--only {part!r} is none of the parts", f"Take some of {','.join(PARTS)}.")
    if flags.dry_run and flags.low_disk:
        raise UserError("--dry-run keeps every file and --low-disk keeps none", "Leave one of them out.")
    if flags.compare_rows < 0:
        raise UserError(f"--compare-rows {flags.compare_rows} is no number of rows", "0 compares nothing.")
    from bnft.hub import check_name

    check_name(flags.repo)
    if flags.space:
        check_name(flags.space, "--space")
    return Wishes(
        flags.repo,
        parts,
        flags.space or "",
        flags.private,
        flags.revision,
        flags.base,
        flags.low_disk,
        flags.compare_rows,
        flags.hardware,
    )


def open_run(flags: Namespace):
    from bnft.config import resolve
    from bnft.manifest import refuse_damaged
    from bnft.records import RunDirectory

    latest = path_of(flags.output_dir) / "latest"
    if not flags.run and not latest.exists():
        raise UserError(f"there is no run in {flags.output_dir} to publish", "Make one: python train.py")
    directory = RunDirectory.open(flags.run or latest)
    if not (directory.folder / "lora_model" / "adapter_config.json").is_file():
        raise UserError(
            f"{directory.folder} has no lora_model/ to publish",
            f"Finish it first: python train.py --resume {directory.folder}",
        )
    refuse_damaged(directory.folder / "lora_model")
    config, _ = resolve(str(directory.folder / "config.yaml"), {})
    return directory, config


def run(argv: list[str] | None) -> int:
    flags = build_parser().parse_args(argv)
    wishes = read_wishes(flags)
    directory, config = open_run(flags)
    hub = None
    if not flags.dry_run:
        from bnft.hub import Hub

        hub = Hub()
        hub.sign_in({name.partition("/")[0] for name in (wishes.repo, wishes.space or wishes.repo)})
    print(f"run: {directory.folder}")
    from bnft.merged_check import compare_merged
    from bnft.publishing import Publication

    publication = Publication(directory, config, wishes, hub, compare_merged)
    with directory.held():
        return stage_and_publish(publication, flags)


def stage_and_publish(publication, flags: Namespace) -> int:
    staged = publication.stage()
    for repo, folder in staged.items():
        print(f"\n{repo.id} ({repo.kind}), from {folder}")
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            print(f"  {path.stat().st_size:>14,}  {path.relative_to(folder)}")
    if flags.dry_run:
        print("\nnothing was sent; without --dry-run this goes to the Hub")
        return 0
    print()
    addresses = publication.publish(staged)
    print("\n" + ("private:" if flags.private else "public:"))
    for address in addresses:
        print(f"  {address}")
    return 0


def main(argv: list[str] | None = None) -> int:
    return run_command(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
