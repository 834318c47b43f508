"""Folders in the user's cache that are made once, sealed with checksums, made again when damaged, and few.

Knows nothing about what is in them; it is handed the function that makes one.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from filelock import FileLock

from bnft.config import cache_dir
from bnft.errors import UserError
from bnft.manifest import damage_of, seal

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def kept_folder(kind: str, key: str, make: Callable[[Path], None], keep: float = math.inf) -> Path:
    """The folder `key` of this kind in the cache, whole; `make` fills a new one, and may use the folder that it is in.

    Args:
        key: names everything that the content depends on, so that an entry is never out of date.
        keep: entries of this kind that stay, the last used ones.

    Raises:
        UserError: the cache cannot be written.
    """
    folder = cache_dir() / kind
    entry = folder / key
    if not _seen_whole(entry):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(str(folder / ".lock")):
                _make_unless_whole(entry, make, keep)
        except OSError as error:
            if error.errno not in _FORBIDDEN:
                raise
            raise UserError(
                f"cannot write the cache of {kind}: {error}", "Set BNFT_CACHE to a folder that can be written."
            ) from error
    with suppress(OSError):  # a cache that may only be read serves as well
        os.utime(entry)  # by which the last used ones are known
    return entry


def _seen_whole(entry: Path) -> bool:
    """Whether all checksums are right; of files that have not been touched since this process knows it already."""
    files = (path.stat() for path in sorted(entry.rglob("*")) if path.is_file())
    return _is_whole(entry, tuple((file.st_ino, file.st_size, file.st_mtime_ns) for file in files))


@lru_cache(maxsize=64)
def _is_whole(entry: Path, files: tuple) -> bool:
    return bool(files) and not damage_of(entry)


def _make_unless_whole(entry: Path, make: Callable[[Path], None], keep: float) -> None:
    """Under the lock: what another process made while this one waited is taken."""
    fault = damage_of(entry)
    if not fault:
        return
    if entry.is_dir():
        print(f"the cached {entry.parent.name} in {entry} are damaged ({fault}); making them again")
    _prune(entry, keep)
    scratch = entry.with_name(f".{entry.name}.part")
    scratch.mkdir()
    try:
        whole = scratch / "whole"
        whole.mkdir()
        make(whole)
        seal(whole, {})
        whole.rename(entry)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _prune(entry: Path, keep: float) -> None:
    """Leaves the last used entries, so that with this new one there are `keep`, and nothing of work that died."""
    shutil.rmtree(entry, ignore_errors=True)
    folders = [path for path in entry.parent.iterdir() if path.is_dir()]
    entries = sorted((p for p in folders if not p.name.startswith(".")), key=lambda p: p.stat().st_mtime)
    too_many = max(0, len(entries) - keep + 1)
    for stale in [*entries[:too_many], *(path for path in folders if path.name.startswith("."))]:
        shutil.rmtree(stale, ignore_errors=True)
