"""The corpus from file to split: load, clean, rebuild talks, drop duplicates, group, split, and a report of it all.

    from bnft.settings import DataConfig
    from bnft.data import DatasetProcessor, format_report

    data = DatasetProcessor(DataConfig(path="my.csv")).process()
    print(format_report(data.report))

Knows nothing about prompts, tokenizers or models: it hands over plain user and assistant messages.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bnft.cleaning import ANSWER_EQUALS_QUESTION, clean, comparison_key, fault_of
from bnft.corpus_files import Exchange, RawRow, Source, read_corpus
from bnft.errors import UserError
from bnft.splitting import DUPLICATE, NEAR_DUPLICATE, Signatures, find_duplicates, find_groups, split_groups
from bnft.talks import Piece, cut_into_pieces

CONTEXT_LOST = "earlier_turn_dropped"
ROLE_SWAPPED = "role_swapped_talk"
SPLITS = ("train", "validation", "test")

DROPPED_ROWS_LISTED = 1000


class DataSettings(Protocol):
    """What this room needs of the configuration; `bnft.settings.DataConfig` has it and explains each value."""

    path: str
    test_fraction: float
    validation_fraction: float
    min_bengali_ratio: float
    max_chars: int
    near_duplicate_similarity: float


@dataclass(frozen=True)
class Conversation:
    """One cleaned conversation, ready to be turned into a prompt."""

    id: str  # 12 hex characters of a hash of the messages
    topics: str
    messages: tuple[dict, ...]  # {"role": "user" | "assistant", "content": str}, alternating, no system message
    group: str  # id of the leakage group; no group is on two sides of the split
    rows: tuple[int, ...]  # data rows of the source, from 1


@dataclass(frozen=True)
class ProcessedData:
    splits: dict[str, list[Conversation]]  # train, validation, test; each in file order
    report: dict  # JSON-able; holds counts and row numbers, never text


@dataclass
class Talk:
    """A piece after cleaning."""

    topics: str
    run: int
    exchanges: list[Exchange] = field(default_factory=list)
    keys: list[Exchange] = field(default_factory=list)  # the exchanges in the form in which they are compared
    rows: list[int] = field(default_factory=list)
    id: str = ""


@dataclass
class Tally:
    """What happened to rows, counted while it happens."""

    dropped: Counter = field(default_factory=Counter)
    repaired: Counter = field(default_factory=Counter)
    dropped_rows: list[dict] = field(default_factory=list)

    def drop(self, row: int, reason: str) -> None:
        self.dropped[reason] += 1
        if len(self.dropped_rows) < DROPPED_ROWS_LISTED:
            self.dropped_rows.append({"row": row, "reason": reason})


class DatasetProcessor:
    """Turns a source of question and answer rows, or of chats, into cleaned and leak-free splits."""

    def __init__(self, config: DataSettings, seed: int = 3407):
        self.config = config
        self.seed = seed

    def load(self) -> list[RawRow]:
        """Only reads."""
        return list(read_corpus(self.config.path).rows)

    def process(self, source: Source | None = None) -> ProcessedData:
        """Load, unless the source is given, rebuild talks, clean, drop duplicates, group, split.

        Raises:
            UserError: the source cannot be read, no row of it is usable, or too few are for a split.
        """
        source = source or read_corpus(self.config.path)
        if not source.rows:
            raise UserError(f"{source.name} has a header line and no rows", "Give a file with rows, too.")
        pieces, run_counts = cut_into_pieces(source.rows)
        tally = Tally()
        signatures = Signatures()
        talks = self._drop_duplicates(self._clean(pieces, tally), tally, signatures)
        if not talks:
            reasons = ", ".join(f"{reason} {count}" for reason, count in tally.dropped.most_common())
            raise UserError(
                f"none of the {len(source.rows)} rows of {source.name} is usable" + (f": {reasons}" if reasons else ""),
                "Look at the rows; data.min_bengali_ratio and data.max_chars set two of the limits.",
            )
        splits = self._split(talks, signatures)
        everything = [conversation for name in SPLITS for conversation in splits[name]]
        group_sizes = _exchanges_by_group(everything)
        report = {
            "source": source.name,
            "sha256": source.sha256,
            "seed": self.seed,
            "rows_read": len(source.rows),
            "rows_kept": sum(len(conversation.rows) for conversation in everything),
            "exchanges_read": sum(max(1, len(row.exchanges)) for row in source.rows),
            "exchanges_kept": sum(group_sizes.values()),
            "conversations": len(everything),
            "talks": sum(len(conversation.messages) > 2 for conversation in everything),
            "runs_cut": run_counts["cut"],
            "runs_sorted_by_subject": run_counts["sorted"],
            "repaired": dict(tally.repaired.most_common()),
            "dropped": dict(tally.dropped.most_common()),
            "dropped_rows": sorted(tally.dropped_rows, key=lambda drop: drop["row"]),
            "duplicates": {"exact": tally.dropped[DUPLICATE], "near": tally.dropped[NEAR_DUPLICATE]},
            "groups": len(group_sizes),
            "largest_group": max(group_sizes.values()),
            "splits": {
                name: {
                    "conversations": len(splits[name]),
                    "exchanges": sum(_exchanges_by_group(splits[name]).values()),
                    "groups": len(_exchanges_by_group(splits[name])),
                }
                for name in SPLITS
            },
        }
        return ProcessedData(splits, report)

    def _clean(self, pieces: Sequence[Piece], tally: Tally) -> list[Talk]:
        """Cleans every field; a turn that cannot be used ends its talk, as later turns would lack their context."""
        talks = []
        swapped: set[int] = set()  # runs in which, from some row on, the sufferer speaks in the answer column
        for piece in pieces:
            talk = Talk(clean(piece.rows[0].topics)[0], piece.run)
            ended = ROLE_SWAPPED if piece.run in swapped else ""
            for row in piece.rows:
                repairs = set(row.notes)
                for exchange in row.exchanges or (("", ""),):
                    (question, done), (answer, also_done) = map(clean, exchange)
                    repairs.update(done, also_done)
                    reason = ended or row.fault or self._fault_of(question, answer)
                    if reason == ANSWER_EQUALS_QUESTION and piece.is_dialogue:
                        # Seen in the corpus: the first row says the same on both sides, and from there the
                        # listener stands in Questions. Swapping back would leave a talk without its last reply.
                        swapped.add(piece.run)
                        reason = ended = ROLE_SWAPPED
                    if reason:
                        tally.drop(row.number, reason)
                        ended = ended or CONTEXT_LOST
                    else:
                        talk.exchanges.append((question, answer))
                        talk.keys.append((comparison_key(question), comparison_key(answer)))
                        talk.rows.append(row.number)
                tally.repaired.update(repairs)
            if talk.exchanges:
                talks.append(talk)
        return talks

    def _fault_of(self, question: str, answer: str) -> str:
        return fault_of(question, answer, self.config.min_bengali_ratio, self.config.max_chars)

    def _drop_duplicates(self, talks: Sequence[Talk], tally: Tally, signatures: Signatures) -> list[Talk]:
        kept = []
        similarity = self.config.near_duplicate_similarity
        reasons = find_duplicates([talk.keys for talk in talks], similarity, signatures)
        for talk, reason in zip(talks, reasons, strict=True):
            if not reason:
                kept.append(talk)
            for row in talk.rows if reason else ():
                tally.drop(row, reason)
        return kept

    def _split(self, talks: Sequence[Talk], signatures: Signatures) -> dict[str, list[Conversation]]:
        _give_ids(talks)
        runs = [talk.run for talk in talks]
        owners = find_groups([talk.keys for talk in talks], runs, self.config.near_duplicate_similarity, signatures)
        conversations = [_conversation(talk, talks[owner].id) for talk, owner in zip(talks, owners, strict=True)]
        sizes = _exchanges_by_group(conversations)
        placed = split_groups(sizes, self.config.test_fraction, self.config.validation_fraction, self.seed)
        return {name: [one for one in conversations if placed[one.group] == name] for name in SPLITS}


def _give_ids(talks: Sequence[Talk]) -> None:
    taken: set[str] = set()
    for talk in talks:
        content = json.dumps(talk.exchanges, ensure_ascii=True)
        talk.id = hashlib.sha256(content.encode()).hexdigest()[:12]
        while talk.id in taken:  # one chance in 400,000 at 38,000 talks
            talk.id = hashlib.sha256(talk.id.encode()).hexdigest()[:12]
        taken.add(talk.id)


def _conversation(talk: Talk, group: str) -> Conversation:
    roles = ("user", "assistant")
    messages = tuple(
        {"role": role, "content": text}
        for exchange in talk.exchanges
        for role, text in zip(roles, exchange, strict=True)
    )
    return Conversation(talk.id, talk.topics, messages, group, tuple(dict.fromkeys(talk.rows)))


def _exchanges_by_group(conversations: Sequence[Conversation]) -> Counter:
    sizes: Counter = Counter()
    for conversation in conversations:
        sizes[conversation.group] += len(conversation.messages) // 2
    return sizes


def format_report(report: dict) -> str:
    """The report as a plain text table for the terminal."""
    lines = [f"data: {report['source']}", f"  sha256 {report['sha256'][:16]}, seed {report['seed']}"]

    def section(title: str, counts: dict[str, int]) -> None:
        if counts:
            lines.append(f"  {title}")
            lines.extend(f"    {name.replace('_', ' '):<34}{count:>8,}" for name, count in counts.items())

    read = ("rows_read", "rows_kept", "exchanges_kept", "conversations", "talks", "runs_cut", "runs_sorted_by_subject")
    section("rows", {name: report[name] for name in read})
    section("repaired (rows)", report["repaired"])
    section("dropped (exchanges)", report["dropped"])
    section("leakage groups", {"groups": report["groups"], "exchanges in the largest": report["largest_group"]})
    lines.append(f"  {'split':<14}{'conversations':>16}{'exchanges':>12}{'groups':>10}")
    for name, sizes in report["splits"].items():
        counts = f"{sizes['conversations']:>16,}{sizes['exchanges']:>12,}{sizes['groups']:>10,}"
        lines.append(f"  {name:<14}{counts}")
    return "\n".join(lines)
