"""Replies kept as they come, one JSON line each, so that an evaluation that was ended goes on where it was.

A line counts only for the very prompt, decoding and weights it was made with; a damaged one does not count at all. Of
several processes each writes a file of its own and reads all. Knows nothing about how replies are made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from bnft.generation import Generated

_FORM = TypeAdapter(Generated)
_SAFE_AFTER = 5.0  # seconds of work that a power cut may cost; a killed process loses none
_FORMAT = 1
_SAMPLED = 4096  # numbers that stand for a tensor of the base, whose weights nobody trains; of an adapter all do


class GeneratedRows:
    """The replies of one system in a folder: `<name>.jsonl`, and `<name>-1.jsonl`, ... of further processes.

    Args:
        made_with: settings and weights behind the replies.
    """

    def __init__(self, folder: Path, name: str, made_with: Mapping[str, Any], rank: int = 0) -> None:
        self._folder, self._name = folder, name
        self._path = folder / (f"{name}-{rank}.jsonl" if rank else f"{name}.jsonl")
        self._made_with = json.dumps({"format": _FORMAT} | dict(made_with), sort_keys=True)
        self._synced = time.monotonic()

    def read(self, ids: Sequence[str], prompts: Sequence[Sequence[int]]) -> dict[int, Generated]:
        """Those of the rows that are there already, by their place."""
        found: dict[str, Generated] = {}
        for path in [self._folder / f"{self._name}.jsonl", *sorted(self._folder.glob(f"{self._name}-[0-9]*.jsonl"))]:
            with contextlib.suppress(FileNotFoundError):
                *whole, _ = path.read_bytes().split(b"\n")  # behind the last line's end is nothing, or a torn line
                for line in whole:
                    found |= _reply(line)
        keys = [self._key(*row) for row in zip(ids, prompts, strict=True)]
        return {place: found[key] for place, key in enumerate(keys) if key in found}

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """While open, `add` may be called; a torn last line is cut off first, else the next would be torn with it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as self._file:
            self._file.seek(0)
            whole = self._file.read().rfind(b"\n") + 1
            self._file.truncate(whole)
            try:
                yield
            finally:
                self._sync()

    def add(self, id: str, prompt: Sequence[int], reply: Generated) -> None:
        line = {"id": id, "key": self._key(id, prompt)} | asdict(reply)
        checked = line | {"checksum": _checksum(line)}
        self._file.write(json.dumps(checked, ensure_ascii=False).encode("utf-8") + b"\n")
        self._file.flush()
        if time.monotonic() - self._synced > _SAFE_AFTER:
            self._sync()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def _key(self, id: str, prompt: Sequence[int]) -> str:
        return hashlib.sha256(json.dumps([id, list(prompt), self._made_with]).encode()).hexdigest()[:32]


def _reply(line: bytes) -> dict[str, Generated]:
    """Key and reply of a line; nothing where the line is damaged."""
    try:
        values = json.loads(line)
        if values.pop("checksum") != _checksum(values):
            return {}
        key = values.pop("key")
        del values["id"]
        return {key: _FORM.validate_python(values)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def weights_fingerprint(model) -> str:
    """Hash of the weights as they are used: a sample of the base's, all of an adapter's where it is on."""
    import torch

    from bnft.adapters import is_off

    off = is_off(model)
    whole = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        own = "lora_" in name
        if own and off:
            continue
        numbers = parameter.detach().flatten()
        if not own:
            numbers = numbers[:: max(1, len(numbers) // _SAMPLED)]
        whole.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        whole.update(numbers.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()
