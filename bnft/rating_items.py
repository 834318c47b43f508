"""What is rated: a run's replies as raters see them, and who sees which pair when, on which side.

Everything follows from the run's seed and the rater's name, so that a rater can come back to any program that serves
the run. Knows nothing about the page or about what was answered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from random import Random

import regex

from bnft.errors import UserError
from bnft.rating_form import RATER
from bnft.rating_store import SYSTEMS, Row, key_of
from bnft.records import RESPONSES, RunDirectory
from bnft.results import read_metrics, read_responses
from bnft.text import nfc

PAIRS = tuple(combinations(SYSTEMS, 2))
ROUND = 10  # new pairs in a round; one of them comes a second time, which makes about 10 % repeats
LEAST_FOR_A_REPEAT = 5
_COLUMN = {"tuned": "tuned_reply", "base": "base_reply", "reference": "reference"}
_SENTENCES = regex.compile(r".*(?:[।॥?!]|\.(?!\S))[\"'”’»)]*", regex.DOTALL)
_WORDS = regex.compile(r".*(?=\s)", regex.DOTALL)


@dataclass(frozen=True)
class Item:
    """One row of GeneratedResponses.csv.

    Attributes:
        said: the conversation up to the message that was replied to.
        texts: by system, as raters see them; `hashes` are theirs.
    """

    id: str
    said: tuple[dict, ...]
    texts: Mapping[str, str]

    @property
    def hashes(self) -> dict[str, str]:
        return {system: hash_of(text) for system, text in self.texts.items()}


@dataclass(frozen=True)
class Comparison:
    """One screen: two replies to one message.

    Attributes:
        systems: who wrote the left and the right one.
        place, of: where it stands in its round.
    """

    item: Item
    systems: tuple[str, str]
    repeat: bool
    place: int = 0
    of: int = 0

    def texts(self) -> tuple[str, str]:
        left, right = (self.item.texts[system] for system in self.systems)
        return left, right

    def columns(self, rater: str) -> Row:
        """What identifies it in ratings.csv."""
        hashes = self.item.hashes
        columns = {"item": self.item.id, "repeat": str(int(self.repeat)), "rater": rater}
        for side, system in zip(("a", "b"), self.systems, strict=True):
            columns |= {f"system_{side}": system, f"hash_{side}": hashes[system]}
        return columns

    def token(self, rater: str) -> str:
        """Names this screen to the page without telling who wrote what."""
        return hash_of("|".join(map(str, key_of(self.columns(rater)))))


def hash_of(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]


def read_items(folder: Path) -> list[Item]:
    """The replies of a run.

    Raises:
        UserError: GeneratedResponses.csv is missing, or is not what the run's metrics were made of.
    """
    rows = read_responses(folder)
    talks = {conversation.id: conversation.messages for conversation in RunDirectory(folder).read_splits()["test"]}
    items = []
    try:
        for row in rows:
            talk, _, turn = row["id"].rpartition("-")
            texts = {
                system: shown(row[column], row.get(f"{system}_finish_reason") == "length")
                for system, column in _COLUMN.items()
            }
            items.append(Item(row["id"], tuple(talks[talk][: 2 * int(turn) - 1]), texts))
    except KeyError as error:
        raise UserError(
            f"{folder / RESPONSES} has no column {error.args[0]!r}",
            f"Measure the run again: python train.py --eval-only {folder}",
        ) from error
    if not items:
        raise UserError(
            f"{folder / RESPONSES} holds no reply to rate", f"Measure the run: python train.py --eval-only {folder}"
        )
    return items


def decoding_of(folder: Path) -> str:
    """How the replies were made, as one value of ratings.csv."""
    words = ";".join(f"{name}={value}" for name, value in read_metrics(folder)["decoding"].items())
    return regex.sub(r"^\W+|[,\"\s]+", " ", words).strip()[:200]


def shown(reply: str, cut_off: bool) -> str:
    """A reply as raters see it: one that met the length limit ends with a whole sentence, or with a whole word."""
    reply = reply.strip()
    if cut_off:
        for ending in (_SENTENCES, _WORDS):
            found = ending.match(reply)
            if found and 2 * len(found[0].strip()) >= len(reply):
                return found[0].strip()
    return reply


def read_rater(written: object) -> str:
    """The name under which a rater is known: case and spacing do not matter; "" where it is none."""
    if not isinstance(written, str):
        return ""
    name = " ".join(nfc(written).casefold().split())
    return name if regex.fullmatch(RATER, name) else ""


def plan(items: Sequence[Item], rater: str, seed: int) -> Iterator[Comparison]:
    """All that a rater is shown, in order; whoever stops after any round leaves ratings that can be counted.

    The order of the rounds is everybody's, so that raters meet on the same pairs; the order within a round, its repeat
    and the sides are the rater's own.
    """
    order = Random(f"{seed}").sample(list(items), len(items))
    pool = [(item, PAIRS[(i + turn) % len(PAIRS)]) for turn in range(len(PAIRS)) for i, item in enumerate(order)]
    for start in range(0, len(pool), ROUND):
        rng = Random(f"{seed}|{rater}|{start}")
        todo = [(*pair, False) for pair in rng.sample(pool[start : start + ROUND], len(pool[start : start + ROUND]))]
        if len(todo) >= LEAST_FOR_A_REPEAT:
            third = len(todo) // 3
            again = rng.choice(todo[: max(third, 1)])
            todo.insert(rng.randint(len(todo) - third, len(todo)), (*again[:2], True))
        for place, (item, pair, repeat) in enumerate(todo, 1):
            systems = pair if rng.random() < 0.5 else pair[::-1]
            yield Comparison(item, systems, repeat, place, len(todo))


def of_these(ratings: Sequence[Row], items: Sequence[Item]) -> list[Row]:
    """Ratings of texts that the run still has; a run that is measured again has new ones."""
    texts = {(item.id, system, hash_) for item in items for system, hash_ in item.hashes.items()}
    return [
        row
        for row in ratings
        if all((row["item"], row[f"system_{side}"], row[f"hash_{side}"]) in texts for side in ("a", "b"))
    ]
