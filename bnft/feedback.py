"""What visitors thought of a reply, kept with their consent: append-only JSON lines for the next training.

`kto.jsonl` (prompt, completion, label) is read by TRL's KTOTrainer, `dpo.jsonl` (prompt, chosen, rejected) by its
DPOTrainer, both in the conversational form. Whoever calls this has asked for consent. Knows nothing about the page.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from filelock import FileLock

from bnft.records import now

RATINGS, CORRECTIONS = "kto.jsonl", "dpo.jsonl"
MAX_BYTES = 200 * 2**20  # of one file: a public page must not be able to fill the disk


class FeedbackFull(Exception):
    """The file has reached its bound."""


class FeedbackStore:
    """The two files of one folder, made at the first row.

    Args:
        folder: where they are kept; only their owner may read them.
        model: name of the model that wrote the replies.
    """

    def __init__(self, folder: Path, model: str):
        self.folder = folder
        self.model = model

    def rate(self, prompt: Sequence[dict], reply: str, liked: bool) -> None:
        """One thumb, up or down.

        Raises:
            FeedbackFull: no room is left.
        """
        self._append(RATINGS, {"prompt": _plain(prompt), "completion": _reply(reply), "label": liked})

    def improve(self, prompt: Sequence[dict], reply: str, better: str) -> None:
        """One reply, and what a visitor would have liked to read in its place.

        Raises:
            FeedbackFull: no room is left.
        """
        self._append(CORRECTIONS, {"prompt": _plain(prompt), "chosen": _reply(better), "rejected": _reply(reply)})

    def _append(self, name: str, row: dict) -> None:
        line = json.dumps(row | {"model": self.model, "time": now()}, ensure_ascii=False)
        data = line.encode("utf-8", "replace") + b"\n"
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        with FileLock(str(self.folder / f".{name}.lock")):
            handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(handle, "r+b", buffering=0) as file:
                size = _end_of_whole_lines(file)
                if size + len(data) > MAX_BYTES:
                    raise FeedbackFull
                try:
                    while data:  # a full disk may take the first part of a write
                        data = data[file.write(data) :]
                except OSError:
                    file.truncate(size)
                    raise


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The whole rows of a file; a line that is none is passed over."""
    for line in path.read_bytes().split(b"\n"):
        with suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row


def _end_of_whole_lines(file: FileIO) -> int:
    """Where the next line begins; a last line that was torn goes, for the next one would be torn with it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 1, 0))
    if file.read(1) in (b"", b"\n"):
        return size
    file.seek(0)
    size = file.read().rfind(b"\n") + 1
    file.truncate(size)
    return size


def _plain(messages: Sequence[dict]) -> list[dict]:
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _reply(content: str) -> list[dict]:
    return [{"role": "assistant", "content": content}]
