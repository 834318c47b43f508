"""Bengali text: one Unicode form, the scoring normaliser, word tokens, grapheme clusters, script counts.

Pure functions over strings. What a person reads or a model is trained on is never changed by `scoring_normalise`: it
exists so that two spellings of the same word count as equal when texts are compared. Knows nothing about models,
metrics or files.
"""

from __future__ import annotations

import string
import unicodedata

import regex

# Invisible characters that change how a word is drawn or broken, never which word it is:
# soft hyphen, zero-width space, ZWNJ, ZWJ, word joiner, byte-order mark.
_INVISIBLE = "\u00ad\u200b\u200c\u200d\u2060\ufeff"
_DIGITS = "০১২৩৪৫৬৭৮৯"
_LETTERS = str.maketrans(
    dict.fromkeys(_INVISIBLE)
    | {"ৰ": "র", "ৱ": "ব"}  # Assamese ra and va
    | dict(zip("0123456789", _DIGITS, strict=True))
    | dict(zip("０１２３４５６７８９", _DIGITS, strict=True))
)

_VOWEL_SIGN = "\u09be-\u09c4\u09c7\u09c8\u09cb\u09cc\u09d7"
_SIGN = f"\u0981-\u0983\u09bc\u09cd{_VOWEL_SIGN}"
# Khanda ta counts as a consonant here, or the hasanta of a final "ত্ত্" would be read differently the second time.
_CONSONANT = "\u0995-\u09b9\u09ce"

# Each is a mistyped order or a look-alike that no valid Bengali word contains (after NFC and without joiners).
_REPAIRS = tuple(
    (regex.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"([{_SIGN}])\1+", r"\1"),  # a sign typed twice
        # chandrabindu belongs after the vowel sign; all of a run at once, or a broken reply takes minutes
        (rf"\u0981([{_VOWEL_SIGN}\u0981]*[{_VOWEL_SIGN}])", lambda run: run[1].replace("\u0981", "") + "\u0981"),
        ("\u09be\u09c7", "\u09cb"),  # া + ে typed in visual order is ো
        ("\u0985\u09be", "\u0986"),  # অ + া is আ
        ("\u09ac\u09bc", "\u09b0"),  # ব with a dot below is র
        (rf"\u09a4\u09cd(?![{_CONSONANT}])", "\u09ce"),  # ত্ that joins nothing is ৎ
        # U+09F7 is typed for its look of a danda; next to another currency numerator it is one itself.
        (r"(?<![\u09f4-\u09f9])\u09f7(?![\u09f4-\u09f9])", "\u0964"),
    )
)

_CONTROL = regex.compile(r"[^\P{C}\t\n]|\ufffd")
_PUNCTUATION = regex.compile(rf"[\p{{P}}{regex.escape(string.punctuation)}]")
_WORD = regex.compile(r"[\p{L}\p{M}]+|\p{N}+|[^\s\p{L}\p{M}\p{N}]")
_CLUSTER = regex.compile(r"\X")
_LETTER = regex.compile(r"[\p{L}\p{M}]")
# Control characters, direction marks, private and surrogate code points; joiners are needed to write Bengali and emoji.
_UNSEEN = regex.compile(r"[^\P{C}\t\n\u200c\u200d]")
_TORN = "\ufffd\u09cd\u200c\u200d"
_SENTENCE_END = regex.compile(r"[।॥৷.?!…][\p{Pe}\p{Pf}\"']*\s*\Z")
_BENGALI_LETTER = regex.compile(r"(?=\p{Bengali})[\p{L}\p{M}]")

NORMALISER = "bnft-1"
"""Names the rules of `scoring_normalise` in metric signatures; raise it whenever a rule changes."""


def nfc(s: str) -> str:
    """Canonical composition; note that it writes ড় ঢ় য় as letter + nukta, being composition exclusions."""
    return unicodedata.normalize("NFC", s)


def scoring_normalise(s: str) -> str:
    """One spelling for every text that a Bengali reader sees as the same; idempotent; for comparing only."""
    # One repair can uncover the next (a doubled sign that a reversed pair left behind), so until nothing changes.
    # It ends: every rule shortens the text, moves a chandrabindu right, or leaves the letters it acts on.
    while (repaired := _repair_once(s)) != s:
        s = repaired
    return s


def _repair_once(s: str) -> str:
    s = nfc(s.translate(_LETTERS))
    for pattern, replacement in _REPAIRS:
        s = pattern.sub(replacement, s)
    return s


def word_tokens(s: str) -> list[str]:
    """Lower-cased words, numbers and single symbols, without punctuation.

    The rule of the reference Bengali ROUGE (csebuetnlp/xl-sum, multilingual_rouge_scoring, no stemming). `re`'s `\\w`
    cannot be used: it cuts Bengali words at vowel signs.
    """
    s = _CONTROL.sub("", s.lower())
    return _WORD.findall(_PUNCTUATION.sub(" ", s))


def grapheme_clusters(s: str) -> list[str]:
    """What a reader sees as single characters; a conjunct such as ক্ষ is one."""
    return _CLUSTER.findall(s)


def letter_counts(s: str) -> tuple[int, int]:
    """Letters and marks in Bengali script, and in any script. Digits and the danda are not letters."""
    return len(_BENGALI_LETTER.findall(s)), len(_LETTER.findall(s))


def bengali_ratio(s: str) -> float:
    """Share of the letters and marks that are in Bengali script; 0.0 for a text without letters."""
    bengali, letters = letter_counts(s)
    return bengali / letters if letters else 0.0


def ends_sentence(s: str) -> bool:
    """Whether the last visible mark closes a sentence; quotes and brackets may follow it."""
    return _SENTENCE_END.search(s) is not None


def drop_unseen(s: str) -> str:
    """A text without the characters that no person can see; line ends, tabs and joiners stay."""
    return _UNSEEN.sub("", s)


def has_replacement_char(s: str) -> bool:
    """Whether U+FFFD shows that bytes were lost in decoding."""
    return "\ufffd" in s


def drop_torn_tail(s: str) -> str:
    """A text that was stopped from outside, without what the stop tore: half a character, a hasanta, a joiner."""
    end = len(s)  # not a pattern that ends in \Z: it takes minutes for a hundred thousand spaces in a row
    while end and (s[end - 1] in _TORN or s[end - 1].isspace()):
        end -= 1
    return s[:end]
