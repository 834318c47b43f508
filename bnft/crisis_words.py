"""Words behind their spellings: the fold, the sound skeleton, word classes and word patterns for crisis detection.

One word is written in many ways (বাঁচতে, বাচতে, bachte, b4cte). The fold undoes what is typed by mistake or by habit; the
skeleton is a rough sound form in which Bengali and Latin letters meet; a class ("live") gathers words that mean alike,
and a pattern says which classes or words follow each other and how closely. Knows nothing about labels or decisions.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache

import regex

from bnft.text import scoring_normalise

# Letters that are digits or signs in leet; only inside a word that has a Latin letter, so "12" stays a number.
_LEET = {"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "6": "ch", "7": "t", "@": "a", "$": "s", "!": "i"}
_LEET_WORD = regex.compile(r"[a-z0-9@$!]*[a-z][a-z0-9@$!]*")
_MERGED = str.maketrans({"ঁ": None, "়": None, "ণ": "ন", "শ": "স", "ষ": "স", "ী": "ি", "ূ": "ু", "ঈ": "ই", "ঊ": "উ"})
_DOUBLED_TA = regex.compile("ত্[নমত]")
_DOUBLED_LATIN = regex.compile(r"([a-z])\1+")
_STRETCHED = regex.compile(r"(.)\1{2,}")
_NOT_A_LETTER = regex.compile(r"[^\p{L}\p{M}\p{N}\s?]+")
_BENGALI = regex.compile(r"\p{Bengali}")
_VOWELS = regex.compile("[aeu]")

_CONSONANT_SOUNDS = dict(zip("কখগঘচছজঝঞটঠডঢণতথদধনপফবভমযরলশষসহৎ", "kkggccjjnttddnttddnppbbmjrlsssht", strict=True))
_CONSONANT_SOUNDS |= {"ঙ": "ng", "ং": "ng"}
_VOWEL_SOUNDS = {"অ": "o", "আ": "a", "া": "a", "এ": "e", "ে": "e", "ও": "o", "ো": "o", "ঐ": "oi", "ৈ": "oi"} | {
    "ই": "i", "ঈ": "i", "ি": "i", "ী": "i", "উ": "u", "ঊ": "u", "ু": "u", "ূ": "u",
    "ঋ": "ri", "ৃ": "ri", "ঔ": "ou", "ৌ": "ou",
}  # fmt: skip
_SOUNDS = str.maketrans(_CONSONANT_SOUNDS | _VOWEL_SOUNDS | dict.fromkeys("়্ঁঃ"))
# Conjuncts whose second letter is not heard, and the letters that Latin writing spells otherwise.
_UNHEARD = tuple(
    (unicodedata.normalize("NFD", spelling), sound)
    for spelling, sound in (("য়", ""), ("ড়", "র"), ("ঢ়", "র"), ("ক্ষ", "খ"), ("্য", ""), ("্ব", ""))
)
_LATIN_SOUNDS = (
    ("chh", "c"), ("ch", "c"), ("sh", "s"), ("kh", "k"), ("gh", "g"), ("th", "t"), ("dh", "d"), ("bh", "b"),
    ("ph", "p"), ("jh", "j"), ("f", "p"), ("v", "b"), ("z", "j"), ("q", "k"), ("x", "ks"), ("w", "o"), ("oo", "u"),
    ("ee", "i"),
)  # fmt: skip
_NOT_A_SOUND = regex.compile(r"[^a-z\s?০-৯]+")


def _opened(text: str) -> str:
    """Lower case, one Unicode form, lone surrogates replaced, leet undone."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _LEET_WORD.sub(_without_leet, unicodedata.normalize("NFKC", text).lower())


def _without_leet(word: regex.Match) -> str:
    core = word.group().rstrip("!")  # an exclamation mark at the end is one
    return "".join(_LEET.get(c, c) for c in core) + word.group()[len(core) :]


def fold(text: str) -> str:
    """Words in one spelling each, separated by single spaces."""
    return _folded(scoring_normalise(_opened(text)))


def skeleton(text: str) -> str:
    """Sounds in Latin letters, without the inherent vowel and without o; the same for চাই and chai, মরতে and morte."""
    return _sounded(scoring_normalise(_opened(text)))


def fold_and_skeleton(text: str) -> tuple[str, str]:
    normal = scoring_normalise(_opened(text))
    return _folded(normal), _sounded(normal)


def _folded(text: str) -> str:
    text = _DOUBLED_LATIN.sub(r"\1", _DOUBLED_TA.sub("ত্ত", text.translate(_MERGED)))
    return " ".join(_NOT_A_LETTER.sub(" ", _STRETCHED.sub(r"\1", text)).split())


