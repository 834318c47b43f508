"""The plan of a run for this machine and these conversations: the formulas, given what only files and GPUs know.

Composes bnft/memory_plan.py, room.py, fitting.py, speed_plan.py and plan.py; holds no formula. Loads no weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import resource
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from bnft.config import cache_dir
from bnft.cpu_speed import product_rate
from bnft.data import ProcessedData
from bnft.device_maps import model_facts, quiet
from bnft.errors import UserError
from bnft.fitting import Fit, fit_passes
from bnft.memory_plan import GIB, Method, ModelFacts, memory_of
from bnft.models import ModelSource, find_model, load_tokenizer, resolve_dtype
from bnft.placement import Placement, step_rows
from bnft.plan import RunPlan, check_fits, describe, disk_bytes, host_bytes, optimizer_steps
from bnft.records import cpu_cores, read_json
from bnft.room import reply_rows
from bnft.settings import RunConfig
from bnft.speed_plan import Speeds, Work, estimate_speeds, seconds_of
from bnft.strategies import why_not_unsloth
from bnft.token_cache import tokenised
from bnft.whole_files import write_json

SHORTEST = 64  # tokens; with conversations of that length a model can be tried before its tokenizer is here
TOKENIZER_FILES = 20 * 2**20  # where it is on the Hub still: Llama's


def plan_text(config: RunConfig, placement: Placement, data: ProcessedData, output_dir: str, name: str) -> str:
    """What `train.py --plan` says."""
    plan = make_plan(config, placement, data.splits, _all_of(placement))
    text = describe(config, placement, data.report, f"{output_dir}/{name}", plan)
    return "\n".join([text, *(f"  warning: {warning}" for warning in plan_warnings(plan, config, output_dir))])


def plan_warnings(plan: RunPlan | None, config: RunConfig, folder: str | Path) -> list[str]:
    import psutil

    there = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.exists())
    return plan.warnings(config, shutil.disk_usage(there).free, psutil.virtual_memory().available) if plan else []


def check_model(config: RunConfig, placement: Placement) -> None:
    """Refuses a model that no conversation fits beside, from its config.json alone."""
    facts = model_facts(config)
    if facts:
        check_fits(config, facts, method_of(config, facts), placement.way, _all_of(placement), SHORTEST)


def method_of(config: RunConfig, facts: ModelFacts) -> Method:
    """How the strategy that will be used trains here, without importing it."""
    fused = config.train.strategy != "peft" and not why_not_unsloth()
    dtype, _ = resolve_dtype(config.model.dtype)
    kernel = _attention_kernel(dtype, facts, config.model.max_seq_length)
    return Method.of(config, dtype, "unsloth" if fused else "peft", _on_gpu(), kernel)


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _attention_kernel(dtype: str, facts: ModelFacts, longest: int) -> str:
    import torch

    from bnft.packing import attention_kernel

    window = facts.window if facts.window < longest else 0
    device = torch.device("cuda" if _on_gpu() else "cpu")
    return attention_kernel(device, getattr(torch, dtype), facts.head_size, bool(window))


def _all_of(placement: Placement) -> list[int]:
    return [int(gpu.gib * GIB) for gpu in placement.gpus]


def free_now(placement: Placement) -> list[int]:
    """Bytes that this process can have of each of its GPUs; one for each process where these share the model."""
    import torch

    from bnft.gpu_memory import free_bytes

    if not placement.gpus:
        return []
    if placement.way == "layers":
        return [free_bytes(torch.device("cuda", index)) for index in range(len(placement.gpus))]
    own = free_bytes(torch.device("cuda", torch.cuda.current_device()))
    return [own] * (placement.processes if placement.way == "fsdp" else 1)


def make_plan(
    config: RunConfig, placement: Placement, splits: dict[str, Sequence], free: Sequence[int]
) -> RunPlan | None:
    """The plan of the training of these conversations; None where config.json does not tell the model's shape.

    Args:
        free: bytes of each GPU.

    Raises:
        UserError: it cannot fit; says which settings would make it.
    """
    facts = model_facts(config)
    if facts is None:
        return None
    method = method_of(config, facts)
    source = find_model(config.model.name, config.model.revision, announce=quiet)
    tokenizer, limit = load_tokenizer(source), config.model.max_seq_length
    rows = tokenised(splits["train"], tokenizer, config.data.system_prompt, limit, "train")
    lengths, replies = rows["length"][:], sum(rows["reply_tokens"])
    check_fits(config, facts, method, placement.way, list(free), max(lengths))

    steps = optimizer_steps(config, len(lengths))
    fit = fit_passes(config, facts, method, placement, lengths, steps, free)
    method = fit.method
    work = _work(config, splits, lengths, replies, fit)
    if free and placement.way in ("single", "ddp"):  # a model on one GPU, as BatchWriter wants it
        work = replace(work, reply_batch=_written_together(facts, method, min(free), work), recorded=True)
    gpu = placement.gpus[0] if placement.gpus else None
    about = (gpu.name, gpu.capability) if gpu else None
    files = _tokenizer_files(source)
    tokens = math.ceil(work.tokens / steps / step_rows(config) * config.train.batch_size)
    speeds = known_speeds(config, placement)
    if not (speeds and speeds.decoding):
        rate = partial(product_rate, tokens, facts.hidden, facts.intermediate)
        estimated = estimate_speeds(facts, method, work, about, placement.processes, rate)
        speeds = replace(speeds, decoding=estimated.decoding) if speeds else estimated
    needed = host_bytes(facts, method, fit.peaks[0], gpu is not None, fit.pass_tokens or 0, files)
    return RunPlan(
        steps=steps,
        longest=max(lengths),
        tokens=work.tokens,
        passes=len(fit.shapes),
        pass_tokens=fit.pass_tokens,
        checkpointing=method.checkpointing,
        room=fit.room,
        again=fit.again,
        memory=tuple(fit.memory) if gpu else (),
        peaks=fit.peaks if gpu else (),
        host=max(0 if gpu else speeds.host, needed),
        mapped=_weights_files(source, facts, method) if gpu else 0,
        disk=_disk(config, facts, method, splits, files, steps),
        seconds=seconds_of(work, speeds, placement.processes),
        speed=speeds.source,
    )


def _tokenizer_files(source: ModelSource) -> int:
    files = Path(source.base).glob("tokenizer*") if source.is_local else ()
    return sum(file.stat().st_size for file in files) or TOKENIZER_FILES


def _weights_files(source: ModelSource, facts: ModelFacts, method: Method) -> int:
    """Bytes of them; where they are on the Hub still, those of a repository of such weights as are asked for."""
    files = Path(source.base).glob("model*.safetensors") if source.is_local else ()
    there = sum(file.stat().st_size for file in files)
    return there or (memory_of(facts, method).weights if method.four_bit else 2 * facts.parameters)


def _written_together(facts: ModelFacts, method: Method, free: int, work: Work) -> int:
    """How many replies bnft/batch_generation.py writes at a time."""
    from bnft.batch_generation import MOST_ROWS

    positions = work.prompts // max(1, work.replies) + work.reply_tokens
    return min(MOST_ROWS, max(1, work.replies), reply_rows(facts, method, free, positions))


def _disk(
    config: RunConfig, facts: ModelFacts, method: Method, splits: dict[str, Sequence], tokenizer: int, steps: int
) -> dict[str, int]:
    text = sum(len(m["content"].encode()) for part in splits.values() for c in part for m in c.messages)
    made = math.ceil(steps / config.train.save_steps)
    return disk_bytes(facts, method, min(made, config.train.keep_checkpoints), tokenizer, text)


def _work(config: RunConfig, splits: dict, lengths: Sequence[int], own_replies: int, fit: Fit) -> Work:
    mean, steps, asked = sum(lengths) / len(lengths), len(fit.parts), config.train.validation_samples
    validated = len(splits["validation"]) if asked == "all" else min(asked, len(splits["validation"]))
    exchanges = sum(len(c.messages) // 2 for c in splits["test"])
    samples = config.eval.samples
    replies = exchanges if samples == "all" else min(samples, exchanges)
    tested, reply_share = round(len(splits["test"]) * mean), own_replies / sum(lengths)
    return Work(
        steps=steps,
        tokens=sum(sum(part) for step in fit.parts for part in step),
        passes=len(fit.shapes),
        reply_share=reply_share,
        again=fit.again,
        read=round(steps // config.train.eval_steps * validated * mean),
        tested=tested,
        replies=replies,
        prompts=round(tested * (1 - reply_share) * replies / max(1, exchanges)),
        reply_batch=config.eval.batch_size,
        reply_tokens=config.generation.max_new_tokens,
    )


def _speeds_file(config: RunConfig, placement: Placement) -> Path:
    """One file for everything that decides how fast this machine trains and writes."""
    deciding = {"strategy", "batch_size", "accumulation", "fit_batch", "packing", "optimizer", "gradient_checkpointing"}
    train = config.train.model_dump(include=deciding)
    about: list[Any] = [config.model.model_dump(), config.lora.model_dump(), train, config.data.path]
    machine = [gpu.name for gpu in placement.gpus[:1]] or [f"{cpu_cores()} cores"]
    about += [config.eval.batch_size, config.generation.max_new_tokens, machine, placement.way == "layers"]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "speeds" / f"{digest[:32]}.json"


def known_speeds(config: RunConfig, placement: Placement) -> Speeds | None:
    """What `--calibrate` measured with one process under the same settings on such a machine."""
    try:
        measured_once = Speeds(**read_json(_speeds_file(config, placement)))
    except (UserError, TypeError):  # never measured, or damaged: they can be estimated
        return None
    return measured_once.with_processes(placement.processes)


def remember_speeds(config: RunConfig, placement: Placement, speeds: Speeds) -> None:
    file = _speeds_file(config, placement)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, asdict(speeds))


def measured(folder: Path, placement: Placement) -> dict[str, Any]:
    """What this process has taken so far, under the plan's names."""
    import torch

    own: Sequence[int] = ()
    if placement.gpus:
        own = range(len(placement.gpus)) if placement.way == "layers" else [torch.cuda.current_device()]
    gpus = [round(torch.cuda.max_memory_allocated(index) / GIB, 2) for index in own]
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return {"gpu_gib": gpus, "host_gib": round(host / GIB, 2), "disk_gib": {"run": round(written / GIB, 2)}}
