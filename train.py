"""Fine-tune a Bengali companion model and measure, on held-out conversations, whether it got better.

    python train.py                                    the recipe that fits this machine
    python train.py --plan                             what would happen: memory, disk, hours
    python train.py --calibrate                        the same, with speeds measured in ten real steps
    python train.py --recipe laptop --max-steps 10     a recipe, with one setting changed
    python train.py --data my.csv --lora.r 32          your own data; any setting by its name
    python train.py --resume outputs/RUN               go on with an interrupted run
    python train.py --eval-only outputs/RUN            measure a finished run again

Recipe -> data -> fine-tune -> evaluate -> run directory. Settings, in order: recipe, then flags.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from bnft.config import check_values, recipe_names, resolve
from bnft.errors import UserError, run_command
from bnft.flags import Arguments, Parser, add_setting_flags, parse
from bnft.launch import follow_launcher, launch_training
from bnft.settings import RunConfig
from bnft.world import World, current_world, joined

if TYPE_CHECKING:
    from argparse import Namespace

    from bnft.pipeline import Pipeline
    from bnft.placement import Placement

# What --resume and --eval-only may still change: nothing that the weights or the splits already depend on.
CHANGEABLE = ("train.parallel", "train.max_steps", "train.max_minutes", "train.report_to", "eval.", "generation.")


def build_parser() -> Parser:
    parser = Parser("train.py", __doc__)
    known = f"{', '.join(recipe_names())}, or a YAML file [what fits this machine]"
    parser.add_argument("--recipe", metavar="NAME|FILE", help=known)
    parser.add_argument("--output-dir", default="outputs", help="folder of all runs [outputs]")
    parser.add_argument("--run-name", help="name of this run's folder [recipe and time]")
    parser.add_argument("--plan", action="store_true", help="print what would happen, and stop")
    parser.add_argument("--calibrate", action="store_true", help="--plan, after ten real steps that tell the speed")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    group.add_argument("--eval-only", metavar="RUN", help="evaluate the run in this folder again")
    add_setting_flags(parser)
    return parser


def read_settings(arguments: Arguments) -> tuple[RunConfig, dict[str, str], str, str]:
    """The settings, their sources, the recipe's name and why it was taken."""
    run = arguments.own.resume or arguments.own.eval_only
    if run:
        from bnft.records import RunDirectory

        fixed = [name for name in arguments.settings if not name.startswith(CHANGEABLE)]
        if fixed or arguments.own.recipe:
            wrong = ", ".join(f"--{name}" for name in fixed) or "--recipe"
            may = ", ".join(f"--{name}" + "*" * name.endswith(".") for name in CHANGEABLE)
            raise UserError(f"{wrong} cannot change in an existing run", f"Start a new run, or change only {may}.")
        config, sources = resolve(str(RunDirectory.open(run).folder / "config.yaml"), arguments.settings)
        return config, sources, "config", "the run's own"
    from bnft.corpus_files import find_file, is_hub_id

    recipe, reason = arguments.own.recipe, "as set"
    if not recipe:
        check_values(arguments.settings)  # before PyTorch, which knows the GPUs, is imported for seconds
        from bnft.plan import choose_recipe, find_gpus

        recipe, reason = choose_recipe(find_gpus())
    config, sources = resolve(recipe, arguments.settings)
    if not is_hub_id(config.data.path):
        find_file(config.data.path)
    return config, sources, recipe, reason


def run(argv: list[str] | None) -> int:
    follow_launcher()
    world = current_world()
    with joined(world):
        started = start(parse(build_parser(), argv), world)
        if isinstance(started, int):  # so many processes are needed
            return launch_training(sys.argv[1:] if argv is None else argv, started)
    return started.finish() if started else 0


def start(arguments: Arguments, world: World) -> Pipeline | int | None:
    """Trains in this process, and returns what is to be finished; or how many processes have to be started instead."""
    own, (config, sources, recipe, reason) = arguments.own, read_settings(arguments)
    from bnft.device_maps import check_own_gpu, training_fits
    from bnft.placement import choose_placement
    from bnft.plan import check_tracker, find_gpus
    from bnft.strategies import check_strategy, choose_strategy

    gpus = find_gpus()
    check_strategy(config.train.strategy)
    check_tracker(config)
    placement = choose_placement(config, gpus, world, training_fits(config), training=not own.eval_only)
    plan_only = own.plan or own.calibrate
    if placement.processes > world.size and not plan_only:
        return placement.processes
    print(f"recipe: {recipe} ({reason})\nplacement: {placement}")
    if plan_only:
        show_plan(own, config, placement)
        return None
    if placement.way != "fsdp" and not own.eval_only:
        choose_strategy(config.train.strategy)  # Unsloth is imported before all that it rewrites
    from bnft.allocator import keep_freed_memory
    from bnft.pipeline import Pipeline

    if not gpus:
        keep_freed_memory()
    if own.eval_only:
        Pipeline.open(own.eval_only, config, sources, placement).evaluate_again()
        return None
    from bnft.planning import check_model

    check_model(config, placement)
    check_own_gpu(config, placement)
    if own.resume:
        pipeline = Pipeline.open(own.resume, config, sources, placement)
        pipeline.resume()
    else:
        pipeline = Pipeline.create(own.output_dir, own.run_name, recipe, config, sources, placement)
        pipeline.start()
    return pipeline


def show_plan(own: Namespace, config: RunConfig, placement: Placement) -> None:
    from bnft.data_cache import processed
    from bnft.planning import check_model, plan_text

    check_model(config, placement)
    data = processed(config.data, config.seed)
    if own.calibrate:
        from bnft.calibration import calibrate

        calibrate(config, data.splits, placement)
    text = plan_text(config, placement, data, own.output_dir, own.run_name or "RECIPE-TIME")
    print(f"nothing is done, this is the plan:\n{text}")


def main(argv: list[str] | None = None) -> int:
    return run_command(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
