"""Reads a corpus from disk or the Hub into raw rows, and says what is wrong with a file that cannot be read.

Knows file formats, encodings and column names; knows nothing about Bengali, cleaning or splitting.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bnft.config import path_of
from bnft.errors import UserError, first_line

BUNDLED = Path(__file__).resolve().parent.parent / "data" / "corpus.csv"

# In order of preference: a table with both `question` and `context` is asked by its question.
QUESTION_NAMES = ("questions", "question", "prompt", "instruction", "context")
ANSWER_NAMES = ("answers", "answer", "response", "output")
CHAT_NAMES = ("messages", "conversations")
TOPIC_NAMES = ("topics", "topic")
ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}

Exchange = tuple[str, str]  # question, answer
Table = tuple[list[str], list[dict]]  # column names, records


@dataclass(frozen=True)
class RawRow:
    """One row of the source as read: a single exchange, or a whole chat."""

    number: int  # 1-based, header and blank lines not counted
    topics: str
    exchanges: tuple[Exchange, ...]
    is_chat: bool = False
    fault: str = ""  # why the row cannot be used, when its form alone shows it
    notes: tuple[str, ...] = ()  # repairs made while reading


@dataclass(frozen=True)
class Source:
    """Where rows came from, and the hash that says whether two runs saw the same data."""

    name: str
    sha256: str
    rows: tuple[RawRow, ...]


def read_corpus(setting: str) -> Source:
    """Reads `bundled`, a file, a folder holding one data file, or a Hub dataset `owner/name[:config]`."""
    if is_hub_id(setting):
        columns, records = _read_hub(setting)
        digest = hashlib.sha256(json.dumps(records, sort_keys=True, default=str).encode()).hexdigest()
        return Source(setting, digest, rows_from_table(columns, records, setting))
    path = find_file(setting)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "Check the file's permissions.") from error
    if not data.strip():
        raise UserError(f"{path} is empty", "Give a file with a header line and rows.")
    columns, records = READERS[path.suffix.lower()](data, path)
    return Source(str(path), hashlib.sha256(data).hexdigest(), rows_from_table(columns, records, str(path)))


def is_hub_id(setting: str) -> bool:
    """`owner/name` is a Hub dataset unless it looks like, or lies in, something on disk."""
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?", setting):
        return False
    path = path_of(setting)
    return not (path.exists() or path.parent.is_dir() or path.suffix.lower() in READERS)


def find_file(setting: str) -> Path:
    """The data file that a path setting means.

    Raises:
        UserError: nothing there (with the nearest names), or a folder without exactly one data file.
    """
    path = BUNDLED if setting == "bundled" else path_of(setting)
    if path.is_dir():
        return _only_file_in(path)
    if not path.is_file():
        # Kaggle's download is called "...Corpus .csv"; people type it with and without that space.
        stem = path.stem.rstrip()
        twins = [path.parent / f"{stem}{gap}{path.suffix}" for gap in ("", " ")]
        path = next((twin for twin in twins if twin.is_file()), path)
    if not path.is_file():
        raise UserError(f"there is no data file {path}", _names_nearby(path))
    if path.suffix.lower() not in READERS:
        raise UserError(f"cannot tell the format of {path} by its ending", ENDINGS)
    return path


def _only_file_in(folder: Path) -> Path:
    found = sorted(item for item in folder.iterdir() if item.is_file() and item.suffix.lower() in READERS)
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"the folder {folder} holds no data file", ENDINGS)
    names = ", ".join(item.name for item in found[:8])
    raise UserError(f"the folder {folder} holds {len(found)} data files: {names}", f"Name one: --data '{found[0]}'")


def _names_nearby(path: Path) -> str:
    if not path.parent.is_dir():
        return f"The folder {path.parent} does not exist either."
    names = sorted(item.name for item in path.parent.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    near = near or [name for name in names if Path(name).suffix.lower() in READERS][:3]
    return f"Nearest names in {path.parent}: {', '.join(map(repr, near)) or 'none, it holds no data file'}"


def decode(data: bytes, path: Path) -> str:
    """Text of UTF-8 (with or without byte-order mark) or UTF-16 (with one)."""
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = (
            f"{path} is not {encoding.removesuffix('-sig').upper()} text: byte {error.start} (line {line}) does not fit"
        )
        raise UserError(what, "Save it as UTF-8 (in a spreadsheet: 'CSV UTF-8') and try again.") from error


def _read_csv(data: bytes, path: Path) -> Table:
    text = decode(data, path).lstrip("\r\n")
    header = next(iter(text.splitlines()), "")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)
    # Not pandas: it turns an empty field, "NA" or "null" into NaN.
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return list(reader.fieldnames or []), list(reader)
    except csv.Error as error:
        hint = 'Most often a quote (") was opened and never closed somewhere before that line.'
        raise UserError(f"{path}, near line {reader.line_num}: {error}", hint) from error


def _read_jsonl(data: bytes, path: Path) -> Table:
    # split("\n") and not splitlines(): JSON strings may hold U+2028 and U+0085 as they are.
    lines = [(number, line) for number, line in enumerate(decode(data, path).split("\n"), 1) if line.strip()]
    return _table([_parse_json(line, f"{path}, line {number}") for number, line in lines], path)


def _read_json(data: bytes, path: Path) -> Table:
    records = _parse_json(decode(data, path), str(path))
    return _table(records if isinstance(records, list) else [records], path)


def _parse_json(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # the second: brackets in brackets in brackets
        raise UserError(f"{where} is not JSON that can be read: {error}", "Mend or remove it.") from error


def _table(records: list, path: Path) -> Table:
    odd = next((number for number, record in enumerate(records, 1) if not isinstance(record, dict)), None)
    if odd:
        hint = 'A record looks like {"question": "...", "answer": "..."} or {"messages": [...]}.'
        raise UserError(f"{path}, record {odd} is not an object with named fields", hint)
    return list(dict.fromkeys(name for record in records for name in record)), records


def _read_parquet(data: bytes, path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(io.BytesIO(data))
        return table.column_names, table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # the last two: values, as no UTF-8
        raise UserError(f"{path} is not a Parquet file that can be read: {error}", "Export it again.") from error


READERS = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
ENDINGS = f"Endings that are read: {' '.join(READERS)} (unpack a .zip; save a spreadsheet as 'CSV UTF-8')"


def _read_hub(setting: str) -> Table:
    """All splits of a Hub dataset, one after another: the split is made anew here, by leakage group."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    name, _, config = setting.partition(":")
    try:
        splits = load_dataset(name, config or None)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:  # not found, no access; a script; odd files
        what = f"cannot load the dataset {setting!r} from the Hub: {first_line(error)}"
        hint = (
            "Check the id, the network and `hf auth whoami`; name a config as owner/name:config; or give a local file."
        )
        raise UserError(what, hint) from error
    return list(next(iter(splits.values())).column_names), [row for split in splits.values() for row in split]


