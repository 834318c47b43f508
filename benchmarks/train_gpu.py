"""How fast a step of training is: the padded recipes of notebooks, and this program's, on the same rows of one GPU.

    python benchmarks/train_gpu.py --folder MODEL [--tokenizer FOLDER] [--emulate t4] [--recipes seed,unsloth,peft]

MODEL is filled with a random Llama 3.1 8B when it does not exist. Each recipe runs in a process of its own. Row lengths
are lognormal with a mean of 303 tokens and at most 2,020, 16 rows a step; the first steps are not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from like_a_t4 import like_a_t4

STEP_ROWS, MEAN, LONGEST, WARM_UP = 16, 303, 2020, 3
RECIPES = {
    "seed": "Unsloth, batch 2 x 8, padded",
    "trl": "PEFT + TRL, batch 2 x 8, padded",
    "unsloth": "this program, Unsloth, packed",
    "peft": "this program, PEFT, packed",
}


def make_rows(count: int, distinct: int, longest: int = LONGEST) -> list[dict]:
    """Random tokens out of so many; the last three fifths of a row carry loss, as a reply does."""
    import numpy as np

    rng = np.random.default_rng(3407)
    sigma = 0.8
    lengths = np.clip(rng.lognormal(np.log(MEAN) - sigma**2 / 2, sigma, count), 16, longest).astype(int)
    rows = []
    for length in lengths:
        ids = rng.integers(10, 10 + distinct, length).tolist()
        prompt = length * 2 // 5
        rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return rows


def clock():
    """A callback that notes when each step ended."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self):
            self.ends: list[float] = []

        def on_step_end(self, args, state, control, **kwargs):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.ends.append(time.perf_counter())

    return Clock()


@contextlib.contextmanager
def profiled(path: Path | None):
    """Where the time of the run goes, by kernel and by call, written to a file."""
    if not path:
        yield
        return
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        yield
    tables = [seen.key_averages().table(sort_by=key, row_limit=30) for key in ("cuda_time_total", "cpu_time_total")]
    path.write_text("\n".join(tables))


def fitted(config, rows: list[dict], options):
    """The settings and the passes, as `train.py` plans them for the GPUs' free memory."""
    from bnft.device_maps import model_facts
    from bnft.fitting import fit_passes
    from bnft.placement import Placement
    from bnft.plan import find_gpus
    from bnft.planning import free_now, method_of
    from bnft.world import current_world

    gpus = find_gpus() if options.parallel != "single" else find_gpus()[:1]
    placement = Placement(options.parallel, current_world().size, tuple(gpus), "as set")
    lengths, free = [len(row["input_ids"]) for row in rows], free_now(placement)
    facts = model_facts(config)
    fit = fit_passes(config, facts, method_of(config, facts), placement, lengths, options.steps, free)
    if fit.method.checkpointing == "none":
        config = config.replace("train.gradient_checkpointing", "none")
    largest, peak = max(tokens for tokens, _, _ in fit.shapes), max(fit.peaks) / 2**30
    told = f"{fit.method.checkpointing}, {fit.again:.0%} of the layers computed again, {peak:.2f} GiB planned"
    print(f"passes of at most {largest} tokens, gradient checkpointing {told}", flush=True)
    return config, fit


def ours(options, rows: list[dict], strategy: str):
    """This program's trainer on the rows: (trainer, callback)."""
    from datasets import Dataset

    from bnft.config import resolve
    from bnft.training import LLAMAFineTuner

    config, _ = resolve(
        "llama31-8b-qlora",
        {
            "model.name": str(options.folder),
            "model.dtype": options.dtype,
            "model.load_in_4bit": str(not options.sixteen_bit).lower(),
            "train.strategy": strategy,
            "train.parallel": options.parallel,
            "train.max_steps": str(options.steps),
            "train.eval_steps": "1000",
            "train.save_steps": "1000",
        }
        | ({"train.optimizer": "adamw_torch"} if options.tiny else {}),
    )
    config, fit = fitted(config, rows, options)
    tuner = LLAMAFineTuner(config=config)
    tuner.pass_tokens, tuner.room = options.pass_tokens or fit.pass_tokens or float("inf"), fit.room
    callback = clock()
    data = Dataset.from_list(rows)
    splits = {"train": data, "validation": data.select(range(4))}
    trainer = tuner._trainer(splits, Path(options.scratch), [callback])
    return trainer, callback


