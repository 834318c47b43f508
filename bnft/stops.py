"""What ends a training run early: its time limit, Ctrl+C, SIGTERM, a loss that is no number.

Knows nothing about models, data or what is saved.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bnft.errors import Interrupted, UserError
from bnft.world import World, any_over


@contextmanager
def interruption_told(message: str) -> Iterator[None]:
    """Ctrl+C and SIGTERM end what is inside with this message, and with their exit status."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as stop:
        raise Interrupted(getattr(stop, "exit_code", 128 + signal.SIGINT), message) from stop


class Stops:
    """Time limit and signals: both let the step in hand end, save a checkpoint and leave the loop."""

    def __init__(self, max_minutes: float | None, world: World):
        self.world = world
        self.deadline = time.monotonic() + max_minutes * 60 if max_minutes else math.inf
        self.reason = ""
        self.step_ends: list[float] = []
        self.exit_code = 0

    def callback(self):
        from transformers import TrainerCallback

        stops = self

        class StopCallback(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                stops.step_ends.append(time.monotonic())
                # One process' signal or clock stops them all, at the same step.
                if any_over(bool(stops.exit_code), stops.world):
                    stops.exit_code = stops.exit_code or 128 + signal.SIGTERM
                    control.should_save = control.should_training_stop = True
                elif any_over(time.monotonic() > stops.deadline, stops.world):
                    stops.reason = "time limit"
                    control.should_evaluate = control.should_save = control.should_training_stop = True

            def on_log(self, args, state, control, logs=None, **kwargs):
                # fp16's scaler passes over steps whose gradients are too large, as it means to at the start.
                for name in ("loss", "eval_loss") if args.fp16 else ("loss", "eval_loss", "grad_norm"):
                    if not math.isfinite((logs or {}).get(name, 0.0)):
                        raise UserError(
                            f"{name} is {logs[name]} at step {state.global_step}; the last good checkpoint is kept",
                            "Start a new run with a lower --train.learning_rate or more --train.warmup_steps.",
                            exit_code=1,
                        )

        return StopCallback()

    def listening(self):
        return _Signals(self)


class _Signals:
    """While training runs, the first Ctrl+C or SIGTERM asks it to stop; a second one stops at once."""

    def __init__(self, stops: Stops):
        self.stops = stops

    def __enter__(self):
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number, frame):
        if self.stops.exit_code:
            raise KeyboardInterrupt
        self.stops.exit_code = 128 + number
        print("\nstopping after this step; once more stops at once", flush=True)

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)
