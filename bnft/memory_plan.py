"""What a training run takes of a GPU's memory, told from a model's shape before a byte of it is there.

    facts = read_facts(json.loads(Path("config.json").read_text()))
    method = Method.of(config, "float16")
    if fits(facts, method, "single", [free_bytes], longest_row):
        tokens = token_budget(memory_of(facts, method), free_bytes, longest_row, rows, all_tokens)

Peaks are what PyTorch's allocator has given out (`max_memory_allocated`). Knows nothing about GPUs' names, files, time
or the training loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bnft.settings import RunConfig

GIB = 2**30
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# bytes of AdamW's two moments: https://arxiv.org/abs/1711.05101; in 8 bit with a float32 scale for each block of 256
# values, https://arxiv.org/abs/2110.02861
OPTIMIZER_BYTES = {"adamw_torch": 8.0, "adamw_8bit": 2 + 8 / 256, "paged_adamw_8bit": 2 + 8 / 256}
# NF4 with double quantisation, https://arxiv.org/abs/2305.14314: 4 bit a weight, 8 bit a block of 64 of them, 32 bit a
# block of 256 such blocks
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
LOSS_CHUNK, CPU_LOSS_CHUNK = 512, 64  # reply tokens whose logits exist at one time, as in bnft/reply_loss.py
CONTEXT = GIB // 2  # CUDA's own, its kernels' and cuBLAS' workspaces: not the allocator's, or before the first step
FRAGMENTATION = 0.03  # share of a GPU that lies in pieces too small to be used


@dataclass(frozen=True)
class ModelFacts:
    """A decoder's shape."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    norms: int = 2  # of a layer
    window: int = 0  # tokens that some layers look back at; 0 where all look at everything

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's matrices, by the names that adapters are put on."""
        queries, keys = self.heads * self.head_size, self.key_value_heads * self.head_size
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def layer_parameters(self) -> int:
        return sum(inputs * outputs for inputs, outputs in self.projections.values())

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Of the whole model, norms left out."""
        return self.layers * self.layer_parameters + self.embedding_parameters * (1 if self.tied else 2)


def read_facts(settings: Mapping) -> ModelFacts | None:
    """The shape in a model's config.json; None for a model that is no plain decoder with gated MLPs."""
    own = settings.get("text_config") or settings
    family = str(own.get("model_type", ""))
    experts = any(own.get(name) for name in ("num_local_experts", "num_experts", "n_routed_experts"))
    try:
        heads, hidden = own["num_attention_heads"], own["hidden_size"]
        tied = settings.get("tie_word_embeddings", own.get("tie_word_embeddings"))
        facts = ModelFacts(
            layers=own["num_hidden_layers"],
            hidden=hidden,
            intermediate=own["intermediate_size"],
            heads=heads,
            key_value_heads=own.get("num_key_value_heads") or heads,
            head_size=own.get("head_dim") or hidden // heads,
            vocabulary=own["vocab_size"],
            tied=family.startswith("gemma") if tied is None else bool(tied),
            norms=4 if family.startswith(("gemma2", "gemma3")) else 2,
            window=(own.get("sliding_window") or 0) if own.get("use_sliding_window", True) else 0,
        )
    except KeyError:
        return None
    return None if experts else facts


@dataclass(frozen=True)
class Method:
    """What of the settings decides about memory.

    Attributes:
        element: bytes of a number of the compute type.
        checkpointing: "none", "torch" (layer inputs stay on the GPU) or "unsloth" (they go to the host).
        fused: with Unsloth's kernels.
        attention: over packed rows as they are, "flash" or "efficient", or over a "table" of them (bnft/packing.py).
        chunk: reply tokens whose logits exist at one time.
    """

    element: int = 2
    four_bit: bool = True
    r: int = 16
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    optimizer: str = "adamw_8bit"
    checkpointing: str = "torch"
    fused: bool = False
    attention: str = "table"
    chunk: int = LOSS_CHUNK

    @classmethod
    def of(cls, config: RunConfig, dtype: str, strategy="peft", on_gpu=True, attention="table") -> Method:
        """Args:
        dtype: the compute type as resolved, "float32", "float16" or "bfloat16".
        strategy: the one that is used; only Unsloth's own checkpointing leaves the GPU.
        attention: what the GPU has for packed rows.
        """
        checkpointing = config.train.gradient_checkpointing
        if checkpointing == "unsloth" and strategy != "unsloth":
            checkpointing = "torch"
        return cls(
            element=BYTES[dtype],
            four_bit=config.model.load_in_4bit,
            r=config.lora.r,
            targets=tuple(config.lora.target_modules),
            optimizer=config.train.optimizer,
            checkpointing=checkpointing,
            fused=strategy == "unsloth",
            attention=attention if config.train.packing else "table",
            chunk=LOSS_CHUNK if on_gpu else CPU_LOSS_CHUNK,
        )


