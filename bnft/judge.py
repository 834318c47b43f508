"""A language model as judge of base against tuned: the questions of the rating page, every row in both orders.

It is no person, and `caveat` says so wherever its numbers are told. Raw answers go to a file as they come: what was
answered once is never asked again. Knows nothing about how replies were made, about plots or cards.
"""

from __future__ import annotations

import json
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bnft.judge_client import Answer, JudgeClient, Unanswered
from bnft.judge_form import PROMPT, SIDES, Asked, Item, Judged, Verdict, read_verdict
from bnft.metrics import BOOTSTRAP, SEED, Comparison, Measure, compare, ratio
from bnft.rating_form import QUESTIONS
from bnft.records import now
from bnft.results import print_table

ANSWERS = "judge_answers.jsonl"
DEAD_AFTER = 8  # questions in a row without an answer: the rest is not asked any more
AT_ONCE = 4


class AnswerFile:
    """The raw answers of a run, one JSON line a question, appended as they come."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> Iterator[dict[str, Any]]:
        """Whole lines; one that a killed run tore is passed over."""
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        for line in text.split("\n"):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value

    def verdicts(self) -> dict[str, tuple[Verdict, str, str]]:
        """Verdict, model and decoding by the question's key, read again from the raw answers."""
        found = {}
        for line in self.read():
            try:
                *_, last = line["raw"]
                told = (last, line["model"], line["decoding"])
                if all(isinstance(value, str) for value in told):
                    found[line["key"]] = (read_verdict(last), *told[1:])
            except (ValueError, LookupError, TypeError):
                continue
        return found

    def append(self, line: Mapping[str, Any]) -> None:
        with self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, 2)
                torn = file.read(1) != b"\n"
                file.write(b"\n" * torn)
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")


class Judge:
    """Asks about rows, several at once.

    Args:
        client: the server behind the judge.
        path: file of the raw answers.
        progress: called with the stage's name and the questions done and in all.
    """

    def __init__(self, client: JudgeClient, path: Path, progress: Callable[[str, int, int], None] | None = None):
        self.client = client
        self.file = AnswerFile(path)
        self.progress = progress or (lambda stage, done, total: None)
        self._unanswered_in_a_row = 0

    def judge(self, items: Sequence[Item], *, bootstrap: int = BOOTSTRAP, seed: int = SEED) -> dict[str, Any]:
        """The summary, as metrics.json has it. A judge that does not answer is counted, never an error."""
        questions = [Asked(item, first) for item in items for first in SIDES]
        how = {"bootstrap": bootstrap, "seed": seed}
        try:
            model = self.client.find_model()
        except Unanswered as error:
            return summary(items, {}, None, Counter({error.problem: len(questions)}), **how)
        keys = [(question.key(model), question) for question in questions]
        known = self.file.verdicts()
        problems = self._ask_all({key: question for key, question in keys if key not in known})
        known = self.file.verdicts()
        answered = {(q.item.id, q.first): known[key] for key, q in keys if key in known}
        return summary(items, answered, model, problems, **how)

    def _ask_all(self, questions: Mapping[str, Asked]) -> Counter[str]:
        """Asks what is open and returns how often which problem remained."""
        problems: Counter[str] = Counter()
        waiting: queue.SimpleQueue = queue.SimpleQueue()
        answered: queue.SimpleQueue = queue.SimpleQueue()
        for key, question in questions.items():
            waiting.put((question, key))
        for _ in range(AT_ONCE):
            # Daemons, unlike a pool's threads: Ctrl+C does not wait for what a server may still say.
            threading.Thread(target=self._work, args=(waiting, answered), daemon=True).start()
        try:
            for done in range(1, len(questions) + 1):
                line = answered.get()
                if isinstance(line, BaseException):
                    raise line
                self.file.append(line)
                if line["problem"]:
                    problems[line["problem"]] += 1
                self.progress("judge", done, len(questions))
        finally:
            self.client.stop.set()
        return problems

    def _work(self, waiting: queue.SimpleQueue, answered: queue.SimpleQueue) -> None:
        while not self.client.stop.is_set():
            try:
                question, key = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                answered.put(self._ask(question, key))
            except BaseException as error:
                answered.put(error)
                raise

    def _ask(self, question: Asked, key: str) -> dict[str, Any]:
        """The line of one question: every raw answer to it, the last one being that which counts."""
        raw: list[str] = []
        line = {"id": question.item.id, "first": question.first, "key": key, "time": now(), "raw": raw}
        if self._unanswered_in_a_row >= DEAD_AFTER:
            return line | {"problem": "not asked: the judge had fallen silent", "detail": ""}

        def ask() -> Answer:
            answer = self.client.complete(question.messages())
            raw.append(answer.text)
            try:
                read_verdict(answer.text)
            except ValueError as error:
                raise Unanswered("an answer of another form", str(error)) from error
            return answer

        try:
            answer = self.client.patiently(ask)
        except Unanswered as error:
            self._unanswered_in_a_row += 1
            return line | {"problem": error.problem, "detail": error.detail}
        self._unanswered_in_a_row = 0
        return line | {"model": answer.model, "decoding": answer.decoding, "problem": None}


