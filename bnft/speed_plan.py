"""How long a run takes: floating-point operations over what a machine sustains, or over speeds that were measured.

Knows nothing about memory, files or models' insides; it is handed counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from bnft.memory_plan import Method, ModelFacts

# Dense 16-bit tensor TFLOP/s and GB/s of memory, from the makers' data sheets. The longer name comes first.
GPUS = {
    "H200": (989, 4800),
    "H100 PCIe": (756, 2000),
    "H100": (989, 3350),
    "A100": (312, 1555),
    "L40S": (362, 864),
    "L40": (181, 864),
    "L4": (121, 300),
    "A10G": (70, 600),
    "A10": (125, 600),
    "A6000": (155, 768),
    "RTX 4090": (165, 1008),
    "RTX 3090": (71, 936),
    "V100": (112, 900),
    "P100": (19, 732),
    "T4": (65, 320),
}
UNKNOWN_GPU = (65, 320)  # as slow as the slowest that a recipe is for
# Shares of that peak which fine-tuning sustains, and the seconds that a pass takes besides, for Python to launch its
# kernels. Measured on an H200: 13,550 tokens a second in passes of 4,970 tokens, 15,400 in passes of 11,470.
# Seen on T4s (70 W, no bfloat16): 4,800 rows and three validations in 2 h 35 min, one card at work at a time, 16.
SUSTAINED, SUSTAINED_BEFORE_AMPERE = 0.5, 0.25
READING = 0.8  # of these shares: measured on an H200, 28,000 tokens a second are 406 TFLOP/s
LAUNCHING_PASS = 0.078
PROCESSES = 0.96  # of the speed of several processes together, seen: 1.92 times with two
# Shares of a CPU's rate of products (bnft/cpu_speed.py), and the bytes a second of its memory. Measured with the laptop
# recipe on 2 cores of an AMD EPYC at 115 GFLOP/s: 92 in training, 88 in reading; 0.26 s a decoding step of 16 rows.
SUSTAINED_ON_CPU, DECODING_ON_CPU = 0.78, 0.45
CPU_GB_A_SECOND = 10
# Seconds a decoding step takes on a GPU however few the rows: launched kernel by kernel, and as a CUDA graph. Measured
# on an H200: 16.4 ms a step of 256 rows so.
LAUNCHING, LAUNCHING_GRAPH = 0.04, 0.003


@dataclass(frozen=True)
class Work:
    """What a run goes through.

    Attributes:
        tokens: of all optimizer steps together.
        passes: that they are made of.
        reply_share: share of tokens that carry loss.
        again: share of the layers' work that gradient checkpointing does a second time.
        read: tokens of all validations together.
        tested: tokens of the test split, read once by the base and once by the tuned model.
        replies: conversations that are replied to, by each of the two.
        prompts: tokens of these, read before the replies.
        reply_batch: how many at a time.
        reply_tokens: the longest reply.
        recorded: whether a GPU's decoding steps are recorded as CUDA graphs.
    """

    steps: int
    tokens: int
    passes: int
    reply_share: float
    again: float
    read: int
    tested: int
    replies: int
    prompts: int
    reply_batch: int
    reply_tokens: int
    recorded: bool = False


@dataclass(frozen=True)
class Speeds:
    """Attributes:
    training, reading: tokens a second.
    decoding: seconds of a step that gives every row of a batch a token; 0 where it was not measured.
    source: where these come from.
    host: bytes of the process that was measured, 0 where none was.
    """

    training: float
    reading: float
    decoding: float
    source: str
    host: int = 0

    def with_processes(self, processes: int) -> Speeds:
        """Of so many processes that train together, where these are of one."""
        together = 1 if processes == 1 else processes * PROCESSES
        return replace(self, training=self.training * together)


def operations(facts: ModelFacts, reply_share: float, again: float) -> tuple[float, float]:
    """Floating-point operations of a token in training and in reading.

    2 a parameter forwards, 2 backwards, 2 for the share `again` (https://arxiv.org/abs/2001.08361, frozen weights have
    no gradient of their own); the head for reply tokens alone, never again. Attention's scores are left out: less than
    a twentieth at 1,000 tokens.
    """
    layers, head = facts.layers * facts.layer_parameters, reply_share * facts.embedding_parameters
    return (4 + 2 * again) * layers + 4 * head, 2 * (layers + head)


def sustained(gpu: str, capability: tuple[int, int]) -> tuple[float, float]:
    """Operations, and bytes of its memory, that a GPU of this name goes through in a second of fine-tuning."""
    peak, bandwidth = next((figures for known, figures in GPUS.items() if known in gpu), UNKNOWN_GPU)
    return peak * 1e12 * (SUSTAINED if capability >= (8, 0) else SUSTAINED_BEFORE_AMPERE), bandwidth * 1e9


def seconds_of_passes(facts: ModelFacts, rate: float, passes: int, tokens: int, again: float) -> float:
    """Of so many passes on a GPU, their tokens taken together; the head, which is the same for all, left out."""
    return passes * LAUNCHING_PASS + tokens * operations(facts, 0.0, again)[0] / rate


def estimate_speeds(
    facts: ModelFacts,
    method: Method,
    work: Work,
    gpu: tuple[str, tuple[int, int]] | None,
    processes: int,
    cpu_rate: Callable[[], float],
) -> Speeds:
    """Speeds from the tables above.

    Args:
        gpu: name and compute capability; None for a CPU.
        processes: how many train together; evaluation is the work of one.
        cpu_rate: measures operations a second of the CPU's products; called only where there is no GPU.
    """
    training, reading = operations(facts, work.reply_share, work.again)
    weights = facts.parameters * method.element
    if gpu is None:
        products, bandwidth, launching, passing = cpu_rate(), CPU_GB_A_SECOND * 1e9, 0.0, 0.0
        rate, decoding_rate = SUSTAINED_ON_CPU * products, DECODING_ON_CPU * products
        reading_rate = rate
        source = f"CPU at {products / 1e9:.3g} GFLOP/s"
    else:
        rate, bandwidth = sustained(*gpu)
        reading_rate = decoding_rate = READING * rate
        launching, passing = LAUNCHING_GRAPH if work.recorded else LAUNCHING, LAUNCHING_PASS
        source = f"{gpu[0]} at {rate / 1e12:.0f} TFLOP/s"
        weights *= 2 if method.four_bit else 1  # unpacked for every step: written, then read
    decoding = launching + weights / bandwidth + 2 * facts.parameters * work.reply_batch / decoding_rate
    trained = work.tokens / (work.tokens * training / rate + work.passes * passing)
    return Speeds(trained, reading_rate / reading, decoding, f"estimated, {source}").with_processes(processes)


def seconds_of(work: Work, speeds: Speeds, processes: int = 1) -> dict[str, float]:
    """Seconds of training, validations among them, and of the evaluation afterwards."""
    batches = math.ceil(work.replies / work.reply_batch)
    return {
        "training": work.tokens / speeds.training + work.read / speeds.reading / processes,
        "evaluation": 2
        * ((work.tested + work.prompts) / speeds.reading + batches * work.reply_tokens * speeds.decoding),
    }
