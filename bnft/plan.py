"""What a run will do, before it does it: recipe, steps, memory, disk, hours.

Knows nothing about weights or the trainer.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from bnft.errors import UserError
from bnft.memory_plan import GIB, Memory, Method, ModelFacts, adapter_parameters, fits, memories
from bnft.room import Room
from bnft.run_facts import duration
from bnft.settings import RunConfig

GPU_NEEDED_GIB = 14.0  # what the 8B recipe needs; a T4 offers 14.74
PLOTS = 2**19  # bytes of a run's pictures
SESSION_HOURS = 12  # of Kaggle and Colab
# Measured: a process with PyTorch, transformers and TRL; bytes in memory for a byte of tokenizer.json; and what a heap
# that keeps freed memory (bnft/allocator.py) grows to in a whole run, for a byte of passes that are all of other sizes
# (the laptop recipe: 4.02 GiB in a first run, 3.36 and 3.54 in later ones).
LIBRARIES, CUDA_LIBRARIES, TOKENIZER, HEAP = int(0.65 * GIB), 4 * GIB, 12, 1.65
LOADING = int(1.5 * GIB)  # measured: such a process on a GPU while it reads weights, beside their files


@dataclass(frozen=True)
class Gpu:
    name: str
    gib: float
    capability: tuple[int, int]


def find_gpus() -> list[Gpu]:
    """The CUDA GPUs that PyTorch sees."""
    import torch

    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        found.append(Gpu(properties.name, properties.total_memory / 2**30, (properties.major, properties.minor)))
    return found


def choose_recipe(gpus: list[Gpu]) -> tuple[str, str]:
    """The recipe for this machine, and the reason."""
    large = [gpu for gpu in gpus if gpu.gib >= GPU_NEEDED_GIB]
    if large:
        return "llama31-8b-qlora", f"{large[0].name} with {large[0].gib:.1f} GiB"
    if gpus:
        return "laptop", f"{gpus[0].name} has {gpus[0].gib:.1f} GiB, the 8B model needs {GPU_NEEDED_GIB:.0f}"
    return "laptop", "no CUDA GPU here"


def check_tracker(config: RunConfig, installed: Callable[[str], object] = importlib.util.find_spec) -> None:
    """Refuses an experiment tracker whose package is missing, before any work is done."""
    tracker = config.train.report_to
    if tracker != "none" and not installed(tracker):
        raise UserError(f"--report-to {tracker} needs a package that is not installed", f"pip install {tracker}")


def optimizer_steps(config: RunConfig, conversations: int) -> int:
    """How many optimizer steps the training takes."""
    if config.train.max_steps:
        return config.train.max_steps
    rows = config.train.batch_size * config.train.accumulation
    return max(1, math.ceil(math.ceil(conversations / rows) * config.train.epochs))


@dataclass(frozen=True)
class RunPlan:
    """What a run takes, as far as its model's shape tells it.

    Attributes:
        longest: tokens of the longest conversation.
        tokens: of all optimizer steps together.
        passes: forward and backward passes of them.
        pass_tokens: the most tokens of a pass; None where nothing bounds them.
        checkpointing: "none" where the GPUs hold everything that is kept for the backward pass, else as set.
        room: in which layers keep what they computed; None where that is all of them, or where GPUs share a model.
        again: share of the layers' work that is done a second time for the backward pass.
        memory: of each GPU, or of the CPU's process.
        peaks: bytes of each GPU.
        host: bytes of a process.
        mapped: bytes of the weights' files, which a process on a GPU has in memory besides while it reads them, and
            which the system takes back when it needs room.
        disk: bytes of "run" and of "merge".
        seconds: of "training" and of "evaluation".
        speed: where the seconds come from.
    """

    steps: int
    longest: int
    tokens: int
    passes: int
    pass_tokens: int | None
    checkpointing: str
    room: Room | None
    again: float
    memory: tuple[Memory, ...]
    peaks: tuple[int, ...]
    host: int
    mapped: int
    disk: dict[str, int]
    seconds: dict[str, float]
    speed: str

    def applied_to(self, config: RunConfig) -> RunConfig:
        """The settings of the training itself: without gradient checkpointing where the GPUs have room."""
        return config.replace("train.gradient_checkpointing", "none") if self.checkpointing == "none" else config

    @property
    def resident(self) -> int:
        """The most of a process that is in memory at one time, as the system counts it."""
        return max(self.host, LOADING + self.mapped) if self.mapped else self.host

    def record(self) -> dict:
        """As run.json holds it, with the names of what is measured later."""
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "passes": self.passes,
            "pass_tokens": self.pass_tokens,
            "gradient_checkpointing": self.checkpointing,
            "computed_again": round(self.again, 3),
            "gpu_gib": [_gib(peak) for peak in self.peaks],
            "host_gib": _gib(self.resident),
            "disk_gib": {name: _gib(size) for name, size in self.disk.items()},
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "speed": self.speed,
        }

    def lines(self) -> list[tuple[str, str]]:
        """Name and text of each line of the plan."""
        bound = "" if self.pass_tokens is None else f" of at most {self.pass_tokens:,} tokens"
        lines = [
            (
                "tokens",
                f"{self.tokens:,} in {self.passes:,} passes{bound}, the longest conversation has {self.longest:,}",
            ),
        ]
        for number, (memory, peak) in enumerate(zip(self.memory, self.peaks, strict=False)):
            parts = {
                "weights": memory.weights,
                "adapter and gradients": memory.adapter + memory.gradients,
                "optimizer": memory.optimizer,
                "activations and logits": peak - memory.fixed,
            }
            told = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
            told += f"; {self.again:.1%} of the layers computed again" if self.again else "; nothing computed again"
            lines.append((f"GPU {number}", f"{peak / GIB:.1f} GiB at most: {told}"))
        disk = f"{_size(self.disk['run'])} for the run, {_size(self.disk['merge'])} more for publish.py to merge it"
        hours = ", ".join(f"{name} {duration(value)}" for name, value in self.seconds.items())
        files = f", and weights' files of {_size(self.mapped)} while they are read" if self.mapped else ""
        return [
            *lines,
            ("host memory", f"{_size(self.host)} a process{files}"),
            ("disk", disk),
            ("time", f"{hours} ({self.speed})"),
        ]

    def warnings(self, config: RunConfig, free_disk: int, free_host: int) -> list[str]:
        """What is likely to go wrong although the run can begin."""
        found = []
        minutes, limit = sum(self.seconds.values()) / 60, config.train.max_minutes
        if limit and self.seconds["training"] > limit * 60:
            found.append(
                f"training takes about {duration(self.seconds['training'])} and is stopped after --max-minutes "
                f"{limit:g}, with the best checkpoint kept"
            )
        elif minutes > SESSION_HOURS * 60:
            found.append(
                f"{minutes / 60:.0f} hours are more than a session of {SESSION_HOURS}: use --max-minutes "
                f"{SESSION_HOURS * 50}, --max-steps or --eval-samples, and --resume in the next session"
            )
        if self.disk["run"] > free_disk:
            found.append(f"the run writes {_size(self.disk['run'])}, and {_size(free_disk)} are free: --output-dir")
        elif sum(self.disk.values()) > free_disk:
            found.append(
                f"merging takes {_size(self.disk['merge'])} more, and {_size(free_disk)} are free: publish.py "
                "--low-disk"
            )
        if self.host > free_host:
            found.append(f"the process takes {_size(self.host)} of memory, and {_size(free_host)} are free")
        return found


def _gib(size: float) -> float:
    return round(size / GIB, 2)


def _size(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"


def disk_bytes(facts: ModelFacts, method: Method, checkpoints: int, tokenizer: int, data: int) -> dict[str, int]:
    """What the run's folder comes to, and what a merged model takes.

    Args:
        checkpoints: that stay, the best among them.
        tokenizer: bytes of its files, a copy of which is in each.
        data: bytes of the conversations, which are written with their split.
    """
    adapter = 4 * adapter_parameters(facts, method)
    optimizer = memories(facts, method, "single", 1)[0].optimizer
    run = checkpoints * (adapter + optimizer + tokenizer) + adapter + tokenizer + data + PLOTS
    return {"run": run, "merge": 2 * facts.parameters + tokenizer}


def host_bytes(facts: ModelFacts, method: Method, peak: int, on_gpu: bool, pass_tokens: int, tokenizer: int) -> int:
    """A process' memory outside of GPUs.

    Args:
        peak: of the training, where that happens there.
        pass_tokens: whose layer inputs Unsloth's checkpointing keeps there.
        tokenizer: bytes of its files.
    """
    if not on_gpu:
        fixed = memories(facts, method, "single", 1)[0].fixed
        return LIBRARIES + TOKENIZER * tokenizer + fixed + round(HEAP * (peak - fixed))
    offloaded = facts.layers * facts.hidden * method.element * pass_tokens * (method.checkpointing == "unsloth")
    return (
        CUDA_LIBRARIES + 2 * facts.embedding_parameters * method.element + offloaded
    )  # the largest tensor, and a copy


def check_fits(config: RunConfig, facts: ModelFacts, method: Method, way: str, free: list[int], longest: int) -> None:
    """Refuses what cannot be trained here, before anything is downloaded.

    Args:
        free: bytes of each GPU that is used.
        longest: tokens of the longest conversation; the fewest that are possible before that is known.

    Raises:
        UserError: says how much is missing, and which settings would make it fit.
    """
    if not free or fits(facts, method, way, free, longest):
        return
    ways = []
    if not method.four_bit and fits(facts, replace(method, four_bit=True), way, free, longest):
        ways.append("--model.load_in_4bit true")
    if way == "single" and len(free) > 1 and fits(facts, method, "layers", free, longest):
        ways.append("--parallel layers")
    if method.checkpointing == "none" and fits(facts, replace(method, checkpointing="torch"), way, free, longest):
        ways.append("--train.gradient_checkpointing torch")
    shorter = next((n for n in range(longest // 64 * 64, 63, -64) if fits(facts, method, way, free, n)), None)
    if shorter:
        ways.append(f"--model.max_seq_length {shorter}")
    peaks = [memory.peak(longest) for memory in memories(facts, method, way, len(free))]
    told = ", ".join(
        f"GPU {i}: {peak / GIB:.1f} of {size / GIB:.1f} GiB"
        for i, (peak, size) in enumerate(zip(peaks, free, strict=True))
    )
    raise UserError(
        f"{config.model.name} cannot be trained here with conversations of {longest} tokens ({told})",
        f"Use {' or '.join(ways)}." if ways else "Use a smaller --model, or a larger GPU.",
    )


def describe(config: RunConfig, placement: object, report: dict, folder: str, plan: RunPlan | None = None) -> str:
    """The plan as text: what will be read, trained, evaluated and written."""
    splits = report["splits"]
    conversations = {name: splits[name]["conversations"] for name in splits}
    steps = optimizer_steps(config, conversations["train"])
    rows = config.train.batch_size * config.train.accumulation
    bits = "4-bit" if config.model.load_in_4bit else config.model.dtype
    samples = config.eval.samples
    lines = [
        ("model", f"{config.model.name} ({bits}), LoRA r={config.lora.r} on {', '.join(config.lora.target_modules)}"),
        ("machine", str(placement)),
        ("data", f"{report['source']}: " + ", ".join(f"{n} {name}" for name, n in conversations.items())),
        (
            "training",
            f"{steps} steps of {rows} conversations ({config.train.batch_size} x {config.train.accumulation}), "
            f"{steps * rows / conversations['train']:.2f} epochs, learning rate {config.train.learning_rate:g} "
            f"{config.train.scheduler}",
        ),
        ("checkpoints", f"every {config.train.save_steps} steps, {config.train.keep_checkpoints} kept"),
        ("evaluation", f"base and tuned: likelihood of the whole test split, replies to {samples} rows of it"),
        ("writes", folder),
        *(plan.lines() if plan else [("memory", "unknown: the model's config.json does not tell its shape")]),
    ]
    return "\n".join(f"  {name:<12}{text}" for name, text in lines)