def padded(options, rows: list[dict], unsloth: bool):
    """TRL's trainer as notebooks set it up, two rows a pass, padded: (trainer, callback)."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler

    from bnft.config import resolve
    from bnft.steps import StepSampler

    flags = {"model.name": str(options.folder), "model.dtype": options.dtype}
    flags |= {"train.strategy": "unsloth" if unsloth else "peft", "train.parallel": options.parallel}
    flags |= {"model.load_in_4bit": str(not options.sixteen_bit).lower()}
    config, _ = resolve("llama31-8b-qlora", flags)
    from bnft.models import find_model
    from bnft.strategies import choose_strategy

    strategy, _ = choose_strategy(config.train.strategy)
    trainable = strategy.prepare(find_model(config.model.name), config)
    from trl import SFTConfig, SFTTrainer

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, train_dataset=None):
            return SequentialSampler(self.train_dataset)

    order = [i for step in StepSampler(len(rows), STEP_ROWS, config.seed) for i in step]
    train = config.train
    settings = SFTConfig(
        output_dir=options.scratch,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=8,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.scheduler,
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        optim="adamw_torch" if options.tiny else train.optimizer,
        max_steps=options.steps,
        logging_steps=1,
        save_strategy="no",
        fp16=options.dtype == "float16",
        bf16=options.dtype == "bfloat16",
        use_cpu=options.tiny,
        gradient_checkpointing=not unsloth,
        padding_free=False,
        packing=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        report_to="none",
    )
    callback = clock()
    trainer = InOrder(
        model=trainable.model,
        args=settings,
        train_dataset=Dataset.from_list([rows[i] for i in order]),
        processing_class=trainable.tokenizer,
        callbacks=[callback],
    )
    if not unsloth and options.dtype == "float16":
        for parameter in trainable.model.parameters():  # bfloat16 ones end in fp16's gradient scaler
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return trainer, callback


def measure(options) -> dict:
    """One recipe, in this process."""
    started = time.perf_counter()
    if options.recipe in ("seed", "unsloth"):
        from bnft.strategies import choose_strategy

        choose_strategy("unsloth")  # its import comes before torch's other users
    import torch

    rows = make_rows(options.steps * STEP_ROWS, options.distinct, options.longest)
    make = {"seed": (padded, True), "trl": (padded, False), "unsloth": (ours, "unsloth"), "peft": (ours, "peft")}
    build, argument = make[options.recipe]
    trainer, callback = build(options, rows, argument)
    loaded = time.perf_counter()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with profiled(options.profile):
        trainer.train()
    from bnft.steps import StepSampler

    steps = list(StepSampler(len(rows), STEP_ROWS, 3407))[WARM_UP : options.steps]
    seconds = callback.ends[-1] - callback.ends[WARM_UP - 1]
    tokens = sum(len(rows[i]["input_ids"]) for step in steps for i in step)
    return {
        "recipe": RECIPES[options.recipe],
        "rows_per_second": round(sum(map(len, steps)) / seconds, 2),
        "tokens_per_second": round(tokens / seconds),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None,
        "losses": [round(line["loss"], 4) for line in trainer.state.log_history if "loss" in line],
        "load_seconds": round(loaded - started, 1),
        "first_step_seconds": round(callback.ends[0] - loaded, 1),
        "ran_out": getattr(trainer, "ran_out", []),
        "padded": getattr(getattr(trainer, "packer", None), "padded", True),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU",
    }


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_flags(parser)
    parser.add_argument("--recipes", default="seed,unsloth,peft", help=f"some of {', '.join(RECIPES)}")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--longest", type=int, default=LONGEST, help="tokens of the longest row")
    parser.add_argument("--profile", type=Path, help="write a profile of the run here; it slows the run down")
    parser.add_argument("--recipe", help=argparse.SUPPRESS)  # of the process that measures one
    return parser


def add_shared_flags(parser: argparse.ArgumentParser) -> None:
    """What placements_gpu.py is asked as well."""
    parser.add_argument("--folder", type=Path, required=True, help="the model; made when it does not exist")
    parser.add_argument("--tokenizer", type=Path, help="folder with Llama 3.1's tokenizer.json, for a model to be made")
    parser.add_argument("--emulate", choices=["t4"], help="act like T4s")
    parser.add_argument("--distinct", type=int, default=500, help="different tokens; few of them can be learnt")
    parser.add_argument("--pass-tokens", type=int, help="most tokens of a pass in this program's recipes")
    parser.add_argument("--sixteen-bit", action="store_true", help="16-bit LoRA instead of 4-bit")
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # on a CPU: does every line run?


def read_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    options = parser.parse_args()
    options.dtype = "float32" if options.tiny else "float16" if options.emulate else "bfloat16"
    options.sixteen_bit |= options.tiny
    return options


def make_model_unless_there(options: argparse.Namespace) -> None:
    if not options.folder.is_dir():
        from random_8b import make_model

        make_model(options.folder, options.tokenizer)


def main() -> None:
    options = read_options(build_parser())
    options.parallel = "single"
    if options.recipe:
        with tempfile.TemporaryDirectory() as options.scratch, like_a_t4(options.emulate):
            print("RESULT " + json.dumps(measure(options)), flush=True)
        return
    make_model_unless_there(options)
    results = []
    for recipe in options.recipes.split(","):
        command = [sys.executable, __file__, *sys.argv[1:], "--recipe", recipe]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not found:
            print(done.stdout[-2000:], f"\n{RECIPES[recipe]}: ended with {done.returncode}", flush=True)
            continue
        told = [line for line in done.stdout.splitlines() if line.startswith(("passes of", "rows are padded"))]
        print(*told, sep="\n", flush=True)
        results.append(json.loads(found[-1].removeprefix("RESULT ")))
        print(json.dumps(results[-1]), flush=True)
        if options.out:
            options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