def _sounded(text: str) -> str:
    for spelling, sound in _LATIN_SOUNDS:
        text = text.replace(spelling, sound)
    text = unicodedata.normalize("NFD", text)
    for spelling, sound in _UNHEARD:
        text = text.replace(spelling, sound)
    text = text.translate(_SOUNDS).replace("y", "").replace("o", "").replace("i", "e")
    return " ".join(_NOT_A_SOUND.sub(" ", _DOUBLED_LATIN.sub(r"\1", text)).split())


def _consonants(sounds: str) -> str:
    return sounds[:1] + _VOWELS.sub("", sounds[1:])


class _Stems:
    """Names by whole word and by the beginning of a word."""

    def __init__(self):
        self._whole: dict[str, set[str]] = {}
        self._beginning: dict[str, set[str]] = {}
        self._longest = 1

    def add(self, stem: str, name: str, whole: bool) -> None:
        (self._whole if whole else self._beginning).setdefault(stem, set()).add(name)
        self._longest = max(self._longest, len(stem))

    def names(self, word: str) -> set[str]:
        found = set(self._whole.get(word, ()))
        for length in range(2, min(len(word), self._longest) + 1):
            found |= self._beginning.get(word[:length], set())
        return found


class Lexicon:
    """Classes of words, as data/crisis_phrases.yaml lists them: a stem for all that begins so, `word=` for itself."""

    def __init__(self, classes: Mapping[str, str], literals: frozenset[str] = frozenset()):
        self._spelt, self._sounds, self._short = _Stems(), _Stems(), _Stems()
        for name, words in classes.items():
            for word in words.split():
                self._add(word.rstrip("="), name, whole=word.endswith("="))
        for word in literals:
            self._spelt.add(fold(word), f"~{word}", whole=True)
            if len(skeleton(word)) > 2:
                self._sounds.add(skeleton(word), f"~{word}", whole=True)
        self.of = lru_cache(maxsize=20_000)(self._of)

    def _add(self, word: str, name: str, whole: bool) -> None:
        sounds = skeleton(word)
        if _BENGALI.search(word):
            self._spelt.add(fold(word), name, whole or len(fold(word)) < 2)
        elif whole:
            self._spelt.add(fold(word), name, whole=True)
        if len(sounds) > 1 and " " not in sounds:  # one sound alone says nothing: to, তথ্য
            self._sounds.add(sounds, name, whole or len(sounds) < 4)
            if len(_consonants(sounds)) >= 3:
                self._short.add(_consonants(sounds), name, whole=True)

    def _of(self, word: str) -> frozenset[str]:
        """Classes and literals of one folded word; by its sound where its spelling is not known."""
        sounds = skeleton(word)
        if _BENGALI.search(word):
            found = self._spelt.names(word)
            known = any(not name.startswith("~") for name in found)
            if not known and len(sounds) > 3:
                found = found | self._sounds.names(sounds)
            return frozenset(found)
        found = self._sounds.names(sounds) | self._spelt.names(word)  # the second: Latin words listed as such
        if not found and len(sounds) >= 3 and not _VOWELS.search(sounds[1:]):  # SMS style: bcte, thkbo
            found = self._short.names(sounds)
        return frozenset(found)

    def atoms(self, folded: str) -> list[frozenset[str]]:
        return [self.of(word) for word in folded.split()]


class Pattern:
    """Words in an order: `death ..2 want|~চাই` is a word of class death and, at most two words between, one of the next.

    A name is a class, `~word` is that word however it is spelled.
    """

    def __init__(self, written: str):
        self._steps: list[tuple[int, frozenset[str]]] = []
        gap = 0
        for part in written.split():
            if part.startswith(".."):
                gap = int(part[2:])
            else:
                self._steps.append((gap, frozenset(part.split("|"))))
                gap = 0
        # The narrowest step: a text without any of these names cannot hold the pattern.
        self.needs = min((step for _, step in self._steps), key=lambda step: (len(step), sorted(step)))
        self.literals = frozenset(name[1:] for _, step in self._steps for name in step if name.startswith("~"))

    def ends(self, atoms: list[frozenset[str]]) -> Iterator[int]:
        """Positions right behind each place where the pattern is found."""
        first = self._steps[0][1]
        for start, names in enumerate(atoms):
            if not first.isdisjoint(names):
                yield from self._rest(atoms, start + 1, 1)

    def _rest(self, atoms: list[frozenset[str]], position: int, step: int) -> Iterator[int]:
        if step == len(self._steps):
            yield position
            return
        gap, wanted = self._steps[step]
        for i in range(position, min(len(atoms), position + gap + 1)):
            if not wanted.isdisjoint(atoms[i]):
                yield from self._rest(atoms, i + 1, step + 1)

    def found(self, atoms: list[frozenset[str]], present: frozenset[str]) -> bool:
        """Whether it occurs; `present` holds every name of `atoms`, to say no quickly."""
        return all(not step.isdisjoint(present) for _, step in self._steps) and any(True for _ in self.ends(atoms))
