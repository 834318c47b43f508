"""One reply as it is written: the same tokens as `generate`, the right end, and nothing left behind."""

import gc
import threading
import time
import weakref
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from bnft import cpu_weights, streaming
from bnft.cpu_weights import ScreenedHead
from bnft.generation import generate_all
from bnft.models import load_model
from bnft.prompts import encode_prompt, end_token_ids
from bnft.settings import ModelConfig
from bnft.streaming import Engine, Sampling, _Chooser
from bnft.text import drop_torn_tail

GREEDY = Sampling(24, 0.0, 1.0, 1.0)


@pytest.fixture
def prompt(tiny_tokenizer, conversations):
    return encode_prompt(tiny_tokenizer, conversations[0].messages[:1])


@pytest.fixture
def engine(tiny_model, tiny_tokenizer):
    return Engine(tiny_model, tiny_tokenizer, end_ids=())


def generated(model, prompt, count, penalty=1.0, **options):
    """Tokens of `generate`; the penalty leaves the prompt's tokens alone."""
    ids = torch.tensor([prompt])
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=len(prompt))])
    settings = GenerationConfig(max_new_tokens=count, eos_token_id=None, pad_token_id=0, **options)
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings, logits_processor=processors
        )
    return output[0, len(prompt) :].tolist()


