"""The one error type that is meant for the user, and its way to the terminal.

Library code raises `UserError`; only entry scripts turn it into text and an exit status.
Knows nothing about models, data or configuration.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

BAD_INPUT = 2
ENVIRONMENT = 1


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


def use_utf8() -> None:
    """Lets Bengali through a terminal or pipe that claims not to be UTF-8, instead of dying on it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")


def run_command(main: Callable[[], int]) -> int:
    """Runs an entry script's body and returns its exit status; a `UserError` becomes one message on stderr."""
    use_utf8()
    try:
        return main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        print(f"error: the disk is full{where}\n  Free some space or choose another --output-dir.", file=sys.stderr)
        return ENVIRONMENT
    except Interrupted as stop:
        print(stop.message or "interrupted", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
