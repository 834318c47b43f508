"""Finds duplicate conversations, joins what may not be separated into groups, and splits by group.

Works on comparison keys (plain strings), counts and ids; knows nothing about files, cleaning or messages.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import median_low

import numpy as np
from datasketch import LeanMinHash, MinHash, MinHashLSH

from bnft.errors import UserError

DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near_duplicate"

SHINGLE = 5  # characters
PERMUTATIONS = 64
RECALL = 0.995  # share of pairs exactly at the threshold that the index must propose
# Shorter ones ("আপনি কেমন আছেন", "শুনে খারাপ লাগল") are alike without being copies; equal questions always count.
MIN_NEAR_QUESTION = 20
MIN_NEAR_ANSWER = 100

TalkKeys = Sequence[tuple[str, str]]  # (question key, answer key) of each exchange


def shingles(text: str) -> np.ndarray:
    """The character 5-grams of a text as 64-bit hashes, with repeats (a shorter text counts as one)."""
    codes = np.frombuffer(text.ljust(SHINGLE).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    width = len(codes) - SHINGLE + 1
    hashes = np.zeros(width, dtype=np.uint64)
    for offset in range(SHINGLE):  # a polynomial hash, modulo 2**64 by overflow
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + width]
    return hashes


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Shared share of two arrays of distinct values."""
    shared = len(np.intersect1d(left, right, assume_unique=True))
    return shared / (len(left) + len(right) - shared)


