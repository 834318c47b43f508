"""Repairs a field of corpus text by rule, names every repair, and judges whether an exchange can be used.

Repairs mend what an encoding or a web page broke and leave what a person wrote: no spelling, no punctuation
style and no Unicode form (NFC or not) is changed in stored text. Knows nothing about files, talks or splits.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import regex

from bnft.text import bengali_ratio, nfc

# Reasons for which an exchange is dropped.
MOJIBAKE = "mojibake"
EMPTY_QUESTION = "empty_question"
EMPTY_ANSWER = "empty_answer"
TOO_LONG = "too_long"
ANSWER_EQUALS_QUESTION = "answer_equals_question"
NOT_BENGALI = "not_bengali_enough"


def _misread(byte: int) -> str:
    """What a byte above 0x7F becomes when UTF-8 is read as Windows-1252 (or as Latin-1, where that has no sign)."""
    try:
        return bytes([byte]).decode("cp1252")
    except UnicodeDecodeError:
        return chr(byte)


_BYTE_OF = {chr(byte): byte for byte in range(0x80, 0x100)} | {_misread(byte): byte for byte in range(0x80, 0x100)}
_TAIL = "[" + "".join(regex.escape(sign) for sign, byte in _BYTE_OF.items() if byte < 0xC0) + "]"
# Only lead bytes that occur here: Latin-1 signs (Â Ã), Bengali (à), general punctuation (â), emoji (ð).
# More of them would begin to hit real words such as a French capital before a closing quotation mark.
_MISREAD_UTF8 = regex.compile(f"[ÂÃ]{_TAIL}|[àâ]{_TAIL}{{2}}|ð{_TAIL}{{3}}")
_LONE_A = regex.compile(r"(?<!\p{Latin})Â(?!\p{Latin})")
# U+FFFD: a byte is lost. à¦ à§ begin a Bengali letter and â€ a quotation mark whose last byte is lost.
_BEYOND_REPAIR = regex.compile(r"\uFFFD|à[¦§]|â€")


def _mend_mojibake(text: str) -> str:
    """UTF-8 read as Windows-1252 is read again properly; the `Â` that a lost no-break space leaves becomes a space."""

    def reread(match: regex.Match) -> str:
        try:
            return bytes(_BYTE_OF[sign] for sign in match[0]).decode("utf-8")
        except UnicodeDecodeError:
            return match[0]

    for _ in range(3):  # text is sometimes damaged more than once
        mended = _MISREAD_UTF8.sub(reread, text)
        if mended == text:
            break
        text = mended
    return _LONE_A.sub(" ", text)


_LINE_END = regex.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# Control, format (zero-width space, soft hyphen, byte-order mark, bidi marks), private-use and lone surrogates; but
# not the tags that make England's flag, or Scotland's, of a black one.
_JUNK = regex.compile(
    r"(?V1)\U0001F3F4[\U000E0030-\U000E007A]{1,6}\U000E007F(*SKIP)(*FAIL)"
    r"|[[\p{Cc}\p{Cf}\p{Co}\p{Cs}\uFFFE\uFFFF]--[\t\n\u200C\u200D]]"
)
# A joiner means something between Bengali signs (র‍্যাব), after a hasanta (the old spelling of ৎ) and inside emoji.
_STRAY_JOINER = regex.compile(
    r"(?!(?<=\p{Bengali})[\u200C\u200D](?=\p{Bengali}))(?<!\u09CD)"
    r"(?!(?<=[\p{Extended_Pictographic}\p{Emoji_Modifier}\uFE0F])\u200D(?=\p{Extended_Pictographic}))[\u200C\u200D]"
)
_ODD_SPACE = regex.compile(r"[\t\p{Zs}--\x20]", flags=regex.V1)
_LINE_BREAK = regex.compile(r" *\n[ \n]*")
_LIST_ITEM = regex.compile(r"[-*•]\s|\p{Nd}{1,2}[.)।]\s")
# Not before ; and : which begin smileys, nor before an ellipsis.
_SPACE_BEFORE_MARK = regex.compile(r" +(?=[।?!,]|\.(?:\s|$))")


def _join_lines(text: str) -> str:
    """Keeps a break after a sentence, before a list item or at a blank line; other breaks are wrapped lines."""

    def joint(match: regex.Match) -> str:
        ends_sentence = text[match.start() - 1] in "।?!.:…\"'”’)"
        new_item = _LIST_ITEM.match(text, match.end())
        return "\n" if ends_sentence or new_item or match[0].count("\n") > 1 else " "

    return _LINE_BREAK.sub(joint, text)


# In this order: each rule may rely on the ones above it.
REPAIRS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("mojibake", _mend_mojibake),
    ("control_characters", lambda text: _JUNK.sub("", _LINE_END.sub("\n", text))),
    # U+09F7 is a currency numerator that no one writes today; keyboards put it where a danda belongs.
    ("currency_sign_as_danda", lambda text: text.replace("\u09f7", "\u0964")),
    ("stray_joiners", lambda text: _STRAY_JOINER.sub("", text)),
    ("odd_spaces", lambda text: _ODD_SPACE.sub(" ", text)),
    ("edge_spaces", str.strip),
    ("line_breaks", _join_lines),
    ("doubled_spaces", lambda text: regex.sub(" {2,}", " ", text)),
    ("space_before_mark", lambda text: _SPACE_BEFORE_MARK.sub("", text)),
)


def clean(text: str) -> tuple[str, list[str]]:
    """The text with its mechanical faults mended, and the names of the repairs that changed something."""
    done = []
    for name, repair in REPAIRS:
        mended = repair(text)
        if mended != text:
            done.append(name)
            text = mended
    return text, done


def fault_of(question: str, answer: str, min_bengali_ratio: float, max_chars: int) -> str:
    """Why a cleaned exchange cannot be used, or an empty string.

    Only the answer must be Bengali: people ask in Banglish (Bengali in Latin letters), and should get Bengali back.
    """
    if _BEYOND_REPAIR.search(question) or _BEYOND_REPAIR.search(answer):
        return MOJIBAKE
    if not _SAYS_SOMETHING.search(question):
        return EMPTY_QUESTION
    if not answer:
        return EMPTY_ANSWER
    if max(len(question), len(answer)) > max_chars:
        return TOO_LONG
    if _same_words(question.split(), answer.split()):
        return ANSWER_EQUALS_QUESTION
    if bengali_ratio(answer) < min_bengali_ratio:
        return NOT_BENGALI
    return ""


_SAYS_SOMETHING = regex.compile(r"[\p{L}\p{N}\p{So}]")


class _WordSigns(dict):
    """For `str.translate`, filled as signs turn up: letters, marks, digits stay, joiners go, the rest parts words.

    Four times as fast as a regular expression, which was most of the time that cleaning took.
    """

    def __missing__(self, code: int) -> str:
        sign = chr(code)
        kept = "" if sign in "\u200c\u200d" else sign if unicodedata.category(sign)[0] in "LMN" else " "
        self[code] = kept
        return kept


_WORD_SIGNS = _WordSigns()


def _same_words(left: list[str], right: list[str]) -> bool:
    """With their punctuation, as "সত্যি?" may well be answered by "সত্যি।"."""
    return len(left) == len(right) and nfc(" ".join(left)).casefold() == nfc(" ".join(right)).casefold()


def comparison_key(text: str) -> str:
    """The form in which texts are compared for duplicates: NFC, lower case, words only, single spaces."""
    folded = nfc(text).casefold()
    return " ".join(folded.translate(_WORD_SIGNS).split()) or " ".join(folded.split())
