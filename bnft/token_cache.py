"""Conversations -> token ids and labels, made once and then memory-mapped out of the user's cache.

An entry is named by a hash of all that its ids depend on, so it is never out of date. Knows nothing about batches,
packing or the trainer.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bnft import prompts
from bnft.errors import UserError
from bnft.kept_folders import kept_folder
from bnft.prompts import IGNORED, encode, with_system
from bnft.records import cpu_cores

if TYPE_CHECKING:
    from datasets import Dataset

KEPT = 8  # entries, the last used ones; a run has two, its training and its validation split
WORTH_KEEPING = 256  # fewer conversations take less than a second, and would push larger entries out
ROWS_A_PROCESS = 500  # a process of its own, with its copy of the tokenizer, pays from about here
EXAMPLE = ({"role": "user", "content": "ক"}, {"role": "assistant", "content": "খ"}) * 2


def tokenised(conversations: Sequence, tokenizer, system_prompt: str, limit: int, name: str) -> Dataset:
    """The conversations as rows of input_ids, labels, length and reply_tokens (tokens with a loss), in their order.

    Rows without a reply token among the first `limit` tokens are left out. `name` is for messages alone.

    Raises:
        UserError: no row is left, or the cache cannot be written.
    """
    if len(conversations) < WORTH_KEEPING:
        return _made(conversations, tokenizer, system_prompt, limit, name)

    def make(folder: Path) -> None:
        parts = folder.with_name("parts")
        _made(conversations, tokenizer, system_prompt, limit, name, parts).save_to_disk(str(folder))

    from datasets import load_from_disk

    return load_from_disk(
        str(kept_folder("tokens", key_of(conversations, tokenizer, system_prompt, limit), make, KEPT))
    )


def key_of(conversations: Sequence, tokenizer, system_prompt: str, limit: int) -> str:
    """Hash of everything that the ids depend on: tokenizer, template, system prompt, limit, texts, and the program."""
    digest = hashlib.sha256()

    def add(value) -> None:
        digest.update(json.dumps(value, sort_keys=True, default=str).encode() + b"\n")

    add([system_prompt, limit, tokenizer.chat_template, tokenizer.special_tokens_map])
    add(hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest())
    # What the text of a template does not show, such as today's date in it, the ids of an example do.
    add(encode(tokenizer, with_system(EXAMPLE, system_prompt)).input_ids)
    add([Path(room).read_text(encoding="utf-8") for room in (prompts.__file__, __file__)])
    add(texts_hash(conversations))
    return digest.hexdigest()[:32]


def texts_hash(conversations: Sequence) -> str:
    """Hash of what the conversations say, in their order."""
    digest = hashlib.sha256()
    for conversation in conversations:
        digest.update(json.dumps(conversation.messages, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _made(
    conversations: Sequence, tokenizer, system_prompt: str, limit: int, name: str, parts: Path | None = None
) -> Dataset:
    """Tokenises in as many processes as pay; `parts` takes their results, which are kept in memory without it."""
    from datasets import Dataset, Features, List, Value

    if parts:
        parts.mkdir()
    tokens = List(Value("int32"))
    features = {"input_ids": tokens, "labels": tokens, "length": Value("int32"), "reply_tokens": Value("int32")}
    processes = min(cpu_cores(), len(conversations) // ROWS_A_PROCESS) if parts else 0
    dataset = Dataset.from_dict({"messages": [list(c.messages) for c in conversations]}).map(
        _encode_rows,
        batched=True,
        batch_size=100,
        fn_kwargs={"tokenizer": tokenizer, "system_prompt": system_prompt, "limit": limit},
        remove_columns=["messages"],
        features=Features(features),
        cache_file_name=str(parts / "rows.arrow") if parts else None,
        keep_in_memory=not parts,
        num_proc=processes if processes > 1 else None,
        new_fingerprint=secrets.token_hex(8),  # datasets would hash the tokenizer for one of its own
        desc=f"tokenising {name}",
    )
    if not len(dataset):
        raise UserError(f"no {name} conversation has a reply within {limit} tokens", "Raise --model.max_seq_length.")
    return dataset


def _encode_rows(batch: dict, tokenizer, system_prompt: str, limit: int) -> dict[str, list]:
    rows = [encode(tokenizer, with_system(messages, system_prompt), limit) for messages in batch["messages"]]
    replies = [sum(label != IGNORED for label in row.labels) for row in rows]
    kept = [(row, count) for row, count in zip(rows, replies, strict=True) if count]
    return {
        "input_ids": [row.input_ids for row, _ in kept],
        "labels": [row.labels for row, _ in kept],
        "length": [len(row.input_ids) for row, _ in kept],
        "reply_tokens": [count for _, count in kept],
    }
