"""Safetensors files, read and written a piece at a time: whatever the file's size, one piece is in memory.

`safetensors.safe_open` maps a file, and every page that was read counts as the process's memory until the system
takes it back; here bytes are read and let go. The format: https://huggingface.co/docs/safetensors. Knows nothing
about models or adapters.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from bnft.errors import UserError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
PIECE = 32 * 2**20  # bytes of a tensor that are in memory at one time, where a single row is not larger


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its type by safetensors' name, and where its bytes stand."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def is_float(self) -> bool:
        return self.dtype.startswith(("F", "BF"))


class TensorFile:
    """The directory of one file; `entries` are in the order of their bytes.

    Raises:
        UserError: the file is missing, cut short, or no safetensors file.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length)) if length <= path.stat().st_size else {}
            entries = {
                name: Entry(value["dtype"], tuple(value["shape"]), *(8 + length + o for o in value["data_offsets"]))
                for name, value in header.items()
                if name != "__metadata__"
            }
            self.entries = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)))
            whole = bool(entries) and self._follow_one_another(8 + length, path.stat().st_size)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"cannot read the weights {path}: {error}", "Get or make the file again.") from error
        if not whole:
            raise UserError(f"the weights {path} are cut short or damaged", "Get or make the file again.")

    def _follow_one_another(self, start: int, size: int) -> bool:
        """Whether the tensors fill the file without a gap, each with as many bytes as its shape asks for."""
        for entry in self.entries.values():
            element = DTYPES[entry.dtype].itemsize if entry.dtype in DTYPES else None
            if entry.start != start or (element and entry.end - start != entry.elements * element):
                return False
            start = entry.end
        return start == size

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """The tensor, or its rows from `start` to `stop`, in memory of its own."""
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise UserError(f"{name} in {self.path} is stored as {entry.dtype}", "Take the model's 16-bit weights.")
        stop = entry.rows if stop is None else stop
        row = (entry.end - entry.start) // max(entry.rows, 1)
        buffer = bytearray((stop - start) * row)
        if not buffer:
            return torch.empty((stop - start, *entry.shape[1:]), dtype=DTYPES[entry.dtype])
        with self.path.open("rb", buffering=0) as file:
            file.seek(entry.start + start * row)
            view, position = memoryview(buffer), 0
            while position < len(buffer):  # one read gives at most 2 GiB
                got = file.readinto(view[position:])
                if not got:
                    raise UserError(f"the weights {self.path} ended too early", "Get or make the file again.")
                position += got
        values = torch.frombuffer(buffer, dtype=DTYPES[entry.dtype])
        return values.reshape((stop - start, *entry.shape[1:]) if entry.shape else ())

    def pieces(self, name: str) -> Iterator[tuple[int, int]]:
        """Row ranges that cover the tensor, each of at most `PIECE` bytes or one row."""
        entry = self.entries[name]
        row = max((entry.end - entry.start) // max(entry.rows, 1), 1)
        step = max(PIECE // row, 1)
        for start in range(0, max(entry.rows, 1), step):
            yield start, min(start + step, entry.rows)


class TensorWriter:
    """Writes one file: the directory at once, then the tensors' bytes in its order. Use it in a `with`.

    Args:
        plan: name -> (dtype, shape), in the order in which `write` is called.

    Attributes:
        checksum: of what was given to it, whatever the disk made of that.
    """

    def __init__(self, path: Path, plan: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]):
        self.path = path
        position, header = 0, {"__metadata__": {"format": "pt"}}
        for name, (dtype, shape) in plan.items():
            size = math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [position, position + size]}
            position += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
        self._length = 8 + len(text) + position
        self.checksum = hashlib.sha256()
        self._file = path.open("wb")
        self._add(len(text).to_bytes(8, "little") + text)

    def write(self, values: torch.Tensor) -> None:
        """The next bytes: a tensor, or the next rows of one."""
        self._add(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def _add(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.checksum.update(data)

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind, value, traceback) -> None:
        with self._file as file:
            written = file.tell()
        if kind is None and written != self._length:
            raise ValueError(f"{self.path}: {written} bytes written, {self._length} planned")
