"""Folders of converted models in the user's cache: built once, whole or not at all.

Knows nothing about what a model is; it is handed the function that builds one.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from bnft.config import cache_dir
from bnft.errors import UserError

CONVERTER_VERSION = 1  # raised when a conversion changes, so that old cache folders are made anew


def cached(key: str, build: Callable[[Path], None], announce: Callable[[str], None]) -> Path:
    """The cache folder `key`, built once: into a temporary folder beside it that is then renamed."""
    models = cache_dir() / "models"
    target = models / f"{key}-v{CONVERTER_VERSION}"
    if target.is_dir():
        return target
    try:
        models.mkdir(parents=True, exist_ok=True)
        with FileLock(str(models / f"{target.name}.lock")):
            if not target.is_dir():  # another process may have built it while we waited
                announce(f"preparing the model once, into {target}")
                scratch = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=models))
                try:
                    build(scratch)
                    scratch.rename(target)
                finally:
                    shutil.rmtree(scratch, ignore_errors=True)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise UserError(
            f"cannot write the model cache: {error}", "Set BNFT_CACHE to a folder that can be written."
        ) from error
    return target


def file_sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
