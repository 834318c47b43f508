"""Fine-tune a Bengali companion model and measure, on held-out conversations, whether it got better.

    python train.py                                    the recipe that fits this machine
    python train.py --plan                             what would happen, without doing it
    python train.py --recipe laptop --max-steps 10     a recipe, with one setting changed
    python train.py --data my.csv --lora.r 32          your own data; any setting by its name
    python train.py --resume outputs/RUN               go on with an interrupted run
    python train.py --eval-only outputs/RUN            measure a finished run again

Recipe -> data -> fine-tune -> evaluate -> run directory. Settings, in order: recipe, then flags.
"""

from __future__ import annotations

import sys

from bnft.config import recipe_names, resolve
from bnft.errors import UserError, run_command
from bnft.flags import Arguments, Parser, add_setting_flags, parse
from bnft.settings import RunConfig

# What --resume and --eval-only may still change: nothing that the weights or the splits already depend on.
CHANGEABLE = ("train.max_steps", "train.max_minutes", "train.report_to", "eval.", "generation.")


def build_parser() -> Parser:
    parser = Parser(prog="train.py", description=__doc__)
    names = ", ".join(recipe_names())
    parser.add_argument("--recipe", metavar="NAME|FILE", help=f"{names}, or a YAML file [what fits this machine]")
    parser.add_argument("--output-dir", default="outputs", help="folder of all runs [outputs]")
    parser.add_argument("--run-name", help="name of this run's folder [recipe and time]")
    parser.add_argument("--plan", action="store_true", help="print what would happen, and stop")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    group.add_argument("--eval-only", metavar="RUN", help="evaluate the run in this folder again")
    add_setting_flags(parser)
    return parser


def read_settings(arguments: Arguments, gpus: list) -> tuple[RunConfig, dict[str, str], str]:
    """The settings, their sources, and the recipe's name; prints which recipe was taken and why."""
    from bnft.plan import choose_recipe

    run = arguments.own.resume or arguments.own.eval_only
    if run:
        from bnft.records import RunDirectory

        fixed = [name for name in arguments.settings if not name.startswith(CHANGEABLE)]
        if fixed or arguments.own.recipe:
            raise UserError(
                f"{', '.join(f'--{name}' for name in fixed) or '--recipe'} cannot change in an existing run",
                f"Start a new run, or change only {', '.join(CHANGEABLE)}*.",
            )
        config, sources = resolve(str(RunDirectory.open(run).folder / "config.yaml"), arguments.settings)
        return config, sources, "config"
    recipe, reason = (arguments.own.recipe, "as set") if arguments.own.recipe else choose_recipe(gpus)
    print(f"recipe: {recipe} ({reason})")
    config, sources = resolve(recipe, arguments.settings)
    return config, sources, recipe


def run(argv: list[str] | None) -> int:
    arguments = parse(build_parser(), argv)
    from bnft.plan import check_placement, check_tracker, describe, find_gpus

    gpus = find_gpus()
    config, sources, recipe = read_settings(arguments, gpus)
    from bnft.strategies import choose_strategy

    choose_strategy(config.train.strategy)
    check_placement(config, gpus)
    check_tracker(config)
    own = arguments.own
    if own.plan:
        from bnft.data import DatasetProcessor

        report = DatasetProcessor(config.data, config.seed).process().report
        folder = f"{own.output_dir}/{own.run_name or 'RECIPE-TIME'}"
        print("nothing is done, this is the plan:\n" + describe(config, gpus, report, folder))
        return 0
    from bnft.allocator import keep_freed_memory
    from bnft.pipeline import Pipeline

    if not gpus:
        keep_freed_memory()
    if own.eval_only:
        Pipeline.open(own.eval_only, config, sources).evaluate_again()
    elif own.resume:
        Pipeline.open(own.resume, config, sources).resume()
    else:
        Pipeline.create(own.output_dir, own.run_name, recipe, config, sources).start()
    return 0


def main(argv: list[str] | None = None) -> int:
    return run_command(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
