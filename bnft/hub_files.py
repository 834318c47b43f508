"""Files on their way to a repository, with their hashes as the Hub counts them.

Knows nothing about requests.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd


@dataclass(frozen=True)
class LocalFile:
    """One file to be on the Hub: its hash both as LFS (sha256) and as git (blob id) count it."""

    path: str
    size: int
    sha256: str
    blob_id: str
    source: Path | CommitOperationAdd

    @classmethod
    def of(cls, source: Path, path: str) -> LocalFile:
        size = source.stat().st_size
        strong, weak = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        with source.open("rb") as file:
            while block := file.read(1 << 22):
                strong.update(block)
                weak.update(block)
        return cls(path, size, strong.hexdigest(), weak.hexdigest(), source)

    def equals(self, remote) -> bool:
        if remote is None or remote.size != self.size:
            return False
        return remote.lfs.sha256 == self.sha256 if remote.lfs else remote.blob_id == self.blob_id


def files_of(folder: Path) -> list[LocalFile]:
    """Every file of a folder, hashed, by its path in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [LocalFile.of(path, path.relative_to(folder).as_posix()) for path in paths]
