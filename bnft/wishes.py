"""What is to be published, and how: the command line of publish.py as one value.

Knows nothing about how it is done.
"""

from __future__ import annotations

from dataclasses import dataclass

PARTS = ("adapter", "merged", "card", "space")


@dataclass(frozen=True)
class Wishes:
    """What the command line asked for.

    Attributes:
        parts: some of `PARTS`.
        base: 16-bit weights to merge into, where they cannot be found by name.
        compare_rows: test rows on which merged and adapter are compared; 0 for none.
    """

    repo: str
    parts: tuple[str, ...] = PARTS
    space: str = ""
    private: bool = False
    revision: str | None = None
    base: str | None = None
    low_disk: bool = False
    compare_rows: int = 32
    hardware: str = ""
