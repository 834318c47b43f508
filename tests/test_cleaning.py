"""Repairs and faults of single fields. All text is made up; the faults are those of the real corpus."""

import pytest

from bnft.cleaning import clean, comparison_key, fault_of

REPAIRED = [
    # (as found, as kept, repairs)
    ("আমি ভালো আছি৷", "আমি ভালো আছি।", ["currency_sign_as_danda"]),
    ("মন ভালো নেই।Â   কেন?", "মন ভালো নেই। কেন?", ["mojibake", "doubled_spaces"]),
    ("মন ভালো নেই।Â\u00a0কেন?", "মন ভালো নেই। কেন?", ["mojibake", "odd_spaces"]),
    ("আমার â€œবন্ধুâ€\x9d এলো না", "আমার “বন্ধু” এলো না", ["mojibake"]),
    ("সে বলল itâ€™s ok", "সে বলল it’s ok", ["mojibake"]),
    ("à¦†à¦®à¦¿ যাই", "আমি যাই", ["mojibake"]),  # Bengali UTF-8 read as Windows-1252
    ("খুব ভালো ðŸ˜Š", "খুব ভালো 😊", ["mojibake"]),
    ("বাবা\u200b মা\ufeff", "বাবা মা", ["control_characters"]),
    ("\u202bবাবা\u202c\x07 মা", "বাবা মা", ["control_characters"]),
    ("ভালো\ud83d লাগে", "ভালো লাগে", ["control_characters"]),  # half an emoji, from a broken JSON escape
    ("আমি\u200d যাব \u200cনা", "আমি যাব না", ["stray_joiners"]),
    ("রাত\u00a0হলে\tভয় লাগে", "রাত হলে ভয় লাগে", ["odd_spaces"]),
    ("  আজ মন খারাপ ", "আজ মন খারাপ", ["edge_spaces"]),
    ("আজ  মন   খারাপ", "আজ মন খারাপ", ["doubled_spaces"]),
    ("কেমন আছ ? ভালো ।", "কেমন আছ? ভালো।", ["space_before_mark"]),
    ("চাকরি গেছে। \n \n এখন কী করি?", "চাকরি গেছে।\nএখন কী করি?", ["line_breaks"]),
    ("চাকরি গেছে আর আমি\nঘরে বসে আছি", "চাকরি গেছে আর আমি ঘরে বসে আছি", ["line_breaks"]),
    ("চেষ্টা করুন\r\n- হাঁটা\r\n- ঘুম", "চেষ্টা করুন\n- হাঁটা\n- ঘুম", ["control_characters"]),
]

UNTOUCHED = [
    "র\u200d\u09cdযাব এলো",  # joiners that change how a word is drawn
    "হঠাত্\u200d দেখি",  # the old spelling of khanda ta
    "উদ্\u200cযাপন",
    "পরিবার 👨\u200d👩\u200d👧 নিয়ে",
    "আমার \u09af\u09bc আর \u09df",  # decomposed and precomposed: people write both
    "না! :)",
    "ভালো লাগে ... আবার লাগে না",
    "আমি Ânge নামে ডাকি",
    "Café তে দেখা",
    "প্রথম লাইন।\nদ্বিতীয় লাইন।",
    "কী :( হলো ;)",
]


@pytest.mark.parametrize(("found", "kept", "repairs"), REPAIRED)
def test_faults_are_mended_and_named(found, kept, repairs):
    assert clean(found) == (kept, repairs)
    assert clean(kept) == (kept, [])


@pytest.mark.parametrize("text", UNTOUCHED)
def test_what_people_write_is_left_alone(text):
    assert clean(text) == (text, [])


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("কেন?", "না", ""),  # both are real
        ("amar mon kharap", "কী হয়েছে বলবেন?", ""),  # Banglish in, Bengali out
        ("😢", "কী হয়েছে?", ""),
        ("I feel sad", "I am sorry to hear that", "not_bengali_enough"),
        ("মন খারাপ", "lol", "not_bengali_enough"),
        ("মন খারাপ", ":)", "not_bengali_enough"),
        ("মন খারাপ", "lol সত্যি বলছেন? খুব ভালো", ""),
        ("", "কী হয়েছে?", "empty_question"),
        ("???", "কী হয়েছে?", "empty_question"),
        ("মন খারাপ", "", "empty_answer"),
        ("মন খারাপ।", "মন  খারাপ।", "answer_equals_question"),
        ("\u09df\u09a6\u09bf", "\u09af\u09bc\u09a6\u09bf", "answer_equals_question"),  # যদি-like word in two encodings
        ("সত্যি?", "সত্যি।", ""),
        ("মন খারাপ", "ক" * 201, "too_long"),
        ("ক" * 201, "মন খারাপ", "too_long"),
        ("মন খারাপ", "ক" * 200, ""),
        ("মন খা\ufffdপ", "কী হয়েছে?", "mojibake"),
        ("মন খারাপ", "à¦ হলো", "mojibake"),
        ("মন খারাপ", "সে বলল â€ হ্যাঁ", "mojibake"),
    ],
)
def test_faults_that_drop_an_exchange(question, answer, reason):
    assert fault_of(question, answer, min_bengali_ratio=0.5, max_chars=200) == reason


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("কেমন আছ?", "কেমন  আছ।"),
        ("ঘুম হ\u09df না", "ঘুম হ\u09af\u09bc না"),
        ("হঠাত্\u200d এলো", "হঠাত্ এলো"),
        ("Lol কী", "lol কী"),
    ],
)
def test_comparison_key_ignores_what_does_not_tell_texts_apart(left, right):
    assert comparison_key(left) == comparison_key(right)


def test_comparison_key_keeps_vowel_signs_and_smileys():
    assert comparison_key("কি") != comparison_key("কী")
    assert comparison_key("😢") == "😢"
