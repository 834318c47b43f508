"""What a run was and measured, in the form in which its card tells it.

A value that the records lack is an error with its name. Knows nothing about templates or repositories.
"""

from __future__ import annotations

import random
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bnft.config import recipe_names
from bnft.errors import UserError
from bnft.rating_form import QUESTIONS
from bnft.rating_summary import HUMAN, preferences_of, table_of
from bnft.records import read_json
from bnft.results import read_metrics, read_responses
from bnft.settings import FIELD_NAMES, RunConfig
from bnft.text import drop_unseen

SAMPLES = 10
MAIN = {
    "bits_per_byte": "bits per byte (lower is better)",
    "token_perplexity": "perplexity per token (lower is better)",
    "char_perplexity": "perplexity per character (lower is better)",
    "ended_rate": "replies that end by themselves",
    "cut_off_rate": "replies cut off (lower is better)",
    "bengali_script_rate": "letters in Bengali script",
    "replacement_char_rate": "replies with U+FFFD (lower is better)",
    "repeated_4grams": "repeated 4-grams (lower is better)",
    "distinct1": "distinct words (distinct-1)",
    "distinct2": "distinct word pairs (distinct-2)",
    "reply_words": "words in a reply",
    "reply_tokens": "tokens in a reply",
    "reply_chars": "characters in a reply",
    "length_ratio": "words in the replies over words in the references",
    "chrf++": "chrF++",
    "chrf": "chrF",
    "bleu": "BLEU (intl)",
    "bleu_13a": "BLEU (13a)",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
}
# Board power in watts, from the makers' data sheets; the energy told is this times the time.
WATTS = {"T4": 70, "P100": 250, "V100": 300, "L40S": 350, "L4": 72, "A10G": 300, "A100": 400, "H100": 700, "H200": 700}
WATTS_OF_ANOTHER_GPU, WATTS_A_CORE = 300, 15
TOLD_OF_RATINGS = ("raters", "native_speakers", "items", "ratings", "repeats")
TOLD_OF_RATINGS += ("shown", "preference_test", "agreement_measure")

_LINE_END = re.compile(r"\r\n|[\t\n\x0b\x0c\r\x1c-\x1e\x85\u2028\u2029]")
# What Markdown makes a link without being asked to, and the sign of a formula.
_LIVE = re.compile(r"(?<=http):|(?<=https):|(?<=ftp):|(?<=www)\.|[@$]", re.IGNORECASE)
_LIST = re.compile(r"^([0-9]{1,9}(?=[.)])|(?=[-+=]))")  # begins one, or a line or heading


def read_run(folder: Path, config: RunConfig) -> dict[str, Any]:
    """All that a card says about a run, from its files.

    Raises:
        UserError: with the name of the value that is not there.
    """
    record, report = read_json(folder / "run.json"), read_json(folder / "data_report.json")
    metrics = read_metrics(folder)
    for name in ("loss.png", "base_against_tuned.png"):
        if not (folder / "plots" / name).is_file():
            raise UserError(f"the run {folder} has no plots/{name}", f"Make it: python train.py --eval-only {folder}")
    try:
        return {
            "test": metrics["test"],
            "decoding": metrics["decoding"],
            "metrics": [_metric(name, label, metrics) for name, label in MAIN.items()],
            "judge": judge_facts(metrics.get("judge")),
            "figures": {name: round(metrics["tuned"][name]["value"], 5) for name in MAIN},
            "samples": samples(read_responses(folder), config.seed),
            "human": human_facts(metrics[HUMAN]) if HUMAN in metrics else None,
            "seed": config.seed,
            "training": {
                "steps": record["training"]["steps"],
                "time": duration(record["training"]["seconds"]),
                "best_step": record["training"]["best_step"],
                "best_loss": record["training"]["best_eval_loss"],
            },
            "parameters": record["parameters"],
            "dtype": quoted(record["dtype"]),
            "strategy": quoted(record["strategy"]),
            "settings": _settings(config, record["sources"]),
            "data": _data(report, config),
            "machine": _machine(record),
            "versions": quoted(", ".join(f"{name} {version}" for name, version in record["versions"].items())),
            "reproduce": _reproduce(record, config),
            "finished": record["finished"],
        }
    except KeyError as error:
        raise UserError(
            f"the records of {folder} lack {error.args[0]!r}, which the card has to say",
            f"Finish and measure the run: python train.py --resume {folder}",
        ) from error
    except (TypeError, ValueError, AttributeError, LookupError, OverflowError) as error:
        raise UserError(
            f"the records of {folder} are damaged, a value is of another kind than it was written as: {error}",
            f"Measure the run again: python train.py --eval-only {folder}",
        ) from error


def judge_facts(told: dict | None) -> dict[str, Any] | None:
    """What a language model said of the replies, with the sentence without which it must not stand on a card."""
    if not told:
        return None
    labels = {q.key: f"{q.english}, {q.low} to {q.high}" for q in QUESTIONS} | {"preferred": "preferred in both orders"}
    return {
        "what": quoted(told["what"]),
        "rows": {name: told["rows"][name] for name in ("answered", "asked")},
        "metrics": [_metric(name, labels[name], told) for name in told.get("comparison", ())],
        "agree": f"{told['orders_agree']['value']:.0%}" if "orders_agree" in told else None,
    }


