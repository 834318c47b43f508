"""Replies written side by side on one device: a key-value cache with a row for each, and one step for all rows.

A step costs a GPU little more for sixteen rows than for one, and nearly all of it is the launching of a few thousand
kernels from Python. So each step, and each part of a prompt, is recorded once as a CUDA graph, for every size that is
used, and replayed. What a step reads and writes stays on the device; the host gets the tokens.
Knows nothing about threads, people or text. The same steps run on a CPU, unrecorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, Cache, DynamicCache

from bnft.adapters import AdapterSwitch
from bnft.row_sampling import RowSampler
from bnft.streaming import Sampling

_ATTENTION = "bnft_rows"
# cuDNN's attention makes a plan for every new shape, which takes longer than the attention itself.
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
CHUNK = 256  # the most prompt tokens read in one go: others wait for their next token meanwhile
_WIDTHS = (64, 128, CHUNK)
_SHORTEST = 512


def _attend(module, query, key, value, attention_mask, scaling=None, **kwargs) -> tuple[torch.Tensor, None]:
    """Attention in which queries that share a key head stand beside each other as if they were positions.

    So no key is copied for its other queries; the mask (rows, 1, width, length) has a row for each position.
    """
    rows, heads, width, size = query.shape
    groups = heads // key.shape[1]
    together = query.reshape(rows, key.shape[1], groups * width, size)
    mask = attention_mask if width == 1 else attention_mask.repeat(1, 1, groups, 1)
    out = nn.functional.scaled_dot_product_attention(together, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(rows, heads, width, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(_ATTENTION, _attend)


class _RowCache(Cache):
    """Keys and values of all rows, at their full length from the start."""

    def __init__(self, shapes: Sequence[tuple[int, int, int]], rows: int, context: int, dtype, device) -> None:
        super().__init__(layers=[])

        def empty(heads: int, size: int) -> torch.Tensor:
            return torch.zeros(rows, heads, context, size, dtype=dtype, device=device)

        self.store = [(empty(heads, size), empty(heads, width)) for heads, size, width in shapes]

    def aim(self, rows: slice | torch.Tensor, positions: torch.Tensor, length: int | None) -> None:
        """What the next forward pass writes and reads: `positions` (n, width) of `rows`, the first `length` keys.

        Without a length, nothing stands in those rows yet, and what is written is all that is read.
        """
        self._rows, self._positions, self._length = rows, positions, length
        numbers = torch.arange(rows.start, rows.stop, device=positions.device) if isinstance(rows, slice) else rows
        self._numbers = numbers[:, None]

    def update(self, key_states, value_states, layer_idx, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.store[layer_idx]
        keys[self._numbers, :, self._positions] = key_states.transpose(1, 2)
        values[self._numbers, :, self._positions] = value_states.transpose(1, 2)
        if self._length is None:
            return key_states, value_states
        return keys[self._rows, :, : self._length], values[self._rows, :, : self._length]


@dataclass(frozen=True)
class Flight:
    """A step that the device was told to make; `tokens` waits for it."""

    _host: torch.Tensor
    _done: torch.cuda.Event | None

    def tokens(self) -> list[int]:
        """The new token of each row."""
        if self._done:
            self._done.synchronize()
        return self._host.tolist()


class Rows:
    """Rows 0 to `seats` - 1 for replies, and one more, `staging`, in which a prompt is read.

    Args:
        body: a switched copy of a decoder, on one device; it is changed.
        head: hidden state -> scores.
        cap: bound of the scores, or None.
        context: positions of a row: prompt and reply together.
        sampler: what chooses the tokens, made as `RowSampler` is.
    """

    def __init__(
        self,
        body: nn.Module,
        head: nn.Module,
        switch: AdapterSwitch,
        cap: float | None,
        seats: int,
        context: int,
        sampler: Callable[[int, int, int, torch.device], RowSampler] = RowSampler,
    ) -> None:
        self.seats, self.context, self.staging = seats, context, seats
        self._body, self._head, self._switch, self._cap = body, head, switch, cap
        self._device = next(body.parameters()).device
        dtype, shapes = _cache_shapes(body)
        body.config._attn_implementation = _ATTENTION
        self._windows = _windows(body.config)
        rows = seats + 1
        self._cache = _RowCache(shapes, rows, context, dtype, self._device)
        self._ids = torch.zeros(rows, 1, dtype=torch.long, device=self._device)
        # A row that nobody uses writes at its end, where every reply writes before it reads.
        self._positions = torch.full((rows, 1), context - 1, device=self._device)
        self._gates = torch.ones(rows, 1, 1, dtype=dtype, device=self._device)
        self._sampler = sampler(rows, head.out_features, context, self._device)
        self._steps = torch.arange(context, device=self._device)
        self._prompt = torch.zeros(1, CHUNK, dtype=torch.long, device=self._device)
        self._start = torch.zeros(1, dtype=torch.long, device=self._device)
        self._graphs: dict[tuple[str, int, int], torch.cuda.CUDAGraph] = {}
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._pool = torch.cuda.graph_pool_handle() if self._stream else None

    def open(self, prompt: Sequence[int], sampling: Sampling, base: bool) -> None:
        """Empties the staging row for a reply to `prompt`, whose last token is left to the first step."""
        with torch.cuda.stream(self._stream):
            for part in self._parts():
                part[self.staging] = 0  # a broken number left by an earlier reply would reach this one
            self._positions[self.staging] = len(prompt) - 1
            self._ids[self.staging] = prompt[-1]
            self._gates[self.staging] = 0.0 if base else 1.0
            self._sampler.open(self.staging, sampling)

    def read(self, tokens: Sequence[int], start: int) -> None:
        """Reads a part of the prompt, at most `CHUNK` tokens from position `start` on, into the staging row.

        A recorded part may be wider: then tokens of an earlier one stand behind the prompt, and the reply writes over
        them.
        """
        width = next(n for n in _WIDTHS if n >= len(tokens)) if self._graphs else len(tokens)
        with torch.cuda.stream(self._stream):
            self._prompt[0, : len(tokens)] = self._sent(tokens)
            self._start.fill_(start)
            self._run(self._read, width, start + width)

    def move(self, source: int, target: int) -> None:
        """The reply in one row goes on in another."""
        with torch.cuda.stream(self._stream):
            for part in (*self._parts(), self._ids, self._positions, self._gates, *self._sampler.state):
                part[target] = part[source]
            self._positions[source] = self.context - 1

    def leave(self, row: int) -> None:
        """Nobody uses the row any more."""
        with torch.cuda.stream(self._stream):
            self._positions[row] = self.context - 1

    def step(self, rows: int, reach: int) -> Flight:
        """One more token for each of the first `rows` rows, none of which is longer than `reach` positions."""
        rows = next(n for n in self._counts() if n >= rows)
        with torch.cuda.stream(self._stream):
            self._run(self._step, rows, reach)
            if not self._stream:
                return Flight(self._ids[:rows, 0].clone(), None)
            host, done = self._ids[:rows, 0].to("cpu", non_blocking=True), torch.cuda.Event()
            done.record()
        return Flight(host, done)

    def record(self) -> None:
        """Records all work that can occur; to be called before the first reply, as it writes into the rows."""
        if not self._stream:
            return
        works = [(self._read, width) for width in _WIDTHS] + [(self._step, rows) for rows in self._counts()]
        with torch.cuda.stream(self._stream):
            graphs = {
                (work.__name__, size, length): self._recorded(work, size, length)
                for work, size in works
                for length in self._lengths()
            }
        self._graphs = graphs

    def _recorded(self, work: Callable[[int, int], None], size: int, length: int) -> torch.cuda.CUDAGraph:
        """Does the work once, and makes the recording with which it can be done again."""
        work(size, length)  # libraries set themselves up, which cannot be recorded
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work(size, length)
        return graph

    def _run(self, work: Callable[[int, int], None], size: int, reach: int) -> None:
        length = next(n for n in self._lengths() if n >= min(reach, self.context))
        graph = self._graphs.get((work.__name__, size, length))
        graph.replay() if graph else work(size, length)

    def _sent(self, values: Sequence[int]) -> torch.Tensor:
        """The values on the device, without waiting for what it is doing."""
        host = torch.tensor(values)
        return host.pin_memory().to(self._device, non_blocking=True) if self._stream else host

    def _counts(self) -> list[int]:
        return [*(n for n in (1, 2, 4, 8, 16, 32) if n < self.seats), self.seats]

    def _lengths(self) -> list[int]:
        """Half the length is half the attention's cost, and most replies are short."""
        lengths = [self.context]
        while lengths[0] // 2 >= _SHORTEST:
            lengths.insert(0, lengths[0] // 2)
        return lengths

    def _parts(self) -> list[torch.Tensor]:
        return [part for layer in self._cache.store for part in layer]

    def _read(self, width: int, length: int) -> None:
        positions = (self._start + self._steps[:width]).clamp_(max=self.context - 1)[None]
        self._forward(self._prompt[:, :width], positions, slice(self.staging, self.staging + 1), length)

    def _step(self, rows: int, length: int) -> None:
        positions = self._positions[:rows]
        hidden = self._forward(self._ids[:rows], positions, slice(0, rows), length)[:, -1]
        scores = self._head(hidden).float()
        if self._cap:
            scores = torch.tanh(scores / self._cap) * self._cap
        self._ids[:rows] = self._sampler.choose(scores, positions)
        positions.add_(1).clamp_(max=self.context - 1)

    def _adapters(self, rows: slice | torch.Tensor) -> bool | torch.Tensor:
        """Where the adapter is on."""
        return self._gates[rows]

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, rows: slice | torch.Tensor, length: int | None
    ) -> torch.Tensor:
        """Hidden states (n, width, size) of `ids` (n, width) at `positions` (n or 1, width) of n rows."""
        self._cache.aim(rows, positions, length)
        self._switch.on = self._adapters(rows)
        keys = self._steps[None, None, None, : ids.shape[1] if length is None else length]
        asked = positions[:, None, :, None]
        masks = {}
        for kind, window in self._windows.items():
            hidden = keys > asked if window is None else (keys > asked) | (keys <= asked - window)
            masks[kind] = torch.zeros(hidden.shape, dtype=self._gates.dtype, device=self._device).masked_fill_(
                hidden, float("-inf")
            )
        with sdpa_kernel(_KERNELS):
            return self._body(
                input_ids=ids,
                position_ids=positions,
                attention_mask=masks.get(None, masks),
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state


def bytes_per_row(body: nn.Module, context: int) -> int:
    """What one row of the cache takes."""
    dtype, shapes = _cache_shapes(body)
    return context * dtype.itemsize * sum(heads * (size + width) for heads, size, width in shapes)


@torch.inference_mode()
def _cache_shapes(body: nn.Module) -> tuple[torch.dtype, list[tuple[int, int, int]]]:
    """Number format of the keys, and (heads, size of a key, size of a value) of each layer."""
    cache = DynamicCache(config=body.config)
    ids = torch.zeros(1, 1, dtype=torch.long, device=next(body.parameters()).device)
    body(input_ids=ids, past_key_values=cache, use_cache=True)
    shapes = [(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]) for layer in cache.layers]
    return cache.layers[0].keys.dtype, shapes


def _windows(config) -> dict[str | None, int | None]:
    """Kind of layer -> how many positions back it sees; Gemma has two kinds, a model of one kind has the key None."""
    window, kinds = getattr(config, "sliding_window", None), set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" not in kinds:
        return {None: None if kinds else window}
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(kinds)}
