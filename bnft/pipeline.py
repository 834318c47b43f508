"""A training run from data to records: what `train.py` does, step by step, into one run directory.

Composes the rooms; holds no rule of its own about data, training or metrics.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
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
from bnft.manifest import damage_of
from bnft.models import resolve_dtype
from bnft.opinions import ask_judge, count_ratings, forget_judge
from bnft.placement import Placement
from bnft.plan import RunPlan
from bnft.planning import free_now, make_plan, measured, plan_warnings
from bnft.records import SETTINGS, RunDirectory, environment, now, peak_memory, read_json
from bnft.results import Outcome, print_results, write_results
from bnft.settings import RunConfig
from bnft.stops import interruption_told
from bnft.training import LLAMAFineTuner, TrainingResult
from bnft.whole_files import write_atomically, write_json
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
        judge_is_named: bool = True,
    ):
        self.world = current_world()
        self.placement = placement
        self.directory = directory
        self.config = config
        self.sources = sources
        self.record = record
        # Rows and a key go to a judge: to whom, this command says, not a folder that may be somebody else's.
        self.judge_is_named = judge_is_named

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
        own = name or f"{stem}-{now().replace(':', '').replace('+0000', 'Z')}"
        world = current_world()
        made = RunDirectory.create(output_dir, own, numbered=not name).folder if world.leads else None
        directory = RunDirectory(broadcast_object(made, world))
        record = {"recipe": stem, "started": now(), "seconds": {}} | environment()
        return cls(directory, config, sources, placement, record)

    @classmethod
    def open(cls, folder: str, config: RunConfig, sources: dict[str, str], placement: Placement) -> Pipeline:
        """The run in an existing folder."""
        directory = RunDirectory.open(folder)
        record = read_json(directory.folder / "run.json")
        changed = {name: source for name, source in sources.items() if source.startswith("flag ")}
        sources = sources | record["sources"] | changed
        return cls(directory, config, sources, placement, record, judge_is_named="eval.judge" in changed)

    def start(self) -> None:
        """Data and training, with their records. A run that fails before it has anything leaves nothing."""
        with self._held():
            try:
                self._write_settings()
                splits = self._process_data() if self.world.leads else None
                self._train(broadcast_object(splits, self.world), None)
            except BaseException:
                if self.world.leads:
                    self.directory.discard_if_empty()
                raise

    def _held(self) -> AbstractContextManager:
        return self.directory.held() if self.world.leads else nullcontext()

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
            judge = ["--judge", self.config.eval.judge] if self.config.eval.judge and self.judge_is_named else []
            return launch_training(["--eval-only", str(self.directory.folder), *judge], 1)
        with self._held():
            self._evaluate(self._tuner, self._test)
            self._record_actual({"evaluation": self.record["seconds"]["evaluation"]})
        return 0

    def resume(self) -> None:
        """Goes on from the newest whole checkpoint, or from the start where there is none."""
        with self._held():
            checkpoint = last_checkpoint(self.directory.folder / "checkpoints")
            print(f"going on from {checkpoint or 'the beginning: there is no whole checkpoint'}")
            self._write_settings()
            splits = self._read_data(checkpoint) if self.world.leads else None
            self._train(broadcast_object(splits, self.world), checkpoint)

    def _read_data(self, checkpoint: Path | None) -> dict[str, list]:
        """The run's own splits; made again where they are not whole and nothing has been learnt from them."""
        fault = damage_of(self.directory.folder / "splits")
        if fault and not checkpoint:
            print(f"splitting the data again: {fault}")
            return self._process_data()
        return self.directory.read_splits()

    def evaluate_again(self) -> None:
        """Evaluates the saved adapter on the run's own test split."""
        if not (self.directory.folder / "lora_model").is_dir():
            raise UserError(
                f"{self.directory.folder} has no lora_model/ to evaluate",
                f"Finish it first: python train.py --resume {self.directory.folder}",
            )
        adapter = self.config.replace("model.name", str(self.directory.folder / "lora_model"))
        adapter = adapter.replace("train.strategy", "peft")
        with self._held():
            test = self.directory.read_splits()["test"]
            tuner = self._timed("model", lambda: self._placed(adapter))
            self._write_settings()
            self._evaluate(tuner, test)

    def _placed(self, config: RunConfig) -> LLAMAFineTuner:
        config = config.replace("train.parallel", self.placement.way)
        if self.placement.way == "fsdp" and config.train.strategy == "auto":
            config = config.replace("train.strategy", "peft")  # the one whose weights can be shared out
        return LLAMAFineTuner(config=config, world=self.world)

    def _train(self, splits: dict[str, list], checkpoint: Path | None) -> None:
        plan = self._plan(splits)
        config = plan.applied_to(self.config) if plan else self.config
        if config != self.config:
            print("gradient checkpointing: none, there is room to keep everything for the backward pass")
        tuner = self._timed("model", lambda: self._placed(config))
        tuner.follow(plan)
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
            "out_of_memory": result.ran_out,
            "history": result.history,
            # length -> conversations of that length: small however large the corpus is
            "token_lengths": {name: dict(sorted(Counter(lengths).items())) for name, lengths in result.tokens.items()},
        }
        self._write_record()

    def _evaluate(self, tuner: LLAMAFineTuner, test: list) -> None:
        from bnft.progress import StageBar

        again = f"python train.py --eval-only {self.directory.folder}"
        with StageBar() as bar, interruption_told(f"interrupted; replies so far are kept.\n  Go on with: {again}"):
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
        count_ratings(self.directory.folder, self.config)
        judge = self.config.eval.judge
        if judge and self.judge_is_named:
            asked = choose_rows(range(len(rows)), self.config.eval.judge_samples, self.config.seed)
            self._timed("judge", lambda: ask_judge(self.directory, self.config, outcome, asked))
            self._write_record()
        elif judge:
            print(f"the judge that the run's settings name is asked when you name it: --judge {judge}")
        elif self.judge_is_named:
            forget_judge(self.directory.folder)

    def _write_settings(self) -> None:
        self.record["sources"] = self.sources
        self._write_record()
        if self.world.leads:  # last: a folder with settings is a run that can be gone on with
            write_atomically(self.directory.path(SETTINGS), to_yaml(self.config, self.sources))

    def _write_record(self) -> None:
        if self.world.leads:
            write_json(self.directory.path("run.json"), self.record)

    def _timed(self, phase: str, work):
        started = time.monotonic()
        result = work()
        self.record["seconds"][phase] = round(time.monotonic() - started, 1)
        return result