def adapter_parameters(facts: ModelFacts, method: Method) -> int:
    """Two matrices of rank r beside each target: r (inputs + outputs), https://arxiv.org/abs/2106.09685."""
    return facts.layers * _layer_adapter(facts, method)


def _layer_adapter(facts: ModelFacts, method: Method) -> int:
    return sum(method.r * sum(shape) for name, shape in facts.projections.items() if name in method.targets)


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU.

    Attributes:
        kept: a token, from the forward pass to the backward pass.
        kept_table: likewise, a place in the table of rows that attention works on.
        working: a token, while one layer is computed, again or backwards.
        attention: a place in the table of rows that attention works on, while one layer is computed.
        unpacked: the largest matrix in its compute type, where weights are in 4 bit.
        logits: of the tokens whose loss is computed at one time.
        scored: a reply token's hidden states and their gradients.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    kept: int
    kept_table: int
    working: int
    attention: int
    unpacked: int
    logits: int
    scored: int

    @property
    def fixed(self) -> int:
        return self.weights + self.adapter + self.gradients + self.optimizer

    def activations(self, tokens: int, longest: int = 0, rows: int = 1) -> int:
        """The most that a pass of so many tokens takes beside what is always there."""
        table = max(tokens, longest * rows)
        layer = tokens * self.working + table * self.attention + self.unpacked
        loss = tokens * self.scored + self.logits
        return tokens * self.kept + table * self.kept_table + max(layer, loss)

    def peak(self, tokens: int, longest: int = 0, rows: int = 1) -> int:
        return self.fixed + self.activations(tokens, longest, rows)


def memory_of(
    facts: ModelFacts, method: Method, layers: int | None = None, head: bool = True, embedding: bool = True
) -> Memory:
    """A GPU's memory that holds so many layers, the head and the embedding: everything, unless told otherwise."""
    layers = facts.layers if layers is None else layers
    matrix = NF4_BYTES if method.four_bit else method.element
    ends = facts.embedding_parameters * (1 if facts.tied else head + embedding) * (head or embedding)
    adapter = layers * _layer_adapter(facts, method)
    saved, passing, attention = _layer_bytes(facts, method)
    boundary = facts.hidden * method.element
    whole = method.checkpointing == "none"
    stored = {"none": saved, "torch": boundary, "unsloth": 0}[method.checkpointing]
    largest = max(inputs * outputs for inputs, outputs in facts.projections.values())
    return Memory(
        weights=round(layers * facts.layer_parameters * matrix + ends * method.element),
        adapter=4 * adapter,
        gradients=4 * adapter,
        optimizer=round(OPTIMIZER_BYTES[method.optimizer] * adapter),
        kept=layers * stored,
        kept_table=layers * attention * whole,
        working=passing if whole else saved + passing,
        attention=0 if whole else attention,
        unpacked=2 * largest * method.element if method.four_bit else 0,
        logits=head * method.chunk * facts.vocabulary * (method.element + 4 + 4),
        scored=head * 3 * boundary,
    )


