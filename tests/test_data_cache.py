"""A large corpus is processed once: the second time gives the same, any change gives its own."""

import csv
import json

import pytest

from bnft import data_cache
from bnft.data import DatasetProcessor
from bnft.data_cache import processed
from bnft.settings import DataConfig


@pytest.fixture
def corpus(tmp_path, monkeypatch, conversations):
    monkeypatch.setenv("BNFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data_cache, "WORTH_KEEPING", 10)
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Questions", "Answers"])
        for number, conversation in enumerate(conversations):
            for turn in range(3):
                question, answer = (m["content"] for m in conversation.messages[:2])
                writer.writerow([f"{question} {'কখগঘঙচছজঝঞটঠ'[number] * (turn + 2)} {turn}", f"{answer} {turn}"])
    return DataConfig(path=str(path))


def entries(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache" / "data").iterdir() if p.is_dir())


def test_what_is_kept_is_what_was_processed(corpus, tmp_path, monkeypatch):
    fresh = DatasetProcessor(corpus, 1).process()
    first = processed(corpus, 1)
    monkeypatch.setattr(DatasetProcessor, "process", None)  # would be called in vain
    for kept in (first, processed(corpus, 1)):
        assert kept.splits == fresh.splits
        assert kept.report == json.loads(json.dumps(fresh.report))


@pytest.mark.parametrize("change", ["seed", "setting", "rows"])
def test_another_way_is_another_entry(corpus, tmp_path, change):
    processed(corpus, 1)
    if change == "rows":
        with open(corpus.path, "a", encoding="utf-8") as file:
            file.write("আজ খুব একা লাগছে,শুনে খারাপ লাগল।\n")
    other = corpus.model_copy(update={"max_chars": 4000}) if change == "setting" else corpus
    data = processed(other, 2 if change == "seed" else 1)
    assert len(entries(tmp_path)) == 2
    assert data.splits == DatasetProcessor(other, 2 if change == "seed" else 1).process().splits


def test_a_damaged_entry_is_made_again(corpus, tmp_path, capsys):
    first = processed(corpus, 1)
    file = tmp_path / "cache" / "data" / entries(tmp_path)[0] / "splits" / "train.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    assert processed(corpus, 1).splits == first.splits
    assert "are damaged (splits/train.jsonl has" in capsys.readouterr().out


def test_a_small_corpus_leaves_nothing(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(data_cache, "WORTH_KEEPING", 1000)
    processed(corpus, 1)
    assert not (tmp_path / "cache").exists()
