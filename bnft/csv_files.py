"""CSV files that people open in a spreadsheet, which shows what stands in them and computes none of it.

A cell that begins like a formula would be one, and a formula can send its neighbours' texts to a stranger
(https://owasp.org/www-community/attacks/CSV_Injection). Such a text gets a ' in front, by which spreadsheets know that
it is text, and loses it when it is read here. Knows nothing about what the tables hold.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?")


def csv_text(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], header: bool = True) -> str:
    def line(row: Mapping[str, Any]) -> str:
        text = io.StringIO(newline="")
        # With its own ending, \r\n, the writer puts cells in quotes that hold either of the two.
        csv.DictWriter(text, columns).writerow(row)
        return text.getvalue().removesuffix("\r\n") + "\n"

    first = line(dict(zip(columns, columns, strict=True))) if header else ""
    return first + "".join(line({name: _shown(value) for name, value in row.items()}) for row in rows)


class CsvReader(csv.DictReader):
    """Rows by column name, as they were before `csv_text` wrote them."""

    def __next__(self) -> dict:
        return {name: _meant(value) for name, value in super().__next__().items()}


def _shown(value: Any) -> Any:
    formula = isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value)
    return f"'{value}" if formula else value


def _meant(value: Any) -> Any:
    return value[1:] if isinstance(value, str) and value.startswith("'") and _FORMULA.match(value) else value
