"""A training run from data to records: what `train.py` does, step by step, into one run directory.

Composes the rooms; holds no rule of its own about data, training or metrics.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from bnft.checkpoints import last_checkpoint
from bnft.config import to_yaml
from bnft.data import format_report
from bnft.data_cache import processed
from bnft.errors import UserError
from bnft.evaluation import Evaluator, choose_rows, rows_of
from bnft.gpu_memory import release_gpu
from bnft.launch import launch_training
from bnft.models import resolve_dtype
from bnft.placement import Placement
from bnft.plan import RunPlan
from bnft.planning import free_now, make_plan, measured, plan_warnings
from bnft.records import RunDirectory, environment, now, read_json, write_atomically, write_json
from bnft.results import METRICS, Outcome, peak_memory, print_results, write_results
from bnft.settings import RunConfig
from bnft.training import LLAMAFineTuner, TrainingResult
from bnft.world import broadcast_object, current_world


class Pipeline:
    """One run. `create` or `open` it, then call `start` or `resume` and then `finish`, or `evaluate_again`.

    In a world of several processes all call the same, up to `finish`; the leader alone writes.
    """

    def __init__(
        self,
        directory: RunDirectory,
        config: RunConfig,
        sources: dict[str, str],
        placement: Placement,
        record: dict[str, Any],
    ):
        self.world = current_world()
        self.placement = placement
        self.directory = directory
        self.config = config
        self.sources = sources
        self.record = record

    @classmethod
    def create(
        cls,
        output_dir: str,
        name: str | None,
        recipe: str,
        config: RunConfig,
        sources: dict[str, str],
        placement: Placement,
    ) -> Pipeline:
        """A new run in `output_dir`, named after the recipe and the time unless a name is given."""
        stem = Path(recipe).stem
        name = name or f"{stem}-{now().replace(':', '').replace('+0000', 'Z')}"
        world = current_world()
        made = RunDirectory.create(output_dir, name).folder if world.leads else None
        directory = RunDirectory(broadcast_object(made, world))
        record = {"recipe": stem, "started": now(), "seconds": {}} | environment()
        return cls(directory, config, sources, placement, record)

    @classmethod
    def open(cls, folder: str, config: RunConfig, sources: dict[str, str], placement: Placement) -> Pipeline:
        """The run in an existing folder."""
        directory = RunDirectory.open(folder)
        record = read_json(directory.folder / "run.json")
        changed = {name: source for name, source in sources.items() if source.startswith("flag ")}
        return cls(directory, config, sources | record["sources"] | changed, placement, record)

    def start(self) -> None:
        """Data and training, with their records. A run that fails before it has anything leaves nothing."""
        try:
            self._write_settings()
            splits = self._process_data() if self.world.leads else None
            self._train(broadcast_object(splits, self.world), None)
        except BaseException:
            if self.world.leads:
                self.directory.discard_if_empty()
            raise

    def _process_data(self) -> dict[str, list]:
        data = self._timed("data", lambda: processed(self.config.data, self.config.seed))
        print(format_report(data.report))
        write_json(self.directory.path("data_report.json"), data.report)
        self.directory.write_splits(data.splits)
        return data.splits

    def finish(self) -> int:
        """Evaluates what was trained; by then the leader is alone, the others' GPUs are free again.

        Returns:
            The exit status.
        """
        if not self.world.leads:
            return 0
        if self.placement.way == "fsdp":
            print(f"no process holds the whole model. Evaluate it: python train.py --eval-only {self.directory.folder}")
            return 0
        # Base and tuned are measured by the libraries as they are, on all GPUs.
        if self._tuner.strategy.rewrites_libraries or (self.placement.gpus and self.world.size > 1):
            del self._tuner
            release_gpu()
            return launch_training(["--eval-only", str(self.directory.folder)], 1)
        self._evaluate(self._tuner, self._test)
        self._record_actual({"evaluation": self.record["seconds"]["evaluation"]})
        return 0

    def resume(self) -> None:
        """Goes on from the newest whole checkpoint, or from the start where there is none."""
        checkpoint = last_checkpoint(self.directory.folder / "checkpoints")
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
        adapter = adapter.replace("train.strategy", "peft")
        tuner = self._timed("model", lambda: self._placed(adapter))
        self._write_settings()
        self._evaluate(tuner, self.directory.read_splits()["test"])

    def _placed(self, config: RunConfig) -> LLAMAFineTuner:
        config = config.replace("train.parallel", self.placement.way)
        if self.placement.way == "fsdp" and config.train.strategy == "auto":
            config = config.replace("train.strategy", "peft")  # the one whose weights can be shared out
        return LLAMAFineTuner(config=config, world=self.world)

    def _train(self, splits: dict[str, list], checkpoint: Path | None) -> None:
        plan = self._plan(splits)
        tuner = self._timed("model", lambda: self._placed(self.config))
        if plan and plan.pass_tokens:
            tuner.pass_tokens = plan.pass_tokens
        dtype, reason = resolve_dtype(self.config.model.dtype)
        print(f"dtype: {dtype} ({reason})\nstrategy: {tuner.strategy.name} ({tuner.strategy_reason})")
        self.record |= {
            "model": {"name": self.config.model.name, "licence": tuner.source.licence},
            "dtype": dtype,
            "placement": self.placement.way,
            "processes": self.world.size,
            "gpus": [gpu.name for gpu in self.placement.gpus],
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
        self._record_actual({} if checkpoint else {"training": round(result.seconds, 1)})
        self._tuner, self._test = tuner, splits["test"]

    def _plan(self, splits: dict[str, list]) -> RunPlan | None:
        """What the run will take, told and noted before any weight is there; None where the model does not tell."""
        plan = make_plan(self.config, self.placement, splits, free_now(self.placement))
        if plan:
            self.record["plan"] = {"predicted": plan.record(), "actual": {}}
            for warning in plan_warnings(plan, self.config, self.directory.folder):
                print(f"warning: {warning}")
        return plan

    def _record_actual(self, seconds: dict[str, float]) -> None:
        """What it took so far, beside what was predicted; a GPU's peak is that of the training."""
        if "plan" not in self.record:
            return
        actual = self.record["plan"]["actual"]
        taken = measured(self.directory.folder, self.placement)
        peaks = actual.get("gpu_gib", taken["gpu_gib"])
        actual |= taken | {"gpu_gib": peaks, "seconds": actual.get("seconds", {}) | seconds}
        self._write_record()

    def _record_training(self, result: TrainingResult) -> None:
        self.record["peak_memory_gib"] = peak_memory()
        self.record["training"] = {
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
            "best_step": result.best_step,
            "best_eval_loss": result.best_eval_loss,
            "stopped_by": result.stopped_by,
            "packed": result.packed,
            "out_of_memory": result.halved,
            "history": result.history,
            # length -> conversations of that length: small however large the corpus is
            "token_lengths": {name: dict(sorted(Counter(lengths).items())) for name, lengths in result.tokens.items()},
        }
        self._write_record()

    def _evaluate(self, tuner: LLAMAFineTuner, test: list) -> None:
        from bnft.progress import StageBar

        with StageBar() as bar:
            evaluator = Evaluator(
                tuner.model, tuner.tokenizer, self.config, bar.show, self.directory.folder / "generated"
            )
            base, tuned, comparisons = self._timed("evaluation", lambda: evaluator.evaluate_pair(test))
        if not self.world.leads:
            return
        rows = choose_rows(rows_of(test), self.config.eval.samples, self.config.seed)
        outcome = Outcome(test, rows, base, tuned, comparisons)
        write_results(self.directory, self.config, self.record, outcome)
        print_results(self.directory.folder, outcome, self.config.seed)
        self._judge(outcome)

    def _judge(self, outcome: Outcome) -> None:
        """Asks a language model about the replies, where one is set; what is measured already stays, come what may."""
        settings = self.config.eval
        if not settings.judge:
            return
        from bnft.judge import ANSWERS, Judge, print_judgement
        from bnft.judge_client import JudgeClient
        from bnft.judge_form import Item
        from bnft.progress import StageBar

        pairs = zip(outcome.rows, outcome.base.replies, outcome.tuned.replies, strict=True)
        items = [Item(row.id, row.messages, base.text, tuned.text) for row, base, tuned in pairs]
        chosen = choose_rows(items, settings.judge_samples, self.config.seed)
        client = JudgeClient(settings.judge, settings.judge_model)
        with StageBar() as bar:
            judge = Judge(client, self.directory.path(ANSWERS), bar.show)
            how = {"bootstrap": settings.bootstrap, "seed": self.config.seed}
            told = self._timed("judge", lambda: judge.judge(chosen, **how))
        path = self.directory.path(METRICS)
        write_json(path, read_json(path) | {"judge": told})
        self._write_record()
        print_judgement(told)

    def _write_settings(self) -> None:
        self.record["sources"] = self.sources
        if self.world.leads:
            write_atomically(self.directory.path("config.yaml"), to_yaml(self.config, self.sources))
        self._write_record()

    def _write_record(self) -> None:
        if self.world.leads:
            write_json(self.directory.path("run.json"), self.record)

    def _timed(self, phase: str, work):
        started = time.monotonic()
        result = work()
        self.record["seconds"][phase] = round(time.monotonic() - started, 1)
        return result
