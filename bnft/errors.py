"""The one error type that is meant for the user, and its way to the terminal.

Library code raises `UserError`; only entry scripts turn it into text and an exit status.
Knows nothing about models, data or configuration.
"""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BAD_INPUT = 2
ENVIRONMENT = 1

FREE_SPACE = "Free some space, or choose another --output-dir (runs) or BNFT_CACHE (prepared models)."
FORBIDDEN = "Choose a place that may be read and written, or change its permissions."
WSL = "Open it in WSL: wsl --install, then the README's commands in there."
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
# safetensors and torch.save tell a full disk in words only.
_FULL_IN_WORDS = ("os error 28", "PytorchStreamWriter failed writing")


class UserError(Exception):
    """Something the user can mend.

    Args:
        message: what happened, and with which value.
        hint: what to do next.
        exit_code: 2 for bad input, 1 when the machine is at fault (a full disk).
    """

    def __init__(self, message: str, hint: str = "", exit_code: int = BAD_INPUT):
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class Interrupted(BaseException):
    """Ctrl+C or SIGTERM, after the work in hand was saved. Carries the exit status 130 or 143."""

    def __init__(self, exit_code: int, message: str = ""):
        super().__init__(message)
        self.exit_code = exit_code
        self.message = message


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or the one during whose handling it was raised, says that the disk or quota is full."""
    if error is None:
        return False
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in str(error) for words in _FULL_IN_WORDS) or is_full_disk(error.__context__)


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def use_utf8() -> None:
    """Lets Bengali through a terminal or pipe that claims not to be UTF-8, instead of dying on it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """SIGTERM unwinds the program as Ctrl+C does, so that what is half done is taken back."""
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame) -> None:
    raise Interrupted(128 + number, "ended")


def run_command(main: Callable[[], int]) -> int:
    """Runs an entry script's body and returns its exit status; a `UserError` becomes one message on stderr."""
    use_utf8()
    try:
        with ending_on_sigterm():
            if sys.platform == "win32":
                raise UserError("this program needs Linux: its file locks and signals are not those of Windows", WSL)
            return main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Interrupted as stop:
        print(stop.message or "interrupted", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BaseException as error:
        if is_full_disk(error):
            where = f" while writing {error.filename}" if getattr(error, "filename", None) else ""
            print(f"error: the disk is full{where}\n  {FREE_SPACE}", file=sys.stderr)
            return ENVIRONMENT
        if isinstance(error, OSError) and error.errno in _FORBIDDEN and error.filename:
            print(f"error: {error.filename}: {error.strerror}\n  {FORBIDDEN}", file=sys.stderr)
            return ENVIRONMENT
        raise
