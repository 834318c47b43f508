"""Token by token, a reader never sees half a character, and in the end sees what the tokenizer says of the whole."""

import copy
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders

from bnft.emitter import Emitter, TokenTable
from bnft.errors import UserError
from bnft.text import grapheme_clusters

REPLY = "আমি আপনার কষ্টটা বুঝতে পারছি। ক্ষমা করবেন, বাক্ ও র\u200c্যাব 🫶🏽 ঠিক আছে? একসঙ্গে।"
DANGLING = "\ufffd\u09cd\u200c\u200d"


def frames(table, ids):
    emitter = Emitter(table)
    return [emitter.push(token) for token in ids], emitter


def decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()


def check(tokenizer, table, ids):
    """All promises at once, for any tokens."""
    whole = decode(tokenizer, ids)
    shown, emitter = frames(table, ids)
    cut, ended = emitter.cut(), emitter.end()
    assert ended == whole
    for before, after in pairwise([*shown, whole]):
        assert after.startswith(before)
    borders = {0, *accumulate(map(len, grapheme_clusters(whole)))}
    for text in shown:
        assert len(text) in borders or text.endswith(tuple("।॥.,;:?!…"))
        assert not text.endswith(("\u200c", "\u200d", "\u09cd")) or not whole[len(text) :][:1].isalpha()
    assert cut.startswith(shown[-1] if shown else "")
    assert cut == cut.strip()
    if whole.startswith(cut):  # else single bytes: the decode makes U+FFFD of whole characters before a torn one
        assert not whole[len(cut) :].strip(DANGLING + " \n\t").strip()
    else:
        assert "\ufffd" in whole
        assert cut.count("\ufffd") < whole.count("\ufffd")


def ids_for(tokenizer):
    """Any tokens; among them more often those of which Bengali is made, single bytes and joiners."""
    alphabet = REPLY + "ক্ষত্রয়ড়ৎংঃঁ\u200c\u200d।🫶👨\u200d👩🇧🇩\n é"
    common = sorted(
        {token for text in (REPLY, *alphabet) for token in tokenizer.encode(text, add_special_tokens=False)}
    )
    single = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "ক🫶".encode()]
    known = [token for token in single if token is not None and token != tokenizer.unk_token_id]
    anything = st.integers(0, len(tokenizer) + 5)
    return st.lists(st.one_of(st.sampled_from(common), st.sampled_from(known or common), anything), max_size=40)


@pytest.fixture(scope="module")
def tiny_table(tiny_tokenizer):
    return TokenTable(tiny_tokenizer)


@pytest.fixture(scope="module")
def gemma_table(embedded_tokenizer):
    return TokenTable(embedded_tokenizer)


@pytest.fixture(scope="module")
def tiny_ids(tiny_tokenizer):
    return ids_for(tiny_tokenizer)


@pytest.fixture(scope="module")
def gemma_ids(embedded_tokenizer):
    return ids_for(embedded_tokenizer)


@given(data=st.data())
def test_a_byte_level_reply_grows_to_its_whole_decode(tiny_tokenizer, tiny_table, tiny_ids, data):
    assert tiny_table.byte_level
    check(tiny_tokenizer, tiny_table, data.draw(tiny_ids))


@given(data=st.data())
def test_a_byte_fallback_reply_grows_to_its_whole_decode(embedded_tokenizer, gemma_table, gemma_ids, data):
    assert not gemma_table.byte_level
    check(embedded_tokenizer, gemma_table, data.draw(gemma_ids))


@pytest.mark.parametrize("which", ["tiny_tokenizer", pytest.param("embedded_tokenizer", marks=pytest.mark.slow)])
def test_every_token_of_the_table_is_what_its_own_decode_says(which, request):
    tokenizer = request.getfixturevalue(which)
    table = TokenTable(tokenizer)
    for token in range(0, len(tokenizer), max(1, len(tokenizer) // 4000)):
        data, lone = table[token]
        expected = tokenizer.decode([token], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if not (lone and data[0] > 127):  # one byte of several
            assert data.decode("utf-8", "replace") == expected


def test_a_real_reply_is_seen_growing(tiny_tokenizer, tiny_table):
    reply = REPLY.replace("🫶🏽 ", "")  # eight single bytes
    ids = tiny_tokenizer.encode(reply, add_special_tokens=False)
    shown, emitter = frames(tiny_table, ids)
    assert emitter.end() == reply
    held = 0
    for before, after in pairwise(shown):
        held = held + 1 if before == after else 0
        assert held <= 7  # the longest seen with Llama 3.1
    assert next(i for i, text in enumerate(shown) if text) <= len(
        tiny_tokenizer.encode("আমি", add_special_tokens=False)
    )


@pytest.mark.parametrize(
    ("typed", "shown", "cut"),
    [
        ("ক", "", "ক"),
        ("ক্", "", "ক"),  # may become ক্ষ
        ("ক্ষ", "", "ক্ষ"),  # may become ক্ষ্ম
        ("ক্ষা", "", "ক্ষা"),  # may become ক্ষাঁ
        ("বাক্ ", "বাক্", "বাক্"),  # the space says that nothing will join
        ("বাক্।", "বাক্।", "বাক্।"),
        ("ক্\u200cষ", "", "ক্\u200cষ"),
        ("ক্\u200cষমা", "ক্\u200cষ", "ক্\u200cষমা"),
        ("র\u200d", "", "র"),
        ("ভালো।", "ভালো।", "ভালো।"),
        ("\n\n ভালো আছি\n", "ভালো আছি", "ভালো আছি"),
        ("👨\u200d👩", "", "👨\u200d👩"),
        ("‼\ufe0f", "", "‼\ufe0f"),
    ],
)
def test_what_is_shown_before_the_next_token(tiny_tokenizer, tiny_table, typed, shown, cut):
    texts, emitter = frames(tiny_table, tiny_tokenizer.encode(typed, add_special_tokens=False))
    assert (texts[-1], emitter.cut()) == (shown, cut)


def test_half_a_character_is_dropped_at_a_cut_and_told_at_an_end(tiny_tokenizer, tiny_table):
    (first, *_), letters = "ক".encode(), tiny_table._letters
    byte = tiny_tokenizer.convert_tokens_to_ids(next(letter for letter, value in letters.items() if value == first))
    ids = [*tiny_tokenizer.encode("আমি", add_special_tokens=False), byte]
    _, emitter = frames(tiny_table, ids)
    assert emitter.cut() == "আমি"
    assert emitter.end() == decode(tiny_tokenizer, ids) == "আমি\ufffd"


def test_control_tokens_have_no_text(tiny_tokenizer, tiny_table):
    ids = tiny_tokenizer.convert_tokens_to_ids(["<|start_header_id|>", "<|eot_id|>", "<|begin_of_text|>"])
    texts, emitter = frames(tiny_table, ids)
    assert [*texts, emitter.end()] == [""] * 4


def test_a_tokenizer_of_another_kind_is_refused(tiny_tokenizer):
    other = copy.deepcopy(tiny_tokenizer)
    other.backend_tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(UserError, match="WordPiece"):
        TokenTable(other)
