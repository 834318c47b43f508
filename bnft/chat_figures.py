"""Numbers about the chat for the model's card: what its crisis detection finds, and what people thought of replies.

Counts only, never a text. Knows nothing about models.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from bnft.errors import UserError
from bnft.feedback import RATINGS, read_rows
from bnft.safety import DATA

SAFETY_FIGURES = DATA / "safety_figures.json"
_DETECTOR = ("safety", "crisis_reader", "crisis_classifier", "crisis_columns", "crisis_words", "text")
_DATA = ("safety_examples.csv", "crisis_phrases.yaml", "crisis_reader.safetensors")


def safety_figures() -> dict[str, int]:
    """Crises found and false alarms on the held-out examples, which nobody looked at while rules were written.

    They are those of benchmarks/safety_report.py, which keeps them with what they depend on.

    Raises:
        UserError: the detector or its examples have changed since.
    """
    kept = json.loads(SAFETY_FIGURES.read_text(encoding="utf-8"))
    if kept.pop("detector") != detector_fingerprint():
        raise UserError(
            f"{SAFETY_FIGURES.name} tells of another crisis detector than this one",
            "Measure it again: python benchmarks/safety_report.py",
        )
    return kept


def detector_fingerprint() -> str:
    """Changes with the detector's code, with its data, and with the examples on which it is measured."""
    digest = sha256()
    for path in (*(Path(__file__).with_name(f"{room}.py") for room in _DETECTOR), *(DATA / name for name in _DATA)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def ratings_of(model: str, folder: Path) -> dict[str, int] | None:
    """People's thumbs for a model's replies, or None where there are none.

    Args:
        model: the name under which the chat kept them: the run's.
        folder: where the chat keeps what visitors thought.
    """
    path = folder / RATINGS
    if not path.is_file():
        return None
    labels = [row.get("label") is True for row in read_rows(path) if row.get("model") == model]
    return {"total": len(labels), "liked": sum(labels)} if labels else None
