"""Ten real optimizer steps, and a little of the evaluation, in a process of their own: how fast this machine really is.

What is measured is remembered for plans and runs with the same settings. Knows nothing about formulas.
"""

from __future__ import annotations

import math
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from bnft.evaluation import Evaluator, choose_rows, rows_of
from bnft.fitting import step_tokens
from bnft.launch import end_with_parent
from bnft.memory_plan import GIB
from bnft.placement import Placement
from bnft.plan import RunPlan
from bnft.planning import make_plan, remember_speeds
from bnft.records import now
from bnft.settings import RunConfig
from bnft.speed_plan import Speeds
from bnft.token_cache import tokenised
from bnft.training import LLAMAFineTuner
from bnft.world import World

STEPS = 10
WARM_UP = 2  # steps in which libraries set themselves up and kernels are compiled
READ = 16  # conversations
WRITTEN = 48  # tokens of each reply


def calibrate(config: RunConfig, splits: dict[str, Sequence], placement: Placement) -> None:
    """Measures with one process, which has all the GPUs only where the model is spread over them; and remembers.

    Raises:
        UserError: whatever the training itself would raise.
    """
    plan = make_plan(config, placement, splits, [int(gpu.gib * GIB) for gpu in placement.gpus])
    settings = plan.applied_to(config) if plan else config
    print(f"measuring {STEPS} steps of the real training", flush=True)
    # A fresh process: its peak memory is its own, and nothing of it stays on a GPU.
    way = "layers" if placement.way == "layers" else "single"
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=end_with_parent) as pool:
        speeds = pool.submit(_measure, settings.replace("train.parallel", way), splits, plan).result()
    remember_speeds(config, placement, speeds)


def _measure(config: RunConfig, splits: dict[str, Sequence], plan: RunPlan | None) -> Speeds:
    import torch

    from bnft.allocator import keep_freed_memory

    if not torch.cuda.is_available():
        keep_freed_memory()
    changes = {"max_steps": STEPS, "eval_steps": STEPS, "save_steps": STEPS, "max_minutes": None, "report_to": "none"}
    changes |= {"validation_samples": min(READ, len(splits["validation"]))}
    settings = config.model_dump()
    short = RunConfig.model_validate(settings | {"train": settings["train"] | changes})
    tuner = LLAMAFineTuner(config=short, world=World())
    tuner.follow(plan)
    with tempfile.TemporaryDirectory() as folder:
        result = tuner.train(splits["train"], splits["validation"], folder)
    tokens = step_tokens(config, result.tokens["train"], STEPS)
    trained = sum(tokens[WARM_UP:]) / (result.step_ends[-1] - result.step_ends[WARM_UP - 1])
    reading, decoding = _evaluation(tuner, config, splits["test"])
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return Speeds(trained, reading, decoding, f"measured in {STEPS} steps, {now()}", host)


def _evaluation(tuner: LLAMAFineTuner, config: RunConfig, test: Sequence) -> tuple[float, float]:
    """Tokens read a second, and seconds of a decoding step; 0 on a GPU, where hundreds of replies are written together,
    and by another process than this one.
    """
    import torch

    longest = min(WRITTEN, config.generation.max_new_tokens)
    evaluator = Evaluator(tuner.model, tuner.tokenizer, config.replace("generation.max_new_tokens", longest))
    tuner.model.eval()
    some = _of_middle_length(test)
    evaluator.likelihoods(some[:1])
    started = time.monotonic()
    evaluator.likelihoods(some)
    seconds = time.monotonic() - started
    prompt, limit = config.data.system_prompt, config.model.max_seq_length
    read = sum(tokenised(some, tuner.tokenizer, prompt, limit, "test")["length"]) / seconds
    if torch.cuda.is_available():
        return read, 0.0
    rows = choose_rows(rows_of(test), config.eval.batch_size, config.seed)
    started = time.monotonic()
    replies = evaluator.generate(rows)
    steps = math.ceil(len(rows) / config.eval.batch_size) * max(reply.tokens for reply in replies)
    return read, (time.monotonic() - started) / max(1, steps)


def _of_middle_length(conversations: Sequence) -> list:
    """As many as are read; of like length, as the rows of a batch are when a whole split is read."""
    by_length = sorted(conversations, key=lambda one: sum(len(message["content"]) for message in one.messages))
    start = max(0, (len(by_length) - READ) // 2)
    return by_length[start : start + READ]
