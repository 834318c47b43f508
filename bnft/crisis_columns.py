"""Numbers out of a text's letters and words: hashed counts, weighted by rarity, as columns for a linear model.

As scikit-learn's TfidfVectorizer does, but counted by hash: faster, without a vocabulary, and what is learnt is a plain
array. Knows nothing about labels, and nothing about Bengali beyond what it is handed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

import numpy as np
from scipy.sparse import csr_matrix, hstack

BITS = 18
BUCKETS = 1 << BITS
_LENGTHS = range(2, 6)  # letters in a group
_SPACE = ord(" ")


@dataclass(frozen=True)
class Block:
    """How one kind of a text's features becomes columns.

    Attributes:
        letters: groups of letters within the words of a string, else the items of a list.
        least: texts that a feature must occur in.
        weight: length of a text's row.
        unit: weighted by rarity, row scaled to `weight`; else every feature that occurs counts `weight`.
    """

    letters: bool = False
    least: int = 2
    weight: float = 1.0
    unit: bool = True


def letter_counts(texts: Sequence[str]) -> csr_matrix:
    """How often each group of two to five neighbouring letters of a word occurs; a word begins and ends in a space."""
    joined = "".join(f" {text} " for text in texts)
    letters = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    row = np.repeat(np.arange(len(texts), dtype=np.uint64), [len(text) + 2 for text in texts])
    space = letters == _SPACE
    spaces_before = np.concatenate([[0], np.cumsum(space)])
    hashed, keys = letters, []
    for length in _LENGTHS:
        hashed = hashed[:-1] * np.uint64(0x9E3779B97F4A7C15) + letters[length - 1 :]
        n = len(hashed)
        inside = spaces_before[length - 1 : length - 1 + n] == spaces_before[1 : n + 1]  # a space at the ends only
        if length == 2:
            inside &= ~(space[:n] & space[1:])  # not between two texts, where two spaces meet
        mixed = (hashed[inside] ^ (hashed[inside] >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
        keys.append((row[:n][inside] << np.uint64(BITS)) | (mixed >> np.uint64(64 - BITS)))
    return _counted(np.concatenate(keys), len(texts))


def item_counts(lists: Sequence[Sequence[str]]) -> csr_matrix:
    buckets = np.array([_bucket(item) for items in lists for item in items], dtype=np.uint64)
    row = np.repeat(np.arange(len(lists), dtype=np.uint64), [len(items) for items in lists])
    return _counted((row << np.uint64(BITS)) | buckets, len(lists))


@lru_cache(maxsize=100_000)
def _bucket(item: str) -> int:
    return crc32(item.encode("utf-8", "surrogatepass")) & (BUCKETS - 1)


def _counted(keys: np.ndarray, rows: int) -> csr_matrix:
    keys, counts = np.unique(keys, return_counts=True)
    starts = np.searchsorted(keys, np.arange(rows + 1, dtype=np.uint64) << np.uint64(BITS))
    return csr_matrix((counts.astype(float), (keys & np.uint64(BUCKETS - 1)).astype(np.int32), starts), (rows, BUCKETS))


class Columns:
    """The columns of several blocks side by side; only those that were met when fitted.

    Args:
        rarity: what a bucket weighs, one array of BUCKETS a block; 0 where it is not used.
    """

    def __init__(self, blocks: Sequence[Block], rarity: Sequence[np.ndarray]):
        self.blocks = tuple(blocks)
        self.rarity = [np.asarray(weights, dtype=np.float32) for weights in rarity]
        self._kept = np.flatnonzero(np.concatenate(self.rarity))
        place = np.full(len(self.blocks) * BUCKETS, -1, dtype=np.int32)
        place[self._kept] = np.arange(len(self._kept), dtype=np.int32)
        self._place = place.reshape(len(self.blocks), BUCKETS)
        self._first = np.searchsorted(self._kept, np.arange(len(self.blocks) + 1) * BUCKETS)  # column of each block

    @classmethod
    def fitted(cls, blocks: Sequence[Block], features: Sequence[Sequence]) -> Columns:
        """Args: features: one sequence a block, of strings or of lists, one item a text."""
        return cls(blocks, [_rarity(block, texts) for block, texts in zip(blocks, features, strict=True)])

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, features: Sequence[Sequence]) -> csr_matrix:
        """A row a text, a column a feature that was met."""
        parts = [self._part(i, texts) for i, texts in enumerate(features)]
        return hstack(parts, format="csr")

    def _part(self, i: int, texts: Sequence) -> csr_matrix:
        block, counts = self.blocks[i], _counts(self.blocks[i], texts)
        weights = self.rarity[i][counts.indices]
        values = weights * (1 + np.log(counts.data)) if block.unit else (weights > 0).astype(float)
        row = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
        if block.unit:
            length = np.sqrt(np.bincount(row, values**2, counts.shape[0]))
            values = values / np.maximum(length, 1e-12)[row]
        met = weights > 0
        columns = self._place[i][counts.indices[met]] - self._first[i]
        width = self._first[i + 1] - self._first[i]
        return csr_matrix((values[met] * block.weight, (row[met], columns)), (counts.shape[0], width))


def _rarity(block: Block, texts: Sequence) -> np.ndarray:
    found_in = np.bincount(_counts(block, texts).indices, minlength=BUCKETS)
    weights = np.log((1 + len(texts)) / (1 + found_in)) + 1 if block.unit else np.ones(BUCKETS)
    return np.where(found_in >= block.least, weights, 0.0)


def _counts(block: Block, texts: Sequence) -> csr_matrix:
    return letter_counts(texts) if block.letters else item_counts(texts)
