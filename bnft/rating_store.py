"""`ratings.csv` of a run: one line a rating, kept whatever happens to the program that wrote it.

A line is written at once, under a lock, and is on the disk before its rater hears of it. No value holds a comma, a
quote or a line break, so a torn line can never swallow its neighbours. Knows nothing about pages or statistics.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import regex
from filelock import FileLock

from bnft.errors import UserError
from bnft.rating_form import NATIVE, PREFERENCES, QUESTIONS, RATER, REGIONS

RATINGS = "ratings.csv"
SYSTEMS = ("tuned", "base", "reference")
MAX_BYTES = 20 * 2**20  # of ratings.csv, some 100,000 ratings: a shared page must not be able to fill the disk


def _one_of(names) -> str:
    return "|".join(regex.escape(name) for name in names)


# Column -> all that may stand in it. The time comes last: it has one length, so a line without its end is known.
COLUMNS: dict[str, str] = {
    "item": r"\w[\w.\-]{0,79}",  # nor does anything begin like a spreadsheet's formula
    "repeat": "[01]",
    "system_a": _one_of(SYSTEMS),
    "system_b": _one_of(SYSTEMS),
    "hash_a": "[0-9a-f]{16}",
    "hash_b": "[0-9a-f]{16}",
    **{f"{q.key}_{side}": f"[{q.low}-{q.high}]" for side in ("a", "b") for q in QUESTIONS},
    "preference": _one_of(PREFERENCES),
    "rater": RATER,
    "native": _one_of(NATIVE),
    "region": _one_of(REGIONS),
    "decoding": r"\w[^,\"\r\n]{0,199}",
    "build": r"[0-9a-f]{40}(?:-dirty)?|unknown",
    "time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00",
}
HEADER = ",".join(COLUMNS)
LINE = regex.compile(",".join(f"(?P<{name}>{pattern})" for name, pattern in COLUMNS.items()))

Row = dict[str, str]


def key_of(row: Mapping[str, str]) -> tuple:
    """What one rater rates once: a pair of texts, whichever stood left, and once more as a repeat."""
    texts = sorted((row[f"system_{side}"], row[f"hash_{side}"]) for side in ("a", "b"))
    return row["rater"], row["item"], row["repeat"], *texts


class RatingStore:
    """The ratings of one run.

    Args:
        folder: the run's; several programs may write into it at once.
    """

    def __init__(self, folder: Path):
        self.path = folder / RATINGS
        self._told: set[bytes] = set()

    def read(self) -> list[Row]:
        """All whole ratings, in the order in which they came; a line that is none is passed over with a word.

        Raises:
            UserError: the file is another table.
        """
        with self._lock():
            return self._rows(self._content())

    def append(self, row: Row) -> bool:
        """Keeps one rating; False where this rater has rated the same pair before.

        Raises:
            ValueError: a value that cannot be.
            OSError: it could not be written; the file holds all that it held.
        """
        line = ",".join(row[name] for name in COLUMNS)
        if not LINE.fullmatch(line):
            raise ValueError(f"this is no rating: {line}")
        with self._lock():
            content = self._content()
            if key_of(row) in map(key_of, self._rows(content)):
                return False
            if len(content) > MAX_BYTES:
                raise OSError(errno.EFBIG, "no more ratings are kept", str(self.path))
            self._write(content, line)
        return True

    def _lock(self) -> FileLock:
        return FileLock(str(self.path.with_name(f".{RATINGS}.lock")))

    def _content(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error}") from error

    def _rows(self, content: bytes) -> list[Row]:
        header, *lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")  # a spreadsheet puts that mark in front
        if header.rstrip(b"\r").decode("utf-8", "replace") != HEADER and not HEADER.encode().startswith(content):
            raise UserError(
                f"{self.path} has other columns than the ratings of this program",
                "Move it away, or save it as plain CSV with its commas and its columns as they were.",
            )
        rows = []
        for place, line in enumerate(lines, 2):
            found = LINE.fullmatch(line.rstrip(b"\r").decode("utf-8", "replace"))
            if found:
                rows.append(found.groupdict())
            elif line.strip() and line not in self._told:
                self._told.add(line)
                print(f"passing over line {place} of {self.path}: it is torn or holds an impossible value")
        return rows

    def _write(self, content: bytes, line: str) -> None:
        tail = content[content.rfind(b"\n") + 1 :]
        whole = LINE.fullmatch(tail.rstrip(b"\r").decode("utf-8", "replace")) or tail == HEADER.encode()
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(handle, "wb", buffering=0) as file:
            size = len(content)
            if tail and not whole:  # its rater was never told that it was kept, and is asked again
                print(f"taking the torn last line out of {self.path}: {tail.decode('utf-8', 'replace')}")
                size -= len(tail)
                file.truncate(size)
            before = f"{HEADER}\n" if not size else "\n" if tail and whole else ""
            data = f"{before}{line}\n".encode()
            while data:  # a full disk may take the first part of a write
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        if not content:
            _sync_folder(self.path.parent)


def _sync_folder(folder: Path) -> None:
    """The name of a new file is in its folder, which has to reach the disk as well."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
