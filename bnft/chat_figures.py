"""Numbers about the chat for the model's card: what its crisis detection finds, and what people thought of replies.

Counts only, never a text. Knows nothing about models.
"""

from __future__ import annotations

import json
from pathlib import Path

from bnft import safety
from bnft.crisis_classifier import CRISIS, read_examples
from bnft.feedback import RATINGS
from bnft.safety import CrisisDetector, Risk


def safety_figures() -> dict[str, int]:
    """Crises found and false alarms on the held-out examples, which nobody looked at while rules were written."""
    detector = CrisisDetector.from_repository()
    examples = read_examples(safety.DATA / "safety_examples.csv", "held_out")
    raised = [detector.judge(example.text).risk in (Risk.SELF, Risk.OTHER) for example in examples]
    crises = [example.label in CRISIS for example in examples]
    return {
        "examples": len(examples),
        "crises": sum(crises),
        "found": sum(r and c for r, c in zip(raised, crises, strict=True)),
        "alarms": sum(r and not c for r, c in zip(raised, crises, strict=True)),
    }


def ratings_of(model: str, folder: Path) -> dict[str, int] | None:
    """People's thumbs for a model's replies, or None where there are none.

    Args:
        model: the name under which the chat kept them: the run's.
        folder: where the chat keeps what visitors thought.
    """
    path = folder / RATINGS
    if not path.is_file():
        return None
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    labels = [row["label"] for row in rows if row.get("model") == model]
    return {"total": len(labels), "liked": sum(labels)} if labels else None
