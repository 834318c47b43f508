"""Command lines: the short flags of the contract, and `--section.field value` for every setting.

Turns arguments into the recipe's name, dotted settings and the rest; explains every setting in `--help`. Knows
nothing about what the settings do.
"""

from __future__ import annotations

import argparse
import difflib
from dataclasses import dataclass
from typing import Any, NoReturn

from bnft.errors import UserError
from bnft.settings import FIELD_NAMES, iterate_fields

# Short flags of train.py that are another spelling of a setting.
SHORT = {
    "--data": "data.path",
    "--model": "model.name",
    "--strategy": "train.strategy",
    "--parallel": "train.parallel",
    "--max-steps": "train.max_steps",
    "--max-minutes": "train.max_minutes",
    "--eval-samples": "eval.samples",
    "--judge": "eval.judge",
    "--seed": "seed",
    "--report-to": "train.report_to",
}


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are `UserError`s, and which never guesses a flag from its beginning.

    Args:
        command: what follows `python` on the command line.
    """

    def __init__(self, command: str, description: str):
        plain = argparse.RawDescriptionHelpFormatter
        super().__init__(f"python {command}", description=description, formatter_class=plain, allow_abbrev=False)

    def parse_args(self, args=None, namespace=None):
        own, rest = self.parse_known_args(args, namespace)
        if rest:
            self.refuse(rest[0])
        return own

    def refuse(self, flag: str, settings: tuple[str, ...] = ()) -> NoReturn:
        """Complains of an unknown flag, and names the nearest of its own and of `settings`."""
        known = [*settings, *(option for action in self._actions for option in action.option_strings)]
        close = difflib.get_close_matches(flag, known, n=1, cutoff=0.5)
        self.error(f"unknown argument {flag!r}" + (f"; nearest: {close[0]}" if close else ""))

    def error(self, message: str) -> NoReturn:
        raise UserError(message, f"Every flag with its meaning: {self.prog} --help")


def add_address_flags(parser: Parser) -> None:
    """Where a page is served."""
    parser.add_argument("--host", help="address to listen on [127.0.0.1, or GRADIO_SERVER_NAME]")
    parser.add_argument("--port", type=_port, help="port to listen on [the first free one from 7860]")
    parser.add_argument("--share", action="store_true", help="a public link through Gradio's tunnel, for 72 hours")


def _port(written: str) -> int:
    if not (written.isdecimal() and 1 <= int(written) <= 65535):
        raise UserError(f"--port {written} is no port", "Take a number from 1024 to 65535.")
    return int(written)


@dataclass(frozen=True)
class Arguments:
    """A parsed command line: argparse's own values, and the settings by dotted name."""

    own: argparse.Namespace
    settings: dict[str, str]


def add_setting_flags(parser: Parser) -> None:
    """Adds the short flags, with the descriptions and defaults of the settings that they stand for."""
    fields = {name: (description, default) for name, description, default in iterate_fields()}
    group = parser.add_argument_group("settings used most")
    for flag, name in SHORT.items():
        group.add_argument(flag, dest=name, metavar=name.rsplit(".", 1)[-1].upper(), help=fields[name][0])
    width = max(len(name) for name in FIELD_NAMES) + 4
    lines = [f"  --{name:<{width}}{told} [{as_typed(default)}]" for name, (told, default) in fields.items()]
    parser.epilog = "all settings, with the defaults that a recipe may override:\n" + "\n".join(lines)


def as_typed(value: Any) -> str:
    """A setting's value as its flag takes it."""
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def parse(parser: Parser, argv: list[str] | None) -> Arguments:
    """Parses known flags and `--section.field value` or `--section.field=value`.

    Raises:
        UserError: an unknown flag, with the nearest known one.
    """
    own, rest = parser.parse_known_args(argv)
    values = vars(own)
    settings = {name: values.pop(name) for name in SHORT.values() if values.get(name) is not None}
    for name in SHORT.values():
        values.pop(name, None)
    known = [*(f"--{name}" for name in FIELD_NAMES), *(o for a in parser._actions for o in a.option_strings)]
    position = 0
    while position < len(rest):
        flag, joined, value = rest[position].partition("=")
        position += 1
        if not flag.startswith("--") or flag.removeprefix("--") not in FIELD_NAMES:
            parser.refuse(flag, tuple(f"--{name}" for name in FIELD_NAMES))
        if not joined:
            if position == len(rest) or rest[position].partition("=")[0] in known:
                parser.error(f"{flag} needs a value")
            value = rest[position]
            position += 1
        settings[flag.removeprefix("--")] = value
    return Arguments(own, settings)
