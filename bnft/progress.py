"""Progress bars for work that reports stages. Knows nothing about the work."""

from __future__ import annotations

from tqdm.auto import tqdm


class StageBar:
    """One bar a stage, with rate and time left. Pass `show` where a progress callback is wanted."""

    def __init__(self):
        self.bar: tqdm | None = None
        self.stage = ""

    def __enter__(self) -> StageBar:
        return self

    def __exit__(self, *exception) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self.__exit__()
            self.bar = tqdm(total=total, desc=stage)
            self.stage = stage
        self.bar.update(done - self.bar.n)
