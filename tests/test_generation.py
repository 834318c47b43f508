"""Batch generation: order, end tokens, and that a batch says what a row alone says."""

import pytest
import torch

from bnft.generation import generate_all
from bnft.prompts import encode_prompt, end_token_ids
from bnft.text import drop_torn_tail


@pytest.fixture
def prompts(tiny_tokenizer, conversations):
    return [encode_prompt(tiny_tokenizer, c.messages[:1]) for c in conversations[:6]]


def reply(model, tokenizer, prompt, count):
    """The greedy continuation by the plain definition: the best next token, one after another."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_batches_say_what_single_rows_say_in_the_order_of_the_prompts(tiny_model, tiny_tokenizer, prompts):
    ends = end_token_ids(tiny_tokenizer)
    alone = [generate_all(tiny_model, tiny_tokenizer, [p], ends, 12)[0].text for p in prompts]
    for size in (2, 4, 6):
        together = generate_all(tiny_model, tiny_tokenizer, prompts, ends, 12, batch_size=size)
        assert [r.text for r in together] == alone


def test_the_tokens_are_the_greedy_ones(tiny_model, tiny_tokenizer, prompts):
    expected = reply(tiny_model, tiny_tokenizer, prompts[0], 8)
    made = generate_all(tiny_model, tiny_tokenizer, prompts[:1], [], 8)[0]
    assert made.tokens == 8
    assert tiny_tokenizer.decode(expected).strip().startswith(made.text)


def test_a_reply_that_ends_by_itself_stops_before_its_end_token(tiny_model, tiny_tokenizer, prompts):
    """Any token can be made the end: then the reply is what stands before its first place."""
    tokens = reply(tiny_model, tiny_tokenizer, prompts[0], 8)
    end = tokens[5]
    made = generate_all(tiny_model, tiny_tokenizer, prompts[:1], [end], 8)[0]
    assert (made.ended, made.finish_reason) == (True, "stop")
    assert made.tokens == tokens.index(end)


def test_a_reply_at_the_limit_is_said_to_be_cut(tiny_model, tiny_tokenizer, prompts):
    made = generate_all(tiny_model, tiny_tokenizer, prompts[:1], [], 3)[0]
    assert (made.ended, made.finish_reason, made.tokens) == (False, "length", 3)
    assert not made.text.endswith(("\ufffd", "\u09cd", "\u200d"))


def test_every_reply_is_told_once(tiny_model, tiny_tokenizer, prompts):
    told = []
    made = generate_all(tiny_model, tiny_tokenizer, prompts, [], 2, 4, ready=lambda *reply: told.append(reply))
    assert sorted(told, key=lambda reply: reply[0]) == list(enumerate(made))


def test_a_penalty_bans_what_the_reply_used_and_leaves_the_prompt_free(tiny_model, tiny_tokenizer, prompts):
    """So high a penalty that no token of the reply comes again; the greedy one of each step tells what is expected."""
    made = generate_all(tiny_model, tiny_tokenizer, prompts[:1], [], 8, repetition_penalty=1e9)[0]
    expected = []
    for _ in range(8):
        with torch.no_grad():
            scores = tiny_model(torch.tensor([[*prompts[0], *expected]])).logits[0, -1]
        scores[expected] = -torch.inf
        expected.append(int(scores.argmax()))
    assert made.text == drop_torn_tail(tiny_tokenizer.decode(expected, skip_special_tokens=True).strip())


def test_the_penalty_does_not_reach_the_prompt_of_a_shorter_row(tiny_model, tiny_tokenizer, prompts):
    """Padding in front moves a prompt: alone and in a batch a reply must be the same."""
    alone = [generate_all(tiny_model, tiny_tokenizer, [p], [], 6, repetition_penalty=1.3)[0].text for p in prompts]
    together = generate_all(tiny_model, tiny_tokenizer, prompts, [], 6, repetition_penalty=1.3)
    assert [made.text for made in together] == alone


def test_freed_memory_is_kept_where_glibc_is():
    import platform

    from bnft.allocator import keep_freed_memory, share_freed_memory

    assert keep_freed_memory() == share_freed_memory() == (platform.libc_ver()[0] == "glibc")
