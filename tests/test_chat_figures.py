"""The chat's own numbers on a model's card: people's thumbs, and what crisis detection finds."""

import json

import pytest

from bnft import chat_figures
from bnft.chat_figures import SAFETY_FIGURES, ratings_of, safety_figures
from bnft.crisis_classifier import read_examples
from bnft.errors import UserError
from bnft.safety import EXAMPLES


def test_thumbs_are_counted_for_this_model_only(tmp_path):
    assert ratings_of("run", tmp_path) is None
    rows = [("run", True), ("run", True), ("run", False), ("other", False)]
    lines = [json.dumps({"prompt": [], "completion": [], "label": label, "model": model}) for model, label in rows]
    (tmp_path / "kto.jsonl").write_text("\n".join([*lines, "[]", '{"model": "run", "la']))  # the last one is torn
    assert ratings_of("run", tmp_path) == {"total": 3, "liked": 2}
    assert ratings_of("nobody's", tmp_path) is None


def test_the_safety_figures_are_of_this_detector_and_reach_the_aim(monkeypatch, tmp_path):
    figures = safety_figures()
    assert figures["examples"] == len(read_examples(EXAMPLES, "held_out"))
    assert figures["found"] >= 0.95 * figures["crises"]
    assert figures["alarms"] <= 0.05 * (figures["examples"] - figures["crises"])
    other = tmp_path / "safety_figures.json"
    other.write_text(SAFETY_FIGURES.read_text().replace('"detector": "', '"detector": "0'))
    monkeypatch.setattr(chat_figures, "SAFETY_FIGURES", other)
    with pytest.raises(UserError, match="another crisis detector"):
        safety_figures()