def caveat(model: str) -> str:
    """What has to stand wherever a judge's numbers are told."""
    return (
        f"A language model ({model}), not a person, judged these replies. On texts in languages like Bengali such "
        "judges agree poorly with people: take it as a hint beside people's ratings, never in their place."
    )


def summary(
    items: Sequence[Item],
    answered: Mapping[tuple[str, str], tuple[Verdict, str, str]],
    model: str | None,
    problems: Mapping[str, int],
    *,
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """What the judge said of the rows that it answered in both orders, ready for metrics.json.

    Args:
        answered: verdict, model and decoding by row and by the side that stood as A.
    """
    whole = [item for item in items if all((item.id, first) in answered for first in SIDES)]
    used = [answered[item.id, first] for item in whole for first in SIDES]
    names = " + ".join(sorted({name for _, name, _ in used})) or model or "unknown: nothing answered"
    told = {
        "what": caveat(names),
        "model": names,
        "prompt": PROMPT,
        "rows": {"asked": len(items), "answered": len(whole), "unanswered": len(items) - len(whole)},
        "problems": dict(problems),
    }
    if not whole:
        return told
    rows = [Judged.of_orders({first: answered[item.id, first][0] for first in SIDES}) for item in whole]
    decoding = " + ".join(sorted({how or "the server's own" for _, _, how in used}))
    signature = f"judge:{names}|prompt:{PROMPT}|decoding:{decoding}|orders:both"
    base, tuned = ({m.name: m.score(bootstrap, seed) for m in _measures(rows, side, signature)} for side in SIDES)
    agreement = _share("orders_agree", [row.agreed for row in rows], signature).score(bootstrap, seed)
    return told | {
        "base": {name: score.to_dict() for name, score in base.items()},
        "tuned": {name: score.to_dict() for name, score in tuned.items()},
        "comparison": {name: comparison.to_dict() for name, comparison in compare(base, tuned).items()},
        "orders_agree": agreement.to_dict(),
    }


def _measures(rows: Sequence[Judged], side: str, signature: str) -> list[Measure]:
    values = {q.key: [getattr(row, side)[q.key] for row in rows] for q in QUESTIONS}
    means = [
        Measure(q.key, _column(values[q.key]), ratio, f"{signature}|agg:mean", f"{q.low}-{q.high}", True)
        for q in QUESTIONS
    ]
    return [*means, _share("preferred", [row.preference == side for row in rows], f"{signature}|ties:for neither")]


def _share(name: str, hits: Sequence[bool], signature: str) -> Measure:
    return Measure(name, _column(hits), ratio, f"{signature}|agg:mean", "share", True)


def _column(values: Sequence[float]) -> np.ndarray:
    return np.column_stack([np.array(values, dtype=float), np.ones(len(values))])


def print_judgement(told: Mapping[str, Any]) -> None:
    """The summary as a table, under what it is."""
    rows, problems = told["rows"], ", ".join(f"{n} x {problem}" for problem, n in told["problems"].items())
    print(f"\n{told['what']}")
    print(f"judge: {rows['answered']} of {rows['asked']} rows answered in both orders{problems and f' ({problems})'}")
    if "comparison" in told:
        comparisons = {name: Comparison(**comparison) for name, comparison in told["comparison"].items()}
        print_table(comparisons, "judged by a language model, not by people", tuple(comparisons))
        agree = told["orders_agree"]["value"]
        print(f"both orders agree on {agree:.0%} of the rows; where they do not, the preference counts as a tie")