def whole(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_the_text_is_the_one_of_generate(engine, tiny_model, tiny_tokenizer, prompt):
    expected = whole(tiny_tokenizer, generated(tiny_model, prompt, 24, do_sample=False))
    pieces = list(engine.stream(prompt, GREEDY))
    assert drop_torn_tail(pieces[-1].text) == drop_torn_tail(expected)
    assert [p.tokens for p in pieces] == [*range(1, 24), 24]
    assert [p.finish_reason for p in pieces] == [None] * 23 + ["length"]
    assert all(later.text.startswith(p.text) for p, later in pairwise(pieces))


@pytest.mark.parametrize("quick", [True, False])
def test_the_repetition_penalty_is_the_one_of_generate(tiny_model, tiny_tokenizer, quick):
    with torch.no_grad():  # such a model repeats itself at once, and the person
        tiny_model.lm_head.weight.copy_(tiny_model.model.embed_tokens.weight)
    prompt = tiny_tokenizer.encode("মা অসুস্থ, মন ভালো নেই", add_special_tokens=False)
    plain, penalised = (
        drop_torn_tail(whole(tiny_tokenizer, generated(tiny_model, prompt, 24, penalty, do_sample=False)))
        for penalty in (1.0, 6.0)
    )
    engine = Engine(tiny_model, tiny_tokenizer, (), quick)
    *_, last = engine.stream(prompt, Sampling(24, 0.0, 1.0, 6.0))
    assert drop_torn_tail(last.text) == penalised != plain


def test_a_prompt_of_several_chunks_is_read_as_one(engine, tiny_model, tiny_tokenizer, prompt):
    prompt = (prompt * 30)[:300]
    expected = whole(tiny_tokenizer, generated(tiny_model, prompt, 8, do_sample=False))
    *_, last = engine.stream(prompt, Sampling(8, 0.0, 1.0, 1.0))
    assert drop_torn_tail(last.text) == drop_torn_tail(expected)


END = 7


@settings(max_examples=max(1, settings().max_examples // 2))  # each token is a pass through the model
@given(
    ids=st.lists(st.integers(0, 1 << 20), min_size=1, max_size=10), limit=st.integers(1, 12), stop_at=st.integers(1, 14)
)
def test_any_tokens_that_a_model_may_draw_are_told_as_they_are(
    tiny_model, tiny_tokenizer, monkeypatch, ids, limit, stop_at
):
    """Whatever is drawn, the text grows to the tokenizer's decode, and an end of any kind takes back nothing."""
    drawn = iter([token % tiny_model.config.vocab_size for token in ids] + [END])
    monkeypatch.setattr(_Chooser, "choose", lambda self, hidden: next(drawn))
    tokens = [token % tiny_model.config.vocab_size for token in ids]
    tokens = tokens[: tokens.index(END)] if END in tokens else tokens
    stop, pieces = threading.Event(), []
    for piece in Engine(tiny_model, tiny_tokenizer, [END], quick=False).stream(
        [1], Sampling(limit, 0.0, 1.0, 1.0), stop
    ):
        pieces.append(piece)
        if piece.tokens == stop_at:
            stop.set()
    assert all(later.text.startswith(piece.text) for piece, later in pairwise(pieces))
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    last = pieces[-1]
    expected = whole(tiny_tokenizer, tokens[: last.tokens])
    if last.finish_reason == "stop":
        assert (last.text, last.tokens) == (expected, len(tokens))
    else:
        assert expected.startswith(last.text)
        assert drop_torn_tail(last.text) == drop_torn_tail(expected)
        assert last.tokens == min(limit, stop_at if stop_at < limit else limit)


def test_an_end_token_ends_the_reply_and_is_not_in_it(tiny_model, tiny_tokenizer, prompt):
    tokens = generated(tiny_model, prompt, 24, do_sample=False)
    end = tokens[9]
    *_, last = Engine(tiny_model, tiny_tokenizer, [end]).stream(prompt, GREEDY)
    before = tokens[: tokens.index(end)]
    assert (last.finish_reason, last.tokens, last.text) == ("stop", len(before), whole(tiny_tokenizer, before))


def test_a_reply_of_nothing(tiny_model, tiny_tokenizer, prompt):
    first = generated(tiny_model, prompt, 1, do_sample=False)
    (only,) = Engine(tiny_model, tiny_tokenizer, first).stream(prompt, GREEDY)
    assert (only.text, only.tokens, only.finish_reason) == ("", 0, "stop")


def test_stop_ends_the_reply_with_the_next_token(engine, prompt):
    stop = threading.Event()
    pieces = []
    for piece in engine.stream(prompt, GREEDY, stop):
        pieces.append(piece)
        if piece.tokens == 5:
            stop.set()
    assert [p.finish_reason for p in pieces] == [None] * 5 + ["stopped"]
    assert pieces[-1].tokens == 5
    assert pieces[-1].text.startswith(pieces[-2].text)


def test_stop_ends_the_reading_of_a_long_prompt(engine, prompt):
    stop = threading.Event()
    stop.set()
    (only,) = engine.stream(prompt, GREEDY, stop)
    assert (only.text, only.tokens, only.finish_reason) == ("", 0, "stopped")


def test_stop_from_another_thread(engine, prompt):
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    started = time.monotonic()
    *_, last = engine.stream(prompt, Sampling(3000, 0.0, 1.0, 1.0), stop)
    assert last.finish_reason == "stopped"
    assert time.monotonic() - started < 10  # 3000 tokens take longer


def test_a_closed_stream_leaves_no_thread_and_no_cache(engine, prompt, monkeypatch):
    caches = []

    class Noted(DynamicCache):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            caches.append(weakref.ref(self))

    monkeypatch.setattr(streaming, "DynamicCache", Noted)
    threads = threading.active_count()
    stream = engine.stream(prompt, GREEDY)
    next(stream)
    assert caches[0]() is not None
    stream.close()
    gc.collect()
    assert caches[0]() is None
    assert threading.active_count() == threads
    assert not torch.is_inference_mode_enabled()


def test_between_two_pieces_the_caller_is_in_its_own_mode(engine, prompt):
    for _ in engine.stream(prompt, Sampling(3, 0.0, 1.0, 1.0)):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()


def test_errors_reach_the_caller_as_they_are(engine, prompt):
    with pytest.raises(IndexError):  # no such row in the embedding
        next(engine.stream([10**6], GREEDY))
    assert list(engine.stream(prompt, GREEDY))[-1].finish_reason == "length"


def test_no_prompt_is_refused(engine):
    with pytest.raises(ValueError, match="prompt is empty"):
        next(engine.stream([], GREEDY))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ((0, 0, 1, 1), "max_new_tokens 0"),
        ((1, -1, 1, 1), "temperature"),
        ((1, 0, 0, 1), "top_p"),
        ((1, 0, 1, 0), "rep"),
    ],
)
def test_impossible_settings_are_refused(values, told):
    with pytest.raises(ValueError, match=told):
        Sampling(*values)


def test_a_seed_makes_a_reply_repeatable(engine, prompt):
    def reply(seed):
        *_, last = engine.stream(prompt, Sampling(16, 1.0, 0.95, 1.1, seed))
        return last.text

    assert reply(1) == reply(1) != reply(2)
    assert reply(None) != reply(None)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}])
@pytest.mark.parametrize("quick", [True, False])
def test_a_base_reply_is_one_without_the_adapter(tiny_model, tiny_tokenizer, prompt, quick, options):
    base = list(Engine(tiny_model, tiny_tokenizer, ()).stream(prompt, GREEDY))[-1].text
    model = get_peft_model(tiny_model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], **options)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    engine = Engine(model, tiny_tokenizer, (), quick)
    tuned = list(engine.stream(prompt, GREEDY))[-1].text
    expected = drop_torn_tail(whole(tiny_tokenizer, generated(model, prompt, 24, do_sample=False)))
    assert drop_torn_tail(tuned) == expected != drop_torn_tail(base)  # a byte that is no character at all stays
    both = zip(engine.stream(prompt, GREEDY, base=True), engine.stream(prompt, GREEDY), strict=True)  # in turns
    assert [piece.text for piece in list(both)[-1]] == [base, tuned]


