"""A folder whose list of files, with sizes and checksums, is written last: without it, or against it, it is not whole.

Knows nothing about what the files are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bnft.errors import UserError
from bnft.whole_files import UNFINISHED, file_sha256, write_json

MANIFEST = "manifest.json"


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Writes the list of all that is in `folder`, together with `facts`; nothing may be written to it afterwards."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST and not path.name.endswith(UNFINISHED)
    }
    write_json(folder / MANIFEST, {"facts": facts, "files": files})


def read_facts(folder: Path) -> dict[str, Any]:
    """The facts of a folder whose manifest can be read."""
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["facts"]


def damage_of(folder: Path) -> str:
    """What differs between `folder` and its manifest, "" where nothing does."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size:,} bytes, {expected['bytes']:,} were written"
            if file_sha256(path) != expected["sha256"]:
                return f"the checksum of {name} is wrong"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    return ""


def refuse_damaged(folder: Path) -> None:
    """Lets pass what is as it was sealed, and what never was.

    Raises:
        UserError: a file is not as it was written.
    """
    if (folder / MANIFEST).exists() and (fault := damage_of(folder)):
        raise UserError(
            f"{folder} is not as it was written: {fault}",
            f"Put a copy of it back, or make it again. If you changed it on purpose, delete its {MANIFEST}.",
        )
