"""Commands as processes of their own, without the wait for their libraries: one process imports those, forks the rest.

Each has its own environment, folder, output, signals and exit status, as one that a shell starts. What it costs to
import the libraries, and that a command finds them by itself, is for tests that start Python anew.
"""

import importlib
import multiprocessing
import os
import runpy
import sys
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
IMPORTED = ("torch", "trl", "peft", "bitsandbytes", "datasets", "evaluate", "sacrebleu", "matplotlib.pyplot")

_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(IMPORTED)


class Command:
    """What `python` makes of these words, a script or -c and its arguments."""

    def __init__(self, *words: object, cwd: Path = REPOSITORY, env: Mapping[str, str] = os.environ):
        self._output = tempfile.NamedTemporaryFile()  # noqa: SIM115 (read as long as this object lives)
        given = (list(map(str, words)), str(cwd), dict(env), self._output.name)
        self._process = _forkserver.Process(target=_become, args=given)
        self._process.start()
        weakref.finalize(self, self._process.kill)  # what a test that failed leaves running
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def result(self, timeout: float) -> str:
        """Waits for the end; returns what was printed."""
        self._process.join(timeout)
        if self.returncode is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"{timeout} s were not enough:\n{self.output}")
        return self.output

    @property
    def output(self) -> str:
        """What it has printed so far, on stdout and stderr."""
        return Path(self._output.name).read_text(encoding="utf-8")


def _become(words: list[str], cwd: str, environment: dict[str, str], output: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    from huggingface_hub import constants, hf_api

    importlib.reload(constants)  # read from the environment at import
    hf_api.api.endpoint = constants.ENDPOINT
    for descriptor in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), descriptor)
    sys.path[:] = [path for path in sys.path if path not in ("", str(REPOSITORY), str(REPOSITORY / "tests"))]
    if words[0] == "-c":
        sys.argv, sys.path[:0] = ["-c", *words[2:]], [""]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        script = Path(cwd, words[0])
        sys.argv, sys.path[:0] = words, [str(script.parent)]
        runpy.run_path(str(script), run_name="__main__")
