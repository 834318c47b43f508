"""One GPU, two with a process each, two with the layers split: rows a second and memory of each, in one run.

    python benchmarks/placements_gpu.py --folder MODEL [--tokenizer FOLDER] [--emulate t4] [--sixteen-bit]

Rows, model and clock are those of train_gpu.py; `seed` is its padded Unsloth recipe with the layers split. Each
placement runs in processes of its own, started as `train.py` starts them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train_gpu
from like_a_t4 import like_a_t4
from train_gpu import LONGEST, STEP_ROWS, WARM_UP

WAYS = {
    "single": ("one GPU", 1),
    "seed": ("two GPUs, layers split, Unsloth, batch 2 x 8, padded", 1),
    "layers": ("two GPUs, layers split, this program", 1),
    "ddp": ("two GPUs, a process each, this program", 2),
}


def measure(options) -> None:
    """One placement, in this process of its world; the leader writes what it and the others saw."""
    from bnft.strategies import choose_strategy
    from bnft.world import current_world, joined

    world = current_world()
    with joined(world), like_a_t4(options.emulate):
        choose_strategy(options.strategy)
        import torch
        from torch import distributed

        from bnft.steps import StepSampler

        rows = train_gpu.make_rows(options.steps * STEP_ROWS, options.distinct)
        if options.longest_only:
            rows = [{name: (row[name] * 200)[:LONGEST] for name in row} for row in rows]
        options.parallel = "layers" if options.way in ("seed", "layers") else options.way
        if options.way == "seed":
            trainer, callback = train_gpu.padded(options, rows, unsloth=options.strategy != "peft")
        else:
            trainer, callback = train_gpu.ours(options, rows, options.strategy)
        trainer.train()
        gpus = range(torch.cuda.device_count()) if world.size == 1 else [world.local_rank]
        peaks = [round(torch.cuda.max_memory_allocated(gpu) / 2**30, 2) for gpu in gpus if torch.cuda.is_available()]
        every = [peaks] * world.size
        if world.size > 1:
            distributed.all_gather_object(every, peaks)
        if world.leads:
            steps = list(StepSampler(len(rows), STEP_ROWS, 3407))[WARM_UP : options.steps]
            seconds = callback.ends[-1] - callback.ends[WARM_UP - 1]
            result = {
                "placement": WAYS[options.way][0],
                "strategy": options.strategy,
                "rows_per_second": round(sum(map(len, steps)) / seconds, 2),
                "peak_gib": [peak for part in every for peak in part],
                "losses": [round(line["loss"], 4) for line in trainer.state.log_history if "loss" in line],
                "ran_out": getattr(trainer, "ran_out", []),
                "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU",
                "torch": torch.__version__,
            }
            options.result.write_text(json.dumps(result))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    train_gpu.add_shared_flags(parser)
    parser.add_argument("--ways", default="single,seed,layers,ddp", help=f"some of {', '.join(WAYS)}")
    parser.add_argument("--strategy", default="unsloth", choices=["unsloth", "peft"])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--longest-only", action="store_true", help=f"every row has {LONGEST} tokens")
    parser.add_argument("--way", help=argparse.SUPPRESS)  # of the processes that measure one
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    options = train_gpu.read_options(build_parser())
    if options.way:
        with tempfile.TemporaryDirectory() as options.scratch:
            measure(options)
        return
    train_gpu.make_model_unless_there(options)
    from bnft.launch import launch

    results = []
    with tempfile.TemporaryDirectory() as folder:
        for way in options.ways.split(","):
            result = Path(folder) / way
            command, processes = [__file__, *sys.argv[1:], "--way", way, "--result", str(result)], WAYS[way][1]
            if processes > 1:
                code = launch(command, processes)
            else:  # as train.py does, and as accelerate wants split layers: in no world of processes at all
                code = subprocess.run([sys.executable, *command]).returncode
            if not result.is_file():
                print(f"{WAYS[way][0]}: ended with {code}", flush=True)
                continue
            results.append(json.loads(result.read_text()))
            print(json.dumps(results[-1]), flush=True)
            if options.out:
                options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