SETTINGS = [
    (0.0, 1.0, 1.0),
    (0.0, 1.0, 1.2),
    (0.7, 0.9, 1.0),
    (1.0, 0.5, 1.3),
    (1.0, 0.95, 1.0),
    (1.5, 1.0, 1.0),
    (0.01, 0.01, 1.0),
]


@pytest.mark.skipif(not cpu_weights.has_fast_kernels(), reason="needs FBGEMM")
@pytest.mark.parametrize(("temperature", "top_p", "penalty"), SETTINGS)
def test_the_choice_among_few_tokens_is_the_choice_among_all(temperature, top_p, penalty):
    """The shares behind the draw are compared, for two draws prove little; greedy tokens are compared as they are."""
    dice = torch.Generator().manual_seed(5)
    weight = torch.randn(40_000, 64, generator=dice)
    states = torch.randn(30, 64, generator=dice) * 1.5
    states[:, 9] *= 50
    head = ScreenedHead(weight, states[:3])
    drawn: list[dict[int, float]] = []

    class Noting(_Chooser):
        def _throw(self, shares):
            drawn.append((shares / shares.sum()).tolist())
            return 0

    seen = weight @ states[0]
    seen = seen.topk(20).indices.tolist()  # tokens that the penalty hits
    sampling = Sampling(1, temperature, top_p, penalty, seed=1)
    for state in states:
        few, every = (Noting(sampling, head.scores, screen) for screen in (head, None))
        few._seen, every._seen = set(seen), set(seen)
        drawn.clear()
        assert few.choose(state) == every.choose(state)
        if temperature:
            assert len(drawn) == 2
            assert len(drawn[0]) == pytest.approx(len(drawn[1]), abs=1 + len(drawn[1]) * 2e-3)
            assert drawn[0][:50] == pytest.approx(drawn[1][:50], rel=2e-3)


def test_draws_follow_the_shares():
    scores = torch.tensor([3.0, 2.0, 2.5, -1.0])
    sampling = Sampling(1, 1.0, 0.9, 1.0, seed=11)
    chooser = _Chooser(sampling, lambda hidden: scores.clone(), None)
    counts = Counter(chooser.choose(torch.zeros(1)) for _ in range(3000))
    shares = scores[[0, 1, 2]].softmax(0)
    assert set(counts) == {0, 1, 2}  # 0.51 + 0.31 < 0.9, with the third it is enough
    assert [counts[i] / 3000 for i in (0, 1, 2)] == pytest.approx(shares.tolist(), abs=0.04)


def test_gemma_writes_what_generate_writes_and_what_the_evaluation_reads(embedded, embedded_tokenizer, conversations):
    model = load_model(embedded, ModelConfig(dtype="float32"))
    ends = end_token_ids(embedded_tokenizer)
    engine = Engine(model, embedded_tokenizer, ends)
    if cpu_weights.has_fast_kernels():
        assert engine._screen is not None
    for conversation, penalty in zip(conversations[:3], (1.0, 1.0, 1.2), strict=True):
        prompt = encode_prompt(embedded_tokenizer, conversation.messages[:1])
        expected = generate_all(model, embedded_tokenizer, [prompt], ends, 24, repetition_penalty=penalty)[0]
        pieces = list(engine.stream(prompt, Sampling(24, 0.0, 1.0, penalty)))
        assert pieces[-1].text == expected.text
        assert (pieces[-1].tokens, pieces[-1].finish_reason) == (expected.tokens, expected.finish_reason)
        first = next(p for p in pieces if p.text)
        assert first.tokens <= 4


def test_gemma_reads_past_its_sliding_window_in_chunks(embedded, embedded_tokenizer):
    model = load_model(embedded, ModelConfig(dtype="float32"))
    text = "আজ সকালে মা ফোন করেছিলেন। বাড়ির সবাই ভালো আছে, শুধু আমার মন ভালো নেই। " * 40
    prompt = [2, *embedded_tokenizer.encode(text, add_special_tokens=False)][:700]
    assert len(prompt) > model.config.sliding_window
    expected = generated(model, prompt, 6, do_sample=False)
    *_, last = Engine(model, embedded_tokenizer, ()).stream(prompt, Sampling(6, 0.0, 1.0, 1.0))
    assert last.text == drop_torn_tail(whole(embedded_tokenizer, expected))