@dataclass(frozen=True)
class Columns:
    """Which column plays which part; empty when none does."""

    chat: str = ""
    question: str = ""
    answer: str = ""
    addition: str = ""  # the `input` of instruction data, appended to its instruction
    topics: str = ""


def _plain(name: object) -> str:
    return re.sub(r"[\s_\-\ufeff]+", "", str(name)).casefold()


def choose_columns(columns: Sequence[str], source: str) -> Columns:
    """Finds the columns by their usual names, whatever their case, spaces and underscores."""
    by_name = {_plain(name): name for name in reversed(columns) if name}

    def first(names: Sequence[str]) -> str:
        return next((by_name[name] for name in names if name in by_name), "")

    chat, question, answer = first(CHAT_NAMES), first(QUESTION_NAMES), first(ANSWER_NAMES)
    if chat:
        return Columns(chat=chat, topics=first(TOPIC_NAMES))
    if not (question and answer):
        missing = [part for part, found in (("question", question), ("answer", answer)) if not found]
        known = QUESTION_NAMES * (not question) + ANSWER_NAMES * (not answer)
        near = [
            f"{by_name[name]!r} looks like {match[0]!r}"
            for name in by_name
            if name not in (_plain(question), _plain(answer)) and (match := difflib.get_close_matches(name, known, n=1))
        ]
        raise UserError(
            f"{source} has no {' and no '.join(missing)} column; found: {', '.join(map(str, columns)) or 'none'}",
            "Known pairs: Questions/Answers, question/answer, prompt/response, instruction/output, context/response; "
            "or a `messages` column. Rename yours." + (f" Nearest: {'; '.join(near)}." if near else ""),
        )
    addition = by_name.get("input", "") if _plain(question) == "instruction" else ""
    return Columns(question=question, answer=answer, addition=addition, topics=first(TOPIC_NAMES))


def rows_from_table(columns: Sequence[str], records: Iterable[dict], source: str) -> tuple[RawRow, ...]:
    """Records with any of the known column names, as rows numbered from 1."""
    names = choose_columns(columns, source)
    return tuple(_row(number, record, names) for number, record in enumerate(records, 1))


def _row(number: int, record: dict, names: Columns) -> RawRow:
    topics = _text(record.get(names.topics))
    if names.chat:
        exchanges, fault, notes = _chat_exchanges(record.get(names.chat))
        return RawRow(number, topics, exchanges, is_chat=True, fault=fault, notes=notes)
    # csv.DictReader keeps surplus fields under None: an unquoted comma has shifted the columns.
    fault = "too_many_columns" if any(record.get(None) or ()) else ""
    question, addition = _text(record.get(names.question)), _text(record.get(names.addition))
    if addition.strip():
        question = f"{question}\n{addition}"
    return RawRow(number, topics, ((question, _text(record.get(names.answer))),), fault=fault)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and value == value else ""  # a NaN is an empty cell


def _chat_exchanges(messages: object) -> tuple[tuple[Exchange, ...], str, tuple[str, ...]]:
    """Exchanges of a `messages` (role/content) or `conversations` (from/value) list, with fault and notes.

    A system message goes: prompts of this project bring their own. A last question without reply teaches nothing.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return (), "malformed_chat", ()
    turns = [
        (ROLES.get(str(message.get("role") or message.get("from"))), message.get("content", message.get("value")))
        for message in messages
    ]
    if any(role is None or not isinstance(text, str) for role, text in turns):
        return (), "malformed_chat", ()
    spoken = [turn for turn in turns if turn[0] != "system"]
    notes = ["system_message_removed"] if len(spoken) < len(turns) else []
    if spoken and spoken[-1][0] == "user":
        spoken.pop()
        notes.append("unanswered_turn_removed")
    if not spoken:
        return (), "malformed_chat", tuple(notes)
    if any(role != ("user", "assistant")[place % 2] for place, (role, _) in enumerate(spoken)):
        return (), "roles_do_not_alternate", tuple(notes)
    return tuple((q, a) for (_, q), (_, a) in zip(spoken[::2], spoken[1::2], strict=True)), "", tuple(notes)
