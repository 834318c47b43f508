"""What people and a language model say of a run's replies, beside what was measured of them.

Comes last: what is measured is written already and stays, come what may. Knows nothing about models that reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnft.errors import UserError
from bnft.records import RunDirectory, read_json
from bnft.results import JUDGE, METRICS, Outcome, changing_metrics
from bnft.settings import RunConfig
from bnft.whole_files import write_json


def count_ratings(folder: Path, config: RunConfig) -> None:
    """People's ratings of replies that the run still has go on to count."""
    from bnft.rating_store import RATINGS
    from bnft.rating_summary import record_summary

    if (folder / RATINGS).is_file():
        try:
            told = record_summary(folder, config.eval.bootstrap, config.seed)
            print(f"people's ratings of these replies: {told['ratings']}, in {METRICS}")
        except UserError as error:
            print(f"people's ratings are not told: {error.message}")


def ask_judge(directory: RunDirectory, config: RunConfig, outcome: Outcome, chosen: Sequence[int]) -> None:
    """Asks the language model of the settings about the replies to the chosen rows, given by their numbers."""
    from bnft.judge import ANSWERS, Judge, print_judgement
    from bnft.judge_client import JudgeClient
    from bnft.judge_form import Item
    from bnft.progress import StageBar

    settings = config.eval
    pairs = zip(outcome.rows, outcome.base.replies, outcome.tuned.replies, strict=True)
    items = [Item(row.id, row.messages, base.text, tuned.text) for row, base, tuned in pairs]
    client = JudgeClient(settings.judge, settings.judge_model)
    with StageBar() as bar:
        judge = Judge(client, directory.path(ANSWERS), bar.show)
        told = judge.judge([items[i] for i in chosen], bootstrap=settings.bootstrap, seed=config.seed)
    with changing_metrics(directory.folder):
        path = directory.path(METRICS)
        write_json(path, read_json(path) | {JUDGE: told})
    print_judgement(told)


def forget_judge(folder: Path) -> None:
    """Takes an earlier judgement out of the numbers; its answers stay in their file."""
    with changing_metrics(folder):
        metrics = read_json(folder / METRICS)
        if metrics.pop(JUDGE, None):
            write_json(folder / METRICS, metrics)
