"""How many decisions there were, by risk and by layer. Knows no text and no person."""

from __future__ import annotations

import threading
from collections import Counter

from bnft.safety import Verdict


class Counts:
    """How many decisions there were, by risk and by layer; never a text."""

    def __init__(self):
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, verdict: Verdict) -> None:
        with self._lock:
            self._counts[verdict.risk.value, verdict.by] += 1

    def to_dict(self) -> dict[str, dict[str, int]]:
        with self._lock:
            counted = dict(self._counts)
        risks = sorted({risk for risk, _ in counted})
        return {risk: {by: n for (its, by), n in sorted(counted.items()) if its == risk} for risk in risks}

    def __str__(self) -> str:
        """For a terminal; empty where nothing was counted."""
        return "; ".join(
            f"{risk} " + ", ".join(f"{n} by {by}" for by, n in layers.items())
            for risk, layers in self.to_dict().items()
        )