def banding(threshold: float) -> tuple[int, int]:
    """Bands and rows a band: the most selective pair that still proposes nearly every pair at the threshold.

    datasketch's own choice balances false positives, which cost nothing here (candidates are verified), against
    misses: at 0.85 it would miss many. A pair with similarity s is proposed with probability 1 - (1 - s^rows)^bands.
    """
    for rows in range(PERMUTATIONS // 2, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            return bands, rows
    return PERMUTATIONS, 1


class Signatures:
    """MinHash of texts. Each text is hashed once: the signature of several is the minimum of theirs."""

    def __init__(self) -> None:
        # Shingles are hashed already; MinHash takes their upper halves, which mix all five characters.
        self._work = MinHash(num_perm=PERMUTATIONS, hashfunc=int)
        self._known: dict[str, LeanMinHash] = {}

    def _of_one(self, text: str) -> LeanMinHash:
        if text not in self._known:
            self._work.clear()
            self._work.update_batch((shingles(text) >> np.uint64(32)).tolist())
            self._known[text] = LeanMinHash(self._work)
        return self._known[text]

    def of(self, texts: tuple[str, ...]) -> LeanMinHash:
        parts = [self._of_one(text) for text in texts]
        if len(parts) == 1:
            return parts[0]
        self._work.clear()
        for part in parts:
            self._work.merge(part)
        return LeanMinHash(self._work)


class NearIndex:
    """Texts by number, found again by overlap of character 5-grams. MinHash LSH proposes, exact Jaccard decides."""

    def __init__(self, threshold: float, signatures: Signatures):
        self._threshold = threshold
        self._signatures = signatures
        self._lsh = MinHashLSH(num_perm=PERMUTATIONS, params=banding(threshold))
        self._texts: dict[int, tuple[str, ...]] = {}
        self._grams: dict[tuple[str, ...], np.ndarray] = {}  # filled when a pair is verified, which few texts need

    def add(self, number: int, texts: tuple[str, ...]) -> None:
        self._lsh.insert(number, self._signatures.of(texts), check_duplication=False)
        self._texts[number] = texts

    def candidates(self, texts: tuple[str, ...]) -> list[int]:
        return sorted(self._lsh.query(self._signatures.of(texts)))

    def is_near(self, number: int, texts: tuple[str, ...]) -> bool:
        return jaccard(self._distinct(self._texts[number]), self._distinct(texts)) >= self._threshold

    def _distinct(self, texts: tuple[str, ...]) -> np.ndarray:
        if texts not in self._grams:
            self._grams[texts] = np.unique(np.concatenate([shingles(text) for text in texts]))
        return self._grams[texts]


def find_duplicates(talks: Sequence[TalkKeys], threshold: float, signatures: Signatures) -> Iterator[str]:
    """For each talk in file order: why it repeats an earlier one that was kept, or an empty string.

    A talk of several turns goes only when all its exchanges were seen: "ধন্যবাদ" closes many different talks.
    """
    seen: set[tuple[str, str]] = set()
    index = NearIndex(threshold, signatures)
    for number, talk in enumerate(talks):
        if all(exchange in seen for exchange in talk):
            yield DUPLICATE
            continue
        texts = tuple(key for exchange in talk for key in exchange)
        if any(index.is_near(other, texts) for other in index.candidates(texts)):
            yield NEAR_DUPLICATE
            continue
        seen.update(talk)
        index.add(number, texts)
        yield ""


class Groups:
    """Union-find whose representative is always the member that comes first in the file."""

    def __init__(self, size: int):
        self._parent = list(range(size))

    def find(self, member: int) -> int:
        while self._parent[member] != member:
            self._parent[member] = self._parent[self._parent[member]]
            member = self._parent[member]
        return member

    def join(self, left: int, right: int) -> None:
        low, high = sorted((self.find(left), self.find(right)))
        self._parent[high] = low


def find_groups(talks: Sequence[TalkKeys], runs: Sequence[int], threshold: float, signatures: Signatures) -> list[int]:
    """For each talk the first talk of its leakage group.

    Joined are talks cut from one run of rows, talks that share a question (any turn's), and talks with nearly the
    same question or nearly the same long answer: a reply learnt by heart would be scored as if it were understood.
    """
    groups = Groups(len(talks))
    first_of_run: dict[int, int] = {}
    for number, run in enumerate(runs):
        groups.join(first_of_run.setdefault(run, number), number)
    for side, shortest_equal, shortest_near in ((0, 0, MIN_NEAR_QUESTION), (1, MIN_NEAR_ANSWER, MIN_NEAR_ANSWER)):
        first_with: dict[str, int] = {}
        for number, talk in enumerate(talks):
            for exchange in talk:
                if len(exchange[side]) >= shortest_equal:
                    groups.join(first_with.setdefault(exchange[side], number), number)
        long_enough = {text: owner for text, owner in first_with.items() if len(text) >= shortest_near}
        _join_near(groups, long_enough, NearIndex(threshold, signatures))
    return [groups.find(number) for number in range(len(talks))]


def _join_near(groups: Groups, owners: Mapping[str, int], index: NearIndex) -> None:
    numbers = list(owners.values())
    for place, (text, owner) in enumerate(owners.items()):
        for other in index.candidates((text,)):
            together = groups.find(numbers[other]) == groups.find(owner)
            if not together and index.is_near(other, (text,)):
                groups.join(numbers[other], owner)
        index.add(place, (text,))


def split_groups(sizes: Mapping[str, int], test: float, validation: float, seed: int) -> dict[str, str]:
    """Gives every group to train, validation or test, by seed and id alone.

    From the smallest groups to the largest, and within a size in the order of a hash of seed and id, each group goes
    to the split that lags most behind its share. So single questions and talks are spread alike over all splits.
    A group far above the usual size goes to train, where one subject cannot outweigh the rest of a held-out set.

    Args:
        sizes: exchanges of each group, by group id.
        test: share of all exchanges that the test split should get; likewise `validation`.

    Raises:
        UserError: fewer than three groups, so that a split would be empty.
    """
    total = sum(sizes.values())
    if len(sizes) < 3:
        raise UserError(
            f"the data is too small to split: usable rows {total}, independent groups {len(sizes)}, needed groups 3",
            "One group each goes to train, validation and test; rows of one talk, with one question or with nearly "
            "the same text are one group. Add rows.",
        )
    order = sorted(sizes, key=lambda group: (sizes[group], hashlib.sha256(f"{seed}:{group}".encode()).digest()))
    outsized = max(2 * median_low(sizes.values()), total * min(test, validation) / 10)
    placed = {group: "train" for group in order if sizes[group] > outsized}
    rest = total - sum(sizes[group] for group in placed)
    # What train got in one piece is made up for, but never with more than half of the rest: it is train's variety.
    scale = max(1, min(total / rest, 0.5 / (test + validation)))
    wanted = {"train": 1 - scale * (test + validation), "test": scale * test, "validation": scale * validation}
    given = dict.fromkeys(wanted, 0)
    for group in order[: len(order) - len(placed)]:
        seen = sum(given.values()) + sizes[group]
        placed[group] = max(wanted, key=lambda name: wanted[name] * seen - given[name])
        given[placed[group]] += sizes[group]
    # In a tiny set a split may have got nothing: it then takes the smallest group of the fullest one.
    for name in wanted:
        if name not in placed.values():
            fullest, _ = Counter(placed.values()).most_common(1)[0]
            placed[next(group for group in order if placed[group] == fullest)] = name
    return placed
