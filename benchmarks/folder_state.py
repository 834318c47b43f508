"""The files of a folder, compared without what the clock or the machine decides. Knows nothing about who wrote them."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from pathlib import Path

# What differs between two undisturbed runs: times, and what is measured of the machine.
CLOCK = ("started", "finished", "seconds", "time", "per_second", "speed", "memory", "actual", "fingerprint", "checksum")
UNCOMPARED = ("state.json",)  # of a cached data set: a random name


def state(folder: Path) -> dict[str, str]:
    """Every file below a folder, by its content without what the clock decides."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file() and path.name not in UNCOMPARED:
            found[name] = hashlib.sha256(_lasting(path)).hexdigest()[:16]
    return found


def _lasting(path: Path) -> bytes:
    content = path.read_bytes()
    try:
        if path.suffix == ".json":
            return repr(_without_clock(json.loads(content))).encode()
        if path.suffix == ".jsonl":
            return repr(sorted(repr(_without_clock(json.loads(line))) for line in content.splitlines())).encode()
        if path.suffix == ".csv":
            rows = csv.DictReader(content.decode().splitlines())
            return repr(sorted(repr(_without_clock(row)) for row in rows)).encode()
        if path.suffix == ".html":
            return re.sub(rb"\d{4}-\d\d-\d\d \d\d:\d\d", b"", content)
    except ValueError:
        return b"torn " + content
    return content


def _without_clock(value):
    if isinstance(value, list):
        return [_without_clock(item) for item in value]
    if not isinstance(value, dict):
        return value
    # a manifest's line about a file that holds times
    kept = {k: v for k, v in value.items() if k not in (*UNCOMPARED, "trainer_state.json")}
    return {k: _without_clock(v) for k, v in sorted(kept.items()) if not any(word in str(k) for word in CLOCK)}


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    told = [f"missing {name}" for name in expected.keys() - found.keys()]
    told += [f"litter {name}" for name in found.keys() - expected.keys()]
    return sorted(told + [f"differs {n}" for n in found.keys() & expected.keys() if found[n] != expected[n]])
