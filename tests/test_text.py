"""Bengali text: every normalising rule, what must stay untouched, and the words that metrics count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnft.text import (
    bengali_ratio,
    drop_torn_tail,
    ends_sentence,
    grapheme_clusters,
    has_replacement_char,
    letter_counts,
    nfc,
    scoring_normalise,
    word_tokens,
)

# Correct spellings that look like what the rules mend: ya-phala after অ and এ, conjuncts with ত, khanda ta, nukta
# letters, chandrabindu, visarga, split vowels, conjuncts of three and four consonants.
VALID_WORDS = """
অ্যাপ অ্যাম্বুলেন্স এ্যালবাম আত্মা আত্মহত্যা উত্তর উত্থান সত্য সত্তা সত্ত্বেও মহত্ত্ব পত্নী ত্বক ত্যাগ ত্রাণ উৎসব
উৎকণ্ঠা হঠাৎ ভবিষ্যৎ কুৎসিত বিদ্যুৎ ভর্ৎসনা হৃৎপিণ্ড বাড়ি গাঢ় আষাঢ় সময় হয়েছে পড়াশোনা দুঃখ নিঃসঙ্গ অন্তঃসত্ত্বা
চাঁদ হাঁটা কাঁদছি পৌঁছানো বাঁচা সাঁতার ছোঁয়া দাঁড়াও কোথাও ভালোবাসা বৌদি ঔষধ ঐক্য ঋণ ঈর্ষা ঊর্ধ্ব স্বাস্থ্য স্ত্রী
রাষ্ট্র উজ্জ্বল লক্ষ্মী সূক্ষ্ম জ্যোৎস্না বন্ধুত্ব সান্ত্বনা দ্বন্দ্ব যন্ত্রণা কষ্ট বিষণ্ণ প্রশ্ন চিহ্ন ব্রাহ্মণ আহ্বান
বাঙ্ময় শাশুড়ি বউ বই ভাই খাই রং বাংলা বারবার বর বাবা রাব ছেঁড়া কোঁকড়া শৌর্য নৈঃশব্দ্য
"""


@pytest.mark.parametrize("word", VALID_WORDS.split())
def test_valid_words_are_unchanged_but_for_nfc(word: str) -> None:
    assert scoring_normalise(word) == nfc(word)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        # the same letter in two encodings; U+09DF, U+09DC, U+09DD are composition exclusions
        ("সম\u09df", "সম\u09af\u09bc"),
        ("বা\u09dcি", "বা\u09a1\u09bcি"),
        ("গা\u09dd", "গা\u09a2\u09bc"),
        ("ক\u09c7\u09be", "ক\u09cb"),
        ("ব\u09c7\u09d7", "ব\u09cc"),
        # typed by looks
        ("আমা\u09ac\u09bc", "আমার"),
        ("ভাল\u09be\u09c7", "ভাল\u09cb"),
        ("\u0985\u09beমি", "আমি"),
        ("চ\u0981\u09beদ", "চ\u09be\u0981দ"),
        ("পৌ\u0981\u09cc", "পৌ\u0981"),  # the chandrabindu moves and uncovers a doubled sign
        ("কিি", "কি"),
        ("ভ\u09be\u09be\u09c7", "ভ\u09cb"),  # doubled, then reversed
        ("সত্\u09cdয", "সত্য"),
        ("সম\u09df\u09bc", "সম\u09af\u09bc"),
        # characters that cannot be seen
        ("\ufeffআ\u00adমি\u200b", "আমি"),
        ("র\u200d্যাব", "র্যাব"),
        ("উদ্\u200cযাপন\u2060", "উদ্যাপন"),
        ("ক\u09c7\u200c\u09be", "ক\u09cb"),
        # ত্ is ৎ unless it joins a consonant
        ("হঠাত্", "হঠাৎ"),
        ("হঠাত্\u200d।", "হঠাৎ।"),
        ("হঠাত\u09cd\u09cd কি", "হঠাৎ কি"),
        ("সত্ত্", "সত্ৎ"),
        # Assamese letters, danda look-alike, digits
        ("আমাৰ ৱই", "আমার বই"),
        ("আছি\u09f7", "আছি\u0964"),
        ("২০২৪\u09f7", "২০২৪\u0964"),
        ("৴৷ আনা", "৴৷ আনা"),  # between currency numerators it is one
        ("2024 ২০২৪ ２０２４", "২০২৪ ২০২৪ ২০২৪"),
        ("call 16789!", "call ১৬৭৮৯!"),
        ("", ""),
        ("  দুই  ফাঁক\n", "  দুই  ফাঁক\n"),
    ],
)
def test_scoring_normalise(written: str, expected: str) -> None:
    assert scoring_normalise(written) == expected


# Where the rules act on each other: every sign, the letters they bind to, joiners, danda, digits, a Latin letter.
_TRICKY = st.text("অআকতবযয়রড়ৎৰৱািীেৈোৌৗ়্ঁংঃ৷৴। 1２৩a\u200c\u200d\u200b\u00ad", max_size=16)


@given(st.one_of(_TRICKY, st.text()))
def test_scoring_normalise_is_idempotent(s: str) -> None:
    once = scoring_normalise(s)
    assert scoring_normalise(once) == once


@given(st.one_of(_TRICKY, st.text()))
def test_scoring_normalise_sees_no_difference_between_unicode_forms(s: str) -> None:
    assert scoring_normalise(nfc(s)) == scoring_normalise(s)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # rouge_score's own tokenizer finds only "call" and "16789" here, `re`'s \w+ cuts আমি to আম
        ("আপনি 16789 নম্বরে call করুন", ["আপনি", "16789", "নম্বরে", "call", "করুন"]),
        ("আমি ভালো আছি।", ["আমি", "ভালো", "আছি"]),
        ("কেন?! “ঠিক” আছে—না...", ["কেন", "ঠিক", "আছে", "না"]),
        ("২০২৪। ২.৫", ["২০২৪", "২", "৫"]),
        ("Facebook-এ ৳৫০০ + ১০%", ["facebook", "এ", "৳", "৫০০", "১০"]),
        ("দুঃখ হৃৎপিণ্ড", ["দুঃখ", "হৃৎপিণ্ড"]),
        ("উদ্\u200cযাপন র\u200d্যাব", ["উদ্যাপন", "র্যাব"]),
        ("ভাঙা\ufffd শব্দ\tও\nসারি", ["ভাঙা", "শব্দ", "ও", "সারি"]),
        ("ভালো🙂থেকো", ["ভালো", "🙂", "থেকো"]),
        ("", []),
        ("।?! …", []),
    ],
)
def test_word_tokens(text: str, expected: list[str]) -> None:
    assert word_tokens(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ক্ষমা", ["ক্ষ", "মা"]),  # regex before 2024.7.24 split ক্ষ
        ("স্ত্রী", ["স্ত্রী"]),
        ("কাঁদি", ["কাঁ", "দি"]),
        ("সম\u09af\u09bc", ["স", "ম", "\u09af\u09bc"]),
        ("আমি🙂।", ["আ", "মি", "🙂", "।"]),
        ("", []),
    ],
)
def test_grapheme_clusters(text: str, expected: list[str]) -> None:
    assert grapheme_clusters(text) == expected


@given(st.text())
def test_grapheme_clusters_lose_nothing(s: str) -> None:
    assert "".join(grapheme_clusters(s)) == s


@pytest.mark.parametrize(
    ("text", "bengali", "letters"),
    [
        ("আমি", 3, 3),  # a letter, a letter, a vowel sign
        ("আমি call", 3, 7),
        ("আমি call করি।", 6, 10),
        ("मैं", 0, 3),
        ("১২৩।॥ 12 ?🙂", 0, 0),  # digits and the danda are not letters
        ("চাঁদ৳", 4, 4),
        ("", 0, 0),
    ],
)
def test_letters_by_script(text: str, bengali: int, letters: int) -> None:
    assert letter_counts(text) == (bengali, letters)
    assert bengali_ratio(text) == (bengali / letters if letters else 0.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ভালো আছি।", True),
        ("ভালো আছি৷ ", True),
        ("কেমন আছেন?", True),
        ("“ভালো আছি।”", True),
        ("(সত্যি!)\n", True),
        ("ভালো আছি", False),
        ("আমি, ", False),
        ("", False),
    ],
)
def test_ends_sentence(text: str, expected: bool) -> None:
    assert ends_sentence(text) is expected


def test_replacement_char() -> None:
    assert has_replacement_char("আমা\ufffd")
    assert not has_replacement_char("আমার")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ভালো \ufffd\ufffd", "ভালো"),
        ("ক্\u200d \n", "ক"),
        ("ক্ষ", "ক্ষ"),
        ("\ufffd", ""),
        ("ক" + " " * 100_000 + "খ", "ক" + " " * 100_000 + "খ"),  # a pattern needed minutes for these two
        ("ক" + "\u0981া" * 20_000, "ক" + "\u0981া" * 20_000),
    ],
)
def test_drop_torn_tail(text: str, expected: str) -> None:
    assert drop_torn_tail(text) == expected
    assert len(scoring_normalise(text)) <= len(text)
