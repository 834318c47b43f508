"""A training run from data to records: what `train.py` does, step by step, into one run directory.

Composes the rooms; holds no rule of its own about data, training or metrics.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bnft.config import to_yaml
from bnft.data import DatasetProcessor, format_report
from bnft.errors import UserError
from bnft.evaluation import Evaluation, Evaluator, choose_rows, rows_of
from bnft.metrics import Comparison
from bnft.models import resolve_dtype
from bnft.plan import find_gpus
from bnft.records import (
    RESPONSES,
    RunDirectory,
    append_experiment,
    csv_text,
    environment,
    now,
    read_json,
    write_atomically,
    write_json,
)
from bnft.settings import RunConfig
from bnft.training import LLAMAFineTuner, TrainingResult

SHOWN = ("bits_per_byte", "ended_rate", "cut_off_rate", "bengali_script_rate", "replacement_char_rate")
SHOWN += ("repeated_4grams", "reply_words", "chrf++", "chrf", "bleu", "rouge1", "rouge2", "rougeL")


class Pipeline:
    """One run. `create` or `open` it, then call `start`, `resume` or `evaluate_again`."""

    def __init__(self, directory: RunDirectory, config: RunConfig, sources: dict[str, str], record: dict[str, Any]):
        self.directory = directory
        self.config = config
        self.sources = sources
        self.record = record

    @classmethod
    def create(cls, output_dir: str, name: str | None, recipe: str, config: RunConfig, sources: dict) -> Pipeline:
        """A new run in `output_dir`, named after the recipe and the time unless a name is given."""
        stem = Path(recipe).stem
        directory = RunDirectory.create(output_dir, name or f"{stem}-{now().replace(':', '').replace('+0000', 'Z')}")
        return cls(directory, config, sources, {"recipe": stem, "started": now(), "seconds": {}} | environment())

    @classmethod
    def open(cls, folder: str, config: RunConfig, sources: dict[str, str]) -> Pipeline:
        """The run in an existing folder."""
        directory = RunDirectory.open(folder)
        record = read_json(directory.folder / "run.json")
        changed = {name: source for name, source in sources.items() if source.startswith("flag ")}
        return cls(directory, config, record["sources"] | changed, record)

    def start(self) -> None:
        """Everything: data, training, evaluation, records. A run that fails before it has anything leaves nothing."""
        try:
            self._write_settings()
            data = self._timed("data", DatasetProcessor(self.config.data, self.config.seed).process)
            print(format_report(data.report))
            write_json(self.directory.path("data_report.json"), data.report)
            self.directory.write_splits(data.splits)
            self._train(data.splits, None)
        except BaseException:
            self.directory.discard_if_empty()
            raise

    def resume(self) -> None:
        """Goes on from the newest whole checkpoint, or from the start where there is none."""
        checkpoint = self.directory.last_checkpoint()
        print(f"going on from {checkpoint or 'the beginning: there is no whole checkpoint'}")
        self._write_settings()
        self._train(self.directory.read_splits(), checkpoint)

    def evaluate_again(self) -> None:
        """Evaluates the saved adapter on the run's own test split."""
        if not (self.directory.folder / "lora_model").is_dir():
            raise UserError(
                f"{self.directory.folder} has no lora_model/ to evaluate",
                f"Finish it first: python train.py --resume {self.directory.folder}",
            )
        adapter = self.config.replace("model.name", str(self.directory.folder / "lora_model"))
        tuner = self._timed("model", lambda: LLAMAFineTuner(config=adapter))
        self._write_settings()
        self._evaluate(tuner, self.directory.read_splits()["test"])

    def _train(self, splits: dict[str, list], checkpoint: Path | None) -> None:
        tuner = self._timed("model", lambda: LLAMAFineTuner(config=self.config))
        dtype, reason = resolve_dtype(self.config.model.dtype)
        print(f"dtype: {dtype} ({reason})\nstrategy: {tuner.strategy.name} ({tuner.strategy_reason})")
        self.record |= {
            "model": {"name": self.config.model.name, "licence": tuner.source.licence},
            "dtype": dtype,
            "gpus": [gpu.name for gpu in find_gpus()],
            "strategy": tuner.strategy.name,
            "data": {
                "fingerprint": read_json(self.directory.folder / "data_report.json")["sha256"],
                "exchanges": {name: len(rows_of(part)) for name, part in splits.items()},
            },
            "parameters": {
                "all": sum(p.numel() for p in tuner.model.parameters()),
                "trained": sum(p.numel() for p in tuner.model.parameters() if p.requires_grad),
            },
        }
        self._write_record()
        folder = self.directory.folder
        result = self._timed("training", lambda: tuner.train(splits["train"], splits["validation"], folder, checkpoint))
        self._record_training(result)
        self._evaluate(tuner, splits["test"])

    def _record_training(self, result: TrainingResult) -> None:
        self.record["training"] = {
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
            "best_step": result.best_step,
            "best_eval_loss": result.best_eval_loss,
            "stopped_by": result.stopped_by,
            "history": result.history,
            # length -> conversations of that length: small however large the corpus is
            "token_lengths": {name: dict(sorted(Counter(lengths).items())) for name, lengths in result.tokens.items()},
        }
        self._write_record()

    def _evaluate(self, tuner: LLAMAFineTuner, test: list) -> None:
        from bnft.progress import StageBar

        with StageBar() as bar:
            evaluator = Evaluator(tuner.model, tuner.tokenizer, self.config, bar.show)
            base, tuned, comparisons = self._timed("evaluation", lambda: evaluator.evaluate_pair(test))
        rows = choose_rows(rows_of(test), self.config.eval.samples, self.config.seed)
        self._write_results(test, rows, base, tuned, comparisons)
        print_table(comparisons)
        print_samples(rows, base, tuned, self.config.seed)
        folder = self.directory.folder
        print(f"\nrun: {folder}\nnext, replies to every test row:")
        print(f"  python train.py --eval-only {folder} --eval-samples all")

    def _write_results(self, test, rows, base: Evaluation, tuned: Evaluation, comparisons) -> None:
        metrics = {
            "test": {"rows": len(rows_of(test)), "rows_generated": len(rows), "fingerprint": fingerprint(test)},
            "decoding": {
                "method": "greedy",
                "max_new_tokens": self.config.generation.max_new_tokens,
                "repetition_penalty": self.config.generation.repetition_penalty,
            },
            "base": {name: score.to_dict() for name, score in base.scores.items()},
            "tuned": {name: score.to_dict() for name, score in tuned.scores.items()},
            "comparison": {name: comparison.to_dict() for name, comparison in comparisons.items()},
        }
        write_json(self.directory.path("metrics.json"), metrics)
        responses = [
            {
                "id": row.id,
                "question": row.question,
                "reference": row.reference,
                "base_reply": b.text,
                "tuned_reply": t.text,
                "base_tokens": b.tokens,
                "tuned_tokens": t.tokens,
                "base_seconds": round(b.seconds, 3),
                "tuned_seconds": round(t.seconds, 3),
                "base_finish_reason": b.finish_reason,
                "tuned_finish_reason": t.finish_reason,
            }
            for row, b, t in zip(rows, base.replies, tuned.replies, strict=True)
        ]
        write_atomically(self.directory.path(RESPONSES), csv_text(responses, list(responses[0])))
        self.record |= {"finished": now(), "peak_memory_gib": peak_memory()}
        self._write_record()
        self._draw(metrics)
        append_experiment(self.directory.folder.parent, self._experiment(metrics))
        self.directory.mark_latest()

    def _draw(self, metrics: dict) -> None:
        from bnft import plots

        training = self.record.get("training")
        if training and training["history"]:
            plots.plot_loss(training["history"], self.directory.path("plots", "loss.png"))
            plots.plot_learning_rate(training["history"], self.directory.path("plots", "learning_rate.png"))
            lengths = {
                name: [int(length) for length, count in counts.items() for _ in range(count)]
                for name, counts in training["token_lengths"].items()
            }
            limit = self.config.model.max_seq_length
            plots.plot_token_lengths(lengths, limit, self.directory.path("plots", "token_lengths.png"))
        both = {name: {"base": metrics["base"][name], "tuned": metrics["tuned"][name]} for name in SHOWN}
        plots.plot_comparison(both, self.directory.path("plots", "base_against_tuned.png"))

    def _experiment(self, metrics: dict) -> dict[str, Any]:
        config, training = self.config, self.record.get("training", {})
        row = {
            "run": self.directory.folder.name,
            "started": self.record["started"],
            "finished": self.record["finished"],
            "recipe": self.record["recipe"],
            "model": config.model.name,
            "load_in_4bit": config.model.load_in_4bit,
            "dtype": self.record.get("dtype"),
            "strategy": self.record.get("strategy"),
            "data_fingerprint": self.record.get("data", {}).get("fingerprint", "")[:16],
            "test_fingerprint": metrics["test"]["fingerprint"][:16],
            "seed": config.seed,
            "steps": training.get("steps"),
            "rows_a_step": config.train.batch_size * config.train.accumulation,
            "learning_rate": config.train.learning_rate,
            "lora_r": config.lora.r,
            "lora_alpha": config.lora.alpha,
            "best_step": training.get("best_step"),
            "best_eval_loss": training.get("best_eval_loss"),
            "training_seconds": training.get("seconds"),
            "evaluation_seconds": self.record["seconds"].get("evaluation"),
            "peak_memory_gib": self.record["peak_memory_gib"],
            "git_commit": self.record.get("git_commit"),
        }
        for system in ("base", "tuned"):
            row |= {f"{system}_{name}": round(score["value"], 5) for name, score in metrics[system].items()}
        return row

    def _write_settings(self) -> None:
        self.record["sources"] = self.sources
        write_atomically(self.directory.path("config.yaml"), to_yaml(self.config, self.sources))
        self._write_record()

    def _write_record(self) -> None:
        write_json(self.directory.path("run.json"), self.record)

    def _timed(self, phase: str, work):
        started = time.monotonic()
        result = work()
        self.record["seconds"][phase] = round(time.monotonic() - started, 1)
        return result


