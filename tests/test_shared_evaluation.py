"""One evaluation by several processes, or by one that was killed and another that goes on: the same as by one alone."""

import json
import signal
import time
from pathlib import Path

import pytest

from bnft.config import resolve
from bnft.data import Conversation
from bnft.evaluation import Evaluator, rows_of
from bnft.models import ModelSource, load_model, load_tokenizer
from bnft.settings import ModelConfig
from tests.commands import Command
from tests.conftest import SINGLES

TALKS = [
    Conversation(f"{i:012x}", "মন", ({"role": "user", "content": q}, {"role": "assistant", "content": a}), "", (i,))
    for i, (q, a) in enumerate(SINGLES)
]


def evaluate(base, folder, progress=None):
    """What every process of a test does, this one too."""
    config = resolve("smoke", {"eval.batch_size": "1", "generation.max_new_tokens": "48"})[0]
    source = ModelSource("smoke", base)
    model = load_model(source, ModelConfig(dtype="float32"))
    evaluator = Evaluator(model, load_tokenizer(source), config, progress, folder)
    replies = evaluator.generate(rows_of(TALKS), "base")
    return [reply.text for reply in replies], [row.nats for row in evaluator.likelihoods(TALKS)]


def main(base, folder, place, rank, size):
    if int(size) > 1:
        from torch import distributed

        distributed.init_process_group("gloo", init_method=f"file://{place}", rank=int(rank), world_size=int(size))
    print(json.dumps(evaluate(base, Path(folder))))


def start(tiny, tmp_path, rank=0, size=1):
    code = "import sys\nfrom tests.test_shared_evaluation import main\nmain(*sys.argv[1:])"
    return Command("-c", code, tiny.base, tmp_path / "generated", tmp_path / "place", rank, size)


def kept(path):
    return [json.loads(line)["id"] for line in path.read_bytes().split(b"\n")[:-1]]


@pytest.mark.slow
def test_two_processes_share_the_rows_and_both_have_all(tiny, tmp_path):
    processes = [start(tiny, tmp_path, rank, 2) for rank in range(2)]
    told = [process.result(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    first, second = (json.loads(line) for output in told for line in output.splitlines() if line.startswith("[["))
    assert first == second
    texts, nats = evaluate(tiny.base, None)
    assert first[0] == texts
    assert first[1] == pytest.approx(nats, rel=1e-5)
    files = [kept(tmp_path / "generated" / name) for name in ("base.jsonl", "base-1.jsonl")]
    assert [len(ids) for ids in files] == [4, 4]
    assert {*files[0], *files[1]} == {row.id for row in rows_of(TALKS)}


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_with_what_it_had(tiny, tmp_path):
    path = tmp_path / "generated" / "base.jsonl"
    process = start(tiny, tmp_path)
    deadline = time.monotonic() + 300
    while not path.exists() or path.read_bytes().count(b"\n") < 3:
        assert process.returncode is None, process.output
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.result(timeout=60)
    before = kept(path)
    assert 3 <= len(before) < len(TALKS)
    path.write_bytes(path.read_bytes() + b'{"id": "torn')
    told = []
    texts, _ = evaluate(tiny.base, path.parent, lambda *stage: told.append(stage))
    assert told[0] == ("base: replies", len(before), len(TALKS))
    assert kept(path)[: len(before)] == before
    assert sorted(kept(path)) == sorted(row.id for row in rows_of(TALKS))
    assert texts == evaluate(tiny.base, None)[0]