def memories(facts: ModelFacts, method: Method, way: str, gpus: int) -> list[Memory]:
    """Each GPU's memory under a placement: "single", "ddp", "layers" or "fsdp"."""
    whole = memory_of(facts, method)
    if way == "fsdp":  # shards of everything, and two layers that are whole for a while
        two = memory_of(facts, method, layers=2, head=False, embedding=False)
        parts = {name: getattr(whole, name) // gpus for name in ("adapter", "gradients", "optimizer")}
        return [replace(whole, weights=whole.weights // gpus + two.weights, **parts)] * gpus
    if way != "layers" or gpus == 1:
        return [whole] * gpus
    ends = [0.0] * gpus  # the embedding lies on the first GPU, the head on the last, each as heavy as so many layers
    end = facts.embedding_parameters * method.element
    layer = memory_of(facts, method, layers=1, head=False, embedding=False).fixed
    ends[0] += end / layer
    ends[-1] += end / layer
    level = (facts.layers + sum(ends)) / gpus
    bounds = [0]
    for gpu in range(gpus - 1):
        bounds.append(min(facts.layers, max(bounds[-1], round((gpu + 1) * level - sum(ends[: gpu + 1])))))
    bounds.append(facts.layers)
    return [
        memory_of(facts, method, bounds[gpu + 1] - bounds[gpu], head=gpu == gpus - 1, embedding=gpu == 0)
        for gpu in range(gpus)
    ]


def _layer_bytes(facts: ModelFacts, method: Method) -> tuple[int, int, int]:
    """Bytes of one layer: of a token, kept for its backward pass and held for a while there; of a place in a table.

    Counted from what autograd keeps in transformers' Llama layer under PEFT; Unsloth's from what its kernels keep, and
    fitted to 9.47 GiB measured with 16 rows of 1,000 tokens and to 34.8 GiB with 8,456 tokens of which all is kept.
    """
    queries, size = facts.heads * facts.head_size, method.element
    plain = 2 * (queries + facts.key_value_heads * facts.head_size) * size  # queries, keys, values, the output
    # On a GPU keys and values are copied for each query head, but for FlashAttention; on a CPU they need not be.
    table = method.attention == "table"
    attended = plain if (table and size == 4) or method.attention == "flash" else 4 * queries * size
    attention, packed = (attended, 0) if table else (0, attended)
    if method.fused:  # kept: the stream twice, two norms' outputs, gate and up; held: gradients of the like sizes
        saved, held = 4 * facts.hidden + 2 * facts.intermediate, 3 * facts.hidden + 3 * facts.intermediate
        return size * saved + packed, size * held, attention
    # In 16 bit each norm makes a float32 copy, and each adapter casts its input for itself, its gradient back; beside
    # 4-bit matrices adapters take the norms' outputs and what is counted already.
    own = sum(facts.projections[name][0] for name in method.targets if name in facts.projections)
    inputs = 2 * facts.hidden if method.four_bit else own
    copies = facts.norms * 4 * facts.hidden + inputs * size if size < 4 else facts.norms * 2 * 4 * facts.hidden
    mlp = 4 * facts.intermediate * size  # gate, its activation, up, their product
    held = 3 * facts.hidden * size + (size + 4) * facts.intermediate  # the stream's gradients, the down projection's
    return copies + mlp + packed, held, attention


def usable(free: int) -> int:
    """What the allocator can give out of so many free bytes."""
    return round(free * (1 - FRAGMENTATION)) - CONTEXT


def fits(facts: ModelFacts, method: Method, way: str, free: Sequence[int], longest: int) -> bool:
    """Whether a pass with the longest row alone fits into the GPUs' free bytes, placed in this way."""
    parts = memories(facts, method, way, len(free))
    return all(part.peak(longest) <= usable(size) for part, size in zip(parts, free, strict=True))


def token_budget(memory: Memory, free: int, longest: int, rows: int, most: int) -> int:
    """Tokens of a pass: as many as fit into a GPU's free bytes, never fewer than the longest row, at most `most`.

    Args:
        longest: tokens of the longest row.
        rows: most rows of a pass, of an optimizer step that is.
        most: tokens beyond which nothing is gained: those of the largest optimizer step.
    """
    low, high = longest, max(longest, most)
    while low < high:
        middle = (low + high + 1) // 2
        fits = memory.peak(middle, longest, rows) <= usable(free)
        low, high = (middle, high) if fits else (low, middle - 1)
    return low
