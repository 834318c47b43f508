"""The language model that is asked where the crisis classifier is in doubt: fitted, kept, read back, and as shipped."""

import json
import logging
import random
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from bnft import crisis_training
from bnft.config import REPOSITORY
from bnft.crisis_classifier import CRISIS, read_examples
from bnft.crisis_reader import ADAPTER, CrisisReader, Question, embedded_folder
from bnft.crisis_training import ReaderTraining, fingerprint, fold_of
from bnft.safety import EXAMPLES, CrisisDetector, Risk


@pytest.fixture(scope="module")
def fit():
    return read_examples(EXAMPLES, "fit")


def test_the_shipped_adapter_was_fitted_on_the_examples_as_they_are(fit):
    with safe_open(ADAPTER, framework="pt") as file:
        notes = file.metadata()
        topics = json.loads(notes["topics"])
        assert file.get_tensor("head.bias").shape == (len(topics),)
    assert notes["examples"] == fingerprint(fit)
    assert topics == sorted({f"{e.label} {e.kind}" for e in fit})
    folds = np.load(REPOSITORY / "benchmarks" / "crisis_folds.npz", allow_pickle=False)
    assert str(folds["examples"]) == fingerprint(fit)
    assert len(folds["log_odds"]) == len(fit)


def test_folds_are_blocks_of_neighbours_and_about_alike():
    folds = [fold_of(i) for i in range(8000)]
    assert all(len(set(folds[i : i + 8])) == 1 for i in range(0, 8000, 8))
    assert {folds.count(k) for k in set(folds)} == {1600}


def test_without_its_model_or_adapter_detection_goes_on(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        reader = CrisisReader(folder=lambda: tmp_path / "none", adapter=tmp_path / "none")
        assert reader("আজ মন ভালো নেই") is None
    assert "goes on without its reader" in caplog.text
    assert "মন" not in caplog.text
    detector = CrisisDetector.from_repository(reader)
    assert detector.judge("আমি আর বাঁচতে চাই না").risk is Risk.SELF
    assert detector.judge("আজ মাছের ঝোল রাঁধলাম").risk is Risk.NONE


def test_a_file_that_was_never_downloaded_in_place_of_the_adapter_stops_nothing(tmp_path):
    pointer = tmp_path / "adapter.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5067248\n")
    assert CrisisReader(folder=lambda: tmp_path, adapter=pointer)("আজ মন ভালো নেই") is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_ever_for_a_reader_that_fails_in_a_way_of_its_own():
    with pytest.raises(ZeroDivisionError):
        CrisisReader(folder=lambda: 1 / 0)("আজ মন ভালো নেই")


@pytest.mark.slow
def test_what_is_fitted_is_what_is_read_back(fit, tmp_path, monkeypatch):
    monkeypatch.setattr(crisis_training, "BATCH", 8)
    examples = fit[:: len(fit) // 24]
    training = ReaderTraining(Question(embedded_folder()), examples, "cpu")
    losses = training.fit(range(len(examples)), epochs=4)
    assert np.mean(losses[-3:]) < losses[0] - 0.3
    expected = training.log_odds(range(len(examples)))
    adapter = tmp_path / "adapter.safetensors"
    save_file(training.tensors(), adapter, {"topics": json.dumps(training.topics)})
    reader = CrisisReader(adapter=adapter)
    got = [reader(example.text) for example in examples]
    assert np.abs(np.array(got) - expected).max() < 0.02  # kept as float16
    assert np.std(got) > 0.05


@pytest.mark.slow
def test_openers_and_small_talk_raise_nothing():
    detector = CrisisDetector.from_repository(CrisisReader())
    turns = ["মন ভালো নেই।", "আমি 2", "নতুন শহরে এসে খুব একা লাগছে।", "ধন্যবাদ, ভালো লাগল কথা বলে", "কাল আবার কথা হবে"]
    assert {turn: detector.judge(turn).risk for turn in turns} == dict.fromkeys(turns, Risk.NONE)


@pytest.mark.slow
def test_as_shipped_on_some_examples_that_nobody_read():
    detector = CrisisDetector.from_repository(CrisisReader())
    examples = random.Random(1).sample(read_examples(EXAMPLES, "held_out"), 80)
    raised = [(e.label in CRISIS, detector.judge(e.text).risk in (Risk.SELF, Risk.OTHER)) for e in examples]
    hits, alarms = ([one for crisis, one in raised if crisis is side] for side in (True, False))
    assert np.mean(hits) >= 0.9
    assert np.mean(alarms) <= 0.1


def test_a_message_is_cut_to_what_the_reader_was_fitted_on(embedded):
    question = Question(Path(embedded.base))
    short, long = question.tokens("মন খারাপ"), question.tokens("মন খারাপ " * 2000)
    assert len(short) < 60
    assert len(long) < 260
    assert long[-10:] == short[-10:]
