"""Feedback rows: append-only, and read by the trainers that they are for."""

import json
import subprocess
import sys
import threading

import pytest

from bnft import feedback
from bnft.config import REPOSITORY
from bnft.feedback import CORRECTIONS, RATINGS, FeedbackFull, FeedbackStore

PROMPT = [{"role": "system", "content": "শুনুন।"}, {"role": "user", "content": "মন ভালো নেই।", "base": "x"}]


def rows(store, name):
    return [json.loads(line) for line in (store.folder / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def store(tmp_path):
    return FeedbackStore(tmp_path / "feedback", "laptop1")


def test_a_thumb_is_a_kto_row_and_a_better_reply_a_dpo_row(store):
    store.rate(PROMPT, "কী হয়েছে?", liked=True)
    store.rate(PROMPT, "জানি না।", liked=False)
    store.improve(PROMPT, "জানি না।", "কী হয়েছে, বলবেন?")
    plain = [{"role": m["role"], "content": m["content"]} for m in PROMPT]
    first, second = rows(store, RATINGS)
    assert first["prompt"] == plain
    assert first["completion"] == [{"role": "assistant", "content": "কী হয়েছে?"}]
    assert (first["label"], second["label"]) == (True, False)
    (pair,) = rows(store, CORRECTIONS)
    assert pair["chosen"] == [{"role": "assistant", "content": "কী হয়েছে, বলবেন?"}]
    assert pair["rejected"] == [{"role": "assistant", "content": "জানি না।"}]
    assert pair["model"] == "laptop1"


def test_only_the_owner_may_read_what_people_wrote(store):
    store.rate(PROMPT, "ক", liked=True)
    assert (store.folder / RATINGS).stat().st_mode & 0o077 == 0


def test_rows_that_come_together_stay_whole(store):
    threads = [
        threading.Thread(target=lambda: [store.rate(PROMPT, "ক\nখ" * 500, liked=True) for _ in range(20)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rows(store, RATINGS)) == 80


@pytest.mark.parametrize("torn", ['{"prompt": [{"role"', "{", '{"prompt": [], "label": "ক'])
def test_a_line_that_was_torn_tears_no_other(store, torn):
    store.rate(PROMPT, "ক", liked=True)
    path = store.folder / RATINGS
    path.write_bytes(path.read_bytes() + torn.encode()[:-1])
    store.rate(PROMPT, "খ", liked=False)
    assert [row["label"] for row in rows(store, RATINGS)] == [True, False]


def test_what_a_full_disk_took_in_part_is_taken_back(store):
    store.rate(PROMPT, "ক", liked=True)
    size = (store.folder / RATINGS).stat().st_size
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from bnft.feedback import FeedbackStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 100}, {size + 100}))\n"  # the kernel takes 100 bytes more
        "FeedbackStore(Path(sys.argv[1]), 'x').rate([], 'ক' * 20_000, True)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, store.folder], capture_output=True, text=True, cwd=REPOSITORY)
    assert "File too large" in ended.stderr
    assert (store.folder / RATINGS).stat().st_size == size


def test_a_full_file_takes_no_more(store, monkeypatch):
    store.rate(PROMPT, "ক", liked=True)
    size = (store.folder / RATINGS).stat().st_size
    monkeypatch.setattr(feedback, "MAX_BYTES", size + 10)
    with pytest.raises(FeedbackFull):
        store.rate(PROMPT, "খ", liked=True)
    assert (store.folder / RATINGS).stat().st_size == size


@pytest.mark.parametrize(
    ("kind", "name", "replies"),
    [
        ("KTO", RATINGS, {"কী হয়েছে 0?": 0, "কী হয়েছে 1?": 1}),
        ("DPO", CORRECTIONS, {"কী হয়েছে 0, বলবেন?": 1, "কী হয়েছে 1, বলবেন?": 1, "জানি না।": 0}),
    ],
)
def test_trl_reads_the_rows(store, tiny_model, tiny_tokenizer, tmp_path, kind, name, replies):
    """TRL's trainers check and tokenise rows when they are made; to train, they need Triton, which a CPU lacks."""
    import trl
    from datasets import load_dataset

    for i in range(2):
        store.rate(PROMPT, f"কী হয়েছে {i}?", liked=bool(i))
        store.improve(PROMPT, "জানি না।", f"কী হয়েছে {i}, বলবেন?")
    file = str(store.folder / name)
    data = load_dataset("json", data_files=file, split="train", cache_dir=str(tmp_path / "cache"))
    settings = getattr(trl, f"{kind}Config")(
        output_dir=str(tmp_path / name), per_device_train_batch_size=2, use_cpu=True, report_to="none", bf16=False
    )
    trainer = getattr(trl, f"{kind}Trainer")(
        model=tiny_model, args=settings, train_dataset=data, processing_class=tiny_tokenizer
    )
    (batch,) = trainer.get_train_dataloader()
    labels = batch["label"].tolist() if kind == "KTO" else [1, 1, 0, 0]  # chosen first, then rejected
    read = {}
    for ids, mask, label in zip(batch["input_ids"], batch["completion_mask"], labels, strict=True):
        assert "শুনুন।" in tiny_tokenizer.decode(ids[mask == 0])
        assert "মন ভালো নেই।" in tiny_tokenizer.decode(ids[mask == 0])
        read[tiny_tokenizer.decode(ids[mask == 1], skip_special_tokens=True)] = label
    assert read == replies
