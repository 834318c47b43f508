"""Files that are written whole or not at all, their checksums, and locks that end with their process.

Knows nothing about what the files are.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

UNFINISHED = ".part"  # ends the name of a file that is being written
_NO_LOCKS = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL, errno.EBADF)


def write_atomically(path: Path, data: str | bytes) -> None:
    """Writes a whole file or none: to a temporary name in the same folder, flushed, then renamed.

    The name is always the same, so that what a killed process left is taken up by the next one.
    """
    if isinstance(data, str):
        data = data.encode("utf-8")
    scratch = path.with_name(f".{path.name}{UNFINISHED}")
    with _opened_alone(scratch) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(scratch, path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


def _opened_alone(path: Path) -> BinaryIO:
    """The file, empty and open for writing; who wants it at the same time waits until its writer is done with it."""
    while True:
        file = path.open("ab")
        _lock(file.fileno(), fcntl.LOCK_EX)
        with suppress(FileNotFoundError):  # its writer has renamed it meanwhile
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                return file
        file.close()


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """One process at a time is inside, of all that name the same folder. Nothing is left in it, whatever happens.

    Raises:
        BlockingIOError: another one is inside, and this one does not want to wait.
    """
    opened = os.open(folder, os.O_RDONLY)
    try:
        _lock(opened, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)


def _lock(opened: int, how: int) -> None:
    """The lock goes with the process. File systems that know no locks go without."""
    try:
        fcntl.flock(opened, how)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def file_sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
