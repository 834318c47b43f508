"""A last look at what is about to be uploaded: keys, the corpus' own text and people's ratings stay here.

Knows nothing about the Hub; it is given a folder and the conversations that must not be in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from bnft.errors import UserError

KEYS = {
    "a Hugging Face token": re.compile(rb"\bhf_[A-Za-z0-9]{30,}"),
    "an OpenAI key": re.compile(rb"\bsk-(?:proj-)?[A-Za-z0-9_-]{32,}"),
    "a GitHub token": re.compile(rb"\bgh[pousr]_[A-Za-z0-9]{36}\b|\bgithub_pat_[A-Za-z0-9_]{50,}"),
    "an AWS key": re.compile(rb"\bAKIA[0-9A-Z]{16}\b"),
    "a Google key": re.compile(rb"\bAIza[0-9A-Za-z_-]{35}\b"),
    "a Slack token": re.compile(rb"\bxox[abprs]-[0-9A-Za-z-]{20,}"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a Weights & Biases key": re.compile(rb"(?i)wandb_api_key\W{1,4}[0-9a-f]{40}"),
}
RATINGS = re.compile(r"(?:kto|dpo)\.jsonl|ratings?[\w.-]*\.(?:csv|jsonl?)")
PRIVATE = re.compile(r"\.env(?:\..*)?|.*\.pem|.*\.key|id_rsa.*|(?:train|validation|test)\.jsonl|corpus.*\.csv")
WINDOW = 40  # characters of a text that must not be found again: longer than any set phrase
NUMBERS = (".safetensors", ".png", ".ttf", ".woff2")  # no sentence stands in them
LARGEST_DIRECTORY = 100 * 10**6  # bytes, by safetensors' own rule
TOO_LARGE = 4 * 2**20  # bytes: a tokenizer's vocabulary, in which no sentence stands


def scan(folder: Path, secrets: Iterable[str], corpus: Iterable[str]) -> None:
    """Looks into every file of a folder.

    Args:
        secrets: texts that must be nowhere, such as the token in use.
        corpus: messages that must not be published.

    Raises:
        UserError: with every finding by file and kind; never with the text itself.
    """
    secrets = [secret.encode() for secret in secrets if secret]
    starts = {text[:WINDOW] for text in corpus if len(text) >= WINDOW}
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if RATINGS.fullmatch(path.name):
            found.append(f"{name}: people's ratings")
        if PRIVATE.fullmatch(path.name):
            found.append(f"{name}: a file that is never published")
        content = _may_be_text(path)
        found += [f"{name}: {kind}" for kind, pattern in KEYS.items() if pattern.search(content)]
        found += [f"{name}: the token in use" for secret in secrets if secret in content]
        sentences = path.suffix not in NUMBERS and len(content) <= TOO_LARGE
        if sentences and _holds(content.decode("utf-8", "replace"), starts):
            found.append(f"{name}: text of the corpus")
    if found:
        raise UserError(
            "nothing was uploaded, for the folder holds what must not be published:\n    " + "\n    ".join(found),
            f"Take it out of {folder} or of what it was made from.",
        )


def _may_be_text(path: Path) -> bytes:
    """A file; of weights their directory, in which anything can be noted."""
    with path.open("rb") as file:
        if path.suffix != ".safetensors":
            return file.read()
        return file.read(min(int.from_bytes(file.read(8), "little"), LARGEST_DIRECTORY))


def _holds(text: str, starts: set[str]) -> bool:
    return bool(starts) and any(text[i : i + WINDOW] in starts for i in range(len(text) - WINDOW + 1))
