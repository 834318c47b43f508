"""Rebuilds talks: finds the neighbouring rows of a file that are turns of one conversation.

Knows the layout of the corpus; knows nothing about cleaning, duplicates or splits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from bnft.cleaning import comparison_key
from bnft.corpus_files import RawRow

# The corpus' talks have 2 rows, sometimes 1 or 3; longer runs of one label are several talks with unknown borders.
LONGEST_TALK = 3
# Six talks in a row sharing one of 32 emotion labels do not happen by chance: that file is sorted by subject.
LONGEST_MIXED_RUN = 12
# The longest dialogue answer seen has 322 characters; half of the counsellors' letters have more than 680.
LONGEST_TALK_ANSWER = 500


@dataclass(frozen=True)
class Piece:
    """Rows that belong to one conversation, and the run of rows they were found in."""

    rows: tuple[RawRow, ...]
    run: int
    is_dialogue: bool = False  # in a run of talk turns, where a row may lean on the rows above it


def cut_into_pieces(rows: Sequence[RawRow]) -> tuple[list[Piece], Counter]:
    """Rebuilds talks from neighbouring rows with one Topics value, before anything is dropped or moved.

    Rows of a run share a leakage group even where they are no talk, or where its talks cannot be told apart.

    Returns:
        The pieces in file order, and how many runs were `cut` (4 to 12 rows) or `sorted` by subject (more).
    """
    listed = {label.strip() for row in rows if "," in row.topics for label in row.topics.split(",")}

    def label_of(row: RawRow) -> object:
        label = " ".join(row.topics.split())
        # A counsellor's row lists several subjects, a dialogue row has one emotion; a chat row is whole already.
        return row.number if row.is_chat or not label or "," in label else label

    runs = [tuple(run) for _, run in groupby(rows, key=label_of)]
    pieces: list[Piece] = []
    counts: Counter = Counter()
    for place, run in enumerate(runs):
        first = run[0].number
        if len(run) == 1:
            pieces.append(Piece(run, first))
        elif len(run) > LONGEST_MIXED_RUN:
            counts["sorted"] += 1
            pieces.extend(Piece((row,), row.number) for row in run)
        else:
            is_dialogue = not _is_counselling(run, runs[place - 1 : place] + runs[place + 1 : place + 2], listed)
            if is_dialogue and len(run) <= LONGEST_TALK:
                pieces.append(Piece(run, first, is_dialogue=True))
            else:
                counts["cut"] += is_dialogue
                pieces.extend(Piece((row,), first, is_dialogue) for row in run)
    return pieces, counts


def _is_counselling(run: Sequence[RawRow], beside: Sequence[Sequence[RawRow]], listed: set[str]) -> bool:
    """Whether rows with one and the same label are separate letters to a counsellor rather than turns of a talk.

    Evidence, any of: an answer as long as a letter; one question answered twice; or a label that elsewhere stands in
    a comma-joined list, among rows on both sides that have such lists.
    """
    exchanges = [exchange for row in run for exchange in row.exchanges]
    if any(len(answer) > LONGEST_TALK_ANSWER for _, answer in exchanges):
        return True
    questions = [key for question, _ in exchanges if len(key := comparison_key(question)) >= 20]  # not "হ্যাঁ", "কেন?"
    if len(set(questions)) < len(questions):
        return True
    among_lists = len(beside) == 2 and all("," in neighbour[0].topics for neighbour in beside)
    return among_lists and run[0].topics.strip() in listed