def _metric(name: str, label: str, metrics: dict) -> dict[str, Any]:
    tuned, compared = metrics["tuned"][name], metrics["comparison"][name]
    scale = 100 if tuned["unit"] == "share" else 1
    suffix = " %" if scale == 100 else ""
    values = [compared["base"], compared["tuned"], compared["difference"], compared["low"], compared["high"]]
    base, after, difference, low, high = (None if v is None else v * scale for v in values)
    digits = 3 if name == "bits_per_byte" else 2
    interval = "" if low is None else f" [{low:+.{digits}f}, {high:+.{digits}f}]"
    return {
        "name": name,
        "label": label,
        "n": tuned["n"],
        "base": f"{base:.{digits}f}{suffix}",
        "tuned": f"{after:.{digits}f}{suffix}",
        "difference": f"{difference:+.{digits}f}{interval}",
        "signature": tuned["signature"],
    }


def human_facts(summary: dict[str, Any]) -> dict[str, Any]:
    """Blind ratings by people; nobody's name is in them."""
    told = {name: summary[name] for name in TOLD_OF_RATINGS}
    return told | {"table": table_of(summary), "preferences": preferences_of(summary)}


def samples(rows: Sequence[Mapping[str, str]], seed: int, count: int = SAMPLES) -> list[dict[str, str]]:
    """Replies drawn by the seed, as quotations."""
    drawn = sorted(random.Random(seed).sample(range(len(rows)), min(count, len(rows))))
    keys = {"question": "question", "base": "base_reply", "tuned": "tuned_reply"}
    return [{key: quoted(rows[i][column]) for key, column in keys.items()} for i in drawn]


def quoted(text: str) -> Markup:
    """Somebody's text inside Markdown, be it a quotation or a table's cell: no markup of its own, one paragraph."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;")
    for sign in "\\`*_[]>#|~":
        text = text.replace(sign, f"\\{sign}")
    text = " ".join(_LIVE.sub(lambda sign: f"&#{ord(sign[0])};", text).split())
    return Markup(_LIST.sub(r"\1\\", text) or "(nothing)")


def code(text: str) -> Markup:
    """Somebody's text as code inside a line of Markdown, fenced by more backticks than it has in a row."""
    text = " ".join(one_line(text).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " * ("`" in text or not text)
    return Markup(f"{fence}{space}{text}{space}{fence}")


def one_line(text: str) -> str:
    """A text without what would end its line, turn its letters round or go into no file."""
    return drop_unseen(_LINE_END.sub(" ", text))


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _settings(config: RunConfig, sources: Mapping[str, str]) -> list[dict[str, str]]:
    lines = []
    for name in FIELD_NAMES:
        value = _value(config, name)
        shown = ", ".join(map(str, value)) if isinstance(value, tuple) else public(str(value))
        lines.append({"name": name, "value": quoted(shown), "source": quoted(sources[name])})
    return lines


def _value(config: RunConfig, name: str) -> Any:
    """A setting by its dotted name."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def public(value: str) -> str:
    """A value without folders of the machine it was made on."""
    path = Path(value)
    return path.name if path.is_absolute() or value.startswith(("~", "./", "../")) else value


def _data(report: dict, config: RunConfig) -> dict[str, Any]:
    def counts(reasons: Mapping[str, int]) -> str:
        return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in reasons.items()) or "nothing"

    bundled = config.data.path == "bundled"
    return {
        "name": "The corpus that comes with the program (CC BY 4.0)" if bundled else code(public(config.data.path)),
        "sha256": report["sha256"],
        "rows_read": report["rows_read"],
        "rows_kept": report["rows_kept"],
        "conversations": report["conversations"],
        "splits": report["splits"],
        "repaired": counts(report["repaired"]),
        "dropped": counts(report["dropped"]),
        "exact": report["duplicates"]["exact"],
        "near": report["duplicates"]["near"],
    }


def _machine(record: dict) -> dict[str, Any]:
    gpus, cores = record["gpus"], record["cpu_cores"]
    watts = sum(map(_watts, gpus))
    seconds = record["training"]["seconds"] + record["seconds"]["evaluation"]
    text = f"{', '.join(gpus) or 'No GPU'}, {cores} CPU cores, {record['system']}, Python {record['python']}"
    return {
        "text": quoted(text),
        "evaluation": duration(record["seconds"]["evaluation"]),
        "peak_memory_gib": record["peak_memory_gib"],
        "watt_hours": f"{(watts or cores * WATTS_A_CORE) * seconds / 3600:.2g}",
        "watts_text": f"{watts} W of board power" if gpus else f"{WATTS_A_CORE} W a core",
    }


def _watts(gpu: str) -> int:
    return next((watts for card, watts in WATTS.items() if re.search(rf"\b{card}\b", gpu)), WATTS_OF_ANOTHER_GPU)


def _reproduce(record: dict, config: RunConfig) -> dict[str, str]:
    words = ["python", "train.py", "--recipe", record["recipe"]]
    for name, source in record["sources"].items():
        if source.startswith("flag "):
            value = _value(config, name)
            text = ",".join(map(str, value)) if isinstance(value, tuple) else public(str(value))
            words += [f"--{name}", text.lower() if value is None or isinstance(value, bool) else text]
    commit, notes = record["git_commit"] or "", []
    if commit.endswith("-dirty"):
        notes.append("Some files differed from that commit.")
    if not commit:
        notes.append("The program was not in a git clone: no commit is known.")
    if record["recipe"] not in recipe_names():
        notes.append(f"The recipe {code(record['recipe'])} is the table of settings above, as a YAML file.")
    command = " ".join(map(_shell_word, words))
    return {"commit": commit.removesuffix("-dirty") or "main", "command": command, "note": Markup(" ".join(notes))}


def _shell_word(text: str) -> str:
    """A word of a command that stands on one line whatever it holds."""
    if one_line(text) == text:
        return shlex.quote(text)
    told = "".join(
        f"\\{sign}" if sign in "\\'" else sign if one_line(sign) == sign else f"\\U{ord(sign):08x}" for sign in text
    )
    return f"$'{told}'"