def fingerprint(conversations: list) -> str:
    """Hash of what a split holds, so that numbers from different splits are never set side by side unseen."""
    return hashlib.sha256("\n".join(c.id for c in conversations).encode()).hexdigest()


def peak_memory() -> float:
    """Largest memory so far in GiB: of the GPUs where there are any, else of this process."""
    import resource

    import torch

    if torch.cuda.is_available():
        return round(max(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())) / 2**30, 2)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def print_table(comparisons: dict[str, Comparison]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="base against tuned, same held-out rows, same decoding")
    for heading in ("metric", "base", "tuned", "difference [95 %]", "p"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name in SHOWN:
        c = comparisons[name]
        interval = "" if c.low is None else f" [{c.low:+.3g}, {c.high:+.3g}]"
        p = "" if c.p is None else f"{c.p:.3f}"
        table.add_row(name, f"{c.base:.4g}", f"{c.tuned:.4g}", f"{c.difference:+.4g}{interval}", p)
    console = Console()
    # Cells must not wrap where nobody watches: a log file or a pipe has no width of its own.
    (console if console.is_terminal else Console(width=120)).print(table)


def print_samples(rows: list, base: Evaluation, tuned: Evaluation, seed: int, count: int = 3) -> None:
    """Unpicked samples: drawn by the seed."""
    for i in sorted(random.Random(seed).sample(range(len(rows)), min(count, len(rows)))):
        print(f"\n  person: {rows[i].question}\n  base:   {base.replies[i].text}\n  tuned:  {tuned.replies[i].text}")
