"""Many readers at once each read what they would have read alone, and nobody's end is another's."""

import queue
import threading
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model

from bnft import batching
from bnft.batching import BatchEngine, open_engine, room_for
from bnft.gpu_weights import packed_layers
from bnft.models import load_model
from bnft.prompts import encode_prompt
from bnft.settings import ModelConfig
from bnft.streaming import Engine, Sampling

SETTINGS = [
    Sampling(24, 0.0, 1.0, 1.0),
    Sampling(9, 0.0, 1.0, 1.2),
    Sampling(40, 0.0, 1.0, 1.0),
    Sampling(31, 0.0, 1.0, 1.05),
    Sampling(17, 0.0, 1.0, 1.4),
]
CONTEXT = 512


EVERYWHERE = pytest.mark.parametrize(
    "place",
    [
        "cpu",
        pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="GPU")]),
    ],
    indirect=True,
)


@pytest.fixture
def place(request):
    """The device; on a GPU steps are recorded, and no hook sees them."""
    return getattr(request, "param", "cpu")


@pytest.fixture
def model(tiny_model, place):
    return tiny_model.to(place)


@pytest.fixture
def prompts(tiny_tokenizer, conversations):
    made = [encode_prompt(tiny_tokenizer, talk.messages[:1]) for talk in conversations[:5]]
    made[3] = (made[3] * 30)[:300]
    return made


@pytest.fixture
def opened():
    """Makes engines that end with the test."""
    engines = []

    def open_one(*args, **options):
        engines.append(BatchEngine(*args, **options))
        return engines[-1]

    yield open_one
    for engine in engines:
        engine.close()


@pytest.fixture
def alone(model, tiny_tokenizer, prompts):
    """Each reply as the plain engine writes it."""
    engine = Engine(model, tiny_tokenizer, (), quick=False)
    return [list(engine.stream(*asked))[-1].text for asked in zip(prompts, SETTINGS, strict=True)]


class Readers:
    """Threads that read one reply each."""

    def __init__(self, engine):
        self.engine, self.threads, self.pieces, self.errors = engine, {}, {}, {}

    def start(self, name, *asked, **options):
        self.threads[name] = threading.Thread(target=self._read, args=(name, asked, options), daemon=True)
        self.threads[name].start()

    def _read(self, name, asked, options):
        self.pieces[name] = []
        try:
            for piece in self.engine.stream(*asked, **options):
                self.pieces[name].append(piece)
        except (RuntimeError, LookupError, ValueError) as error:
            self.errors[name] = error

    def join(self):
        waited = set()
        while late := [thread for thread in list(self.threads.values()) if thread not in waited]:
            for thread in late:
                thread.join(60)
                assert not thread.is_alive()
            waited.update(late)
        return {name: pieces[-1] for name, pieces in self.pieces.items() if pieces}


class Watch:
    """Sees every forward pass of a model, in the engine's thread: a prompt's part is wide, a step is one token wide.

    Attributes:
        steps: rows of each step so far.
    """

    def __init__(self, model, in_step=lambda number: None, in_prompt=lambda ids: None):
        self.steps, self.in_step, self.in_prompt = [], in_step, in_prompt
        model.get_input_embeddings().register_forward_pre_hook(self._look)

    def _look(self, module, args):
        if threading.current_thread().name != "replies":
            return
        (ids,) = args
        if ids.shape[1] > 1:
            self.in_prompt(ids[0].tolist())
        else:
            self.steps.append(len(ids))
            self.in_step(len(self.steps))


def wait_until(true, seconds=20):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@EVERYWHERE
@pytest.mark.parametrize("seats", [1, 2, 5, 16])
def test_five_readers_at_once_read_what_they_read_alone(model, tiny_tokenizer, prompts, alone, opened, seats):
    readers = Readers(opened(model, tiny_tokenizer, (), CONTEXT, seats))
    for i, asked in enumerate(zip(prompts, SETTINGS, strict=True)):
        readers.start(i, *asked)
    ends = readers.join()
    assert [ends[i].text for i in range(5)] == alone
    assert [ends[i].tokens for i in range(5)] == [sampling.max_new_tokens for sampling in SETTINGS]
    for i, sampling in enumerate(SETTINGS):
        pieces = readers.pieces[i]
        assert [piece.tokens for piece in pieces] == [*range(1, sampling.max_new_tokens + 1)]
        assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]


def test_who_comes_while_others_read_joins_them(model, tiny_tokenizer, prompts, alone, opened, monkeypatch):
    monkeypatch.setattr(batching, "CHUNK", 100)

    def second_comes(number):
        if number == 5:
            readers.start("second", prompts[3], SETTINGS[3])  # a prompt of several parts
            wait_until(lambda: not engine._inbox.empty())

    parts = []
    watch = Watch(model, second_comes, lambda ids: parts.append((len(ids), len(watch.steps))))
    engine = opened(model, tiny_tokenizer, (), CONTEXT, 4)
    readers = Readers(engine)
    readers.start("first", prompts[2], SETTINGS[2])
    ends = readers.join()
    assert (ends["first"].text, ends["second"].text) == (alone[2], alone[3])
    assert [part for part in parts if part[1] > 0] == [(100, 5), (100, 6), (99, 7)]  # the first writes on between
    assert watch.steps[:7] == [1] * 7
    assert watch.steps[7:37] == [2] * 30


def test_a_stop_gives_the_seat_to_the_next_within_one_token(model, tiny_tokenizer, prompts, alone, opened):
    stop = threading.Event()
    watch = Watch(model, lambda number: stop.set() if number == 7 else None)
    engine = opened(model, tiny_tokenizer, (), CONTEXT, 1)
    readers = Readers(engine)
    readers.start("stopped", prompts[0], Sampling(300, 0.0, 1.0, 1.0), stop)
    wait_until(lambda: watch.steps)
    readers.start("next", prompts[1], SETTINGS[1])
    ends = readers.join()
    assert ends["stopped"].finish_reason == "stopped"
    assert ends["stopped"].tokens <= 7
    assert ends["next"].text == alone[1]
    # Seven steps of the first, nine of the next, and one that was under way when the last token was told.
    assert len(watch.steps) <= 7 + 9 + 1


def test_a_stop_of_one_leaves_the_others_as_they_are(model, tiny_tokenizer, prompts, alone, opened):
    stop = threading.Event()
    Watch(model, lambda number: stop.set() if number == 12 else None)
    readers = Readers(opened(model, tiny_tokenizer, (), CONTEXT, 4))
    readers.start("stopped", prompts[0], Sampling(300, 0.0, 1.0, 1.0), stop)
    for i in (2, 3, 4):
        readers.start(i, prompts[i], SETTINGS[i])
    ends = readers.join()
    assert ends["stopped"].finish_reason == "stopped"
    assert [ends[i].text for i in (2, 3, 4)] == [alone[i] for i in (2, 3, 4)]


def test_a_reader_who_leaves_gives_the_seat_back(model, tiny_tokenizer, prompts, alone, opened):
    watch = Watch(model)
    engine = opened(model, tiny_tokenizer, (), CONTEXT, 1)
    stream = engine.stream(prompts[0], Sampling(400, 0.0, 1.0, 1.0))
    next(stream)
    stream.close()
    *_, last = engine.stream(prompts[1], SETTINGS[1])
    assert last.text == alone[1]
    assert len(watch.steps) < 400
    wait_until(lambda: not engine._written)


def test_one_who_stops_while_waiting_is_told_so(model, tiny_tokenizer, prompts, opened):
    engine = opened(model, tiny_tokenizer, (), CONTEXT, 1)
    first = engine.stream(prompts[0], Sampling(400, 0.0, 1.0, 1.0))
    next(first)
    stop = threading.Event()
    stop.set()
    (only,) = engine.stream(prompts[1], SETTINGS[1], stop)
    assert (only.text, only.tokens, only.finish_reason) == ("", 0, "stopped")
    first.close()


@EVERYWHERE
def test_an_end_token_ends_its_own_reply_only(model, tiny_tokenizer, prompts, opened):
    plain = Engine(model, tiny_tokenizer, (), quick=False)
    seen = [piece.text for piece in plain.stream(prompts[0], SETTINGS[0])]
    drawn = []

    class Noting:
        """The table, remembering the tokens that were asked for."""

        def __getitem__(self, token):
            drawn.append(token)
            return table[token]

    table, plain._table = plain._table, Noting()
    list(plain.stream(prompts[0], SETTINGS[0]))
    end = drawn[9]
    expected = list(Engine(model, tiny_tokenizer, [end], quick=False).stream(prompts[0], SETTINGS[0]))
    assert expected == list(opened(model, tiny_tokenizer, [end], CONTEXT, 2).stream(prompts[0], SETTINGS[0]))
    assert expected[-1].finish_reason == "stop"
    assert expected[-1].tokens <= 9 < len(seen)


def test_a_prompt_that_cannot_be_read_fails_alone(model, tiny_tokenizer, prompts, alone, opened):
    def fail(ids):
        if ids[:20] == prompts[3][:20]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    watch = Watch(model, in_prompt=fail)
    readers = Readers(opened(model, tiny_tokenizer, (), CONTEXT, 3))
    for i, asked in enumerate(zip(prompts, SETTINGS, strict=True)):
        readers.start(i, *asked)
    ends = readers.join()
    assert isinstance(readers.errors.pop(3), torch.OutOfMemoryError)
    assert readers.errors == {}
    assert [ends[i].text for i in (0, 1, 2, 4)] == [alone[i] for i in (0, 1, 2, 4)]
    watch.in_prompt = lambda ids: None
    assert list(readers.engine.stream(prompts[3], SETTINGS[3]))[-1].text == alone[3]


def test_an_error_in_a_step_reaches_those_in_it_and_the_engine_goes_on(model, tiny_tokenizer, prompts, alone, opened):
    def fail(number):
        if number == 1:
            wait_until(lambda: len(engine._written) + len(engine._waiting) + engine._inbox.qsize() == 3)
        if number == 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    watch = Watch(model, fail)
    engine = opened(model, tiny_tokenizer, (), CONTEXT, 2)
    readers = Readers(engine)
    for i, asked in enumerate(zip(prompts[:3], SETTINGS, strict=False)):
        readers.start(i, *asked)
    ends = readers.join()
    assert watch.steps[7] == len(readers.errors) == 2
    assert all(isinstance(error, torch.OutOfMemoryError) for error in readers.errors.values())
    (unhurt,) = {0, 1, 2} - set(readers.errors)
    assert ends[unhurt].text == alone[unhurt]
    assert list(engine.stream(prompts[4], SETTINGS[4]))[-1].text == alone[4]


@EVERYWHERE
def test_numbers_that_broke_in_a_row_do_not_reach_its_next_reader(model, tiny_tokenizer, prompts, alone, opened):
    engine = opened(model, tiny_tokenizer, (), CONTEXT, 1)
    with torch.inference_mode():
        for part in engine._rows._parts():
            part.fill_(float("nan"))
    assert list(engine.stream(prompts[0], SETTINGS[0]))[-1].text == alone[0]


@EVERYWHERE
def test_base_and_tuned_side_by_side(model, tiny_tokenizer, prompts, alone, opened):
    targets = ["q_proj", "v_proj", "down_proj"]
    tuned_model = get_peft_model(model, LoraConfig(r=4, target_modules=targets)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in tuned_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    plain = Engine(tuned_model, tiny_tokenizer, (), quick=False)
    tuned = [list(plain.stream(*asked))[-1].text for asked in zip(prompts[:3], SETTINGS, strict=False)]
    readers = Readers(opened(tuned_model, tiny_tokenizer, (), CONTEXT, 6))
    for i in range(3):
        readers.start(("base", i), prompts[i], SETTINGS[i], base=True)
        readers.start(("tuned", i), prompts[i], SETTINGS[i])
    ends = readers.join()
    assert [ends["base", i].text for i in range(3)] == alone[:3]
    assert [ends["tuned", i].text for i in range(3)] == tuned
    assert all(one != other for one, other in zip(tuned, alone, strict=False))


@EVERYWHERE
def test_a_model_with_windows_sees_through_them_as_generate_does(place, tiny_gemma, tiny_tokenizer, prompts, opened):
    model = tiny_gemma.to(place)
    plain = Engine(model, tiny_tokenizer, (), quick=False)
    expected = [list(plain.stream(*asked))[-1].text for asked in zip(prompts, SETTINGS, strict=True)]
    readers = Readers(opened(model, tiny_tokenizer, (), CONTEXT, 3))
    for i, asked in enumerate(zip(prompts, SETTINGS, strict=True)):
        readers.start(i, *asked)
    ends = readers.join()
    assert [ends[i].text for i in range(5)] == expected


@EVERYWHERE
def test_a_reply_ends_where_the_context_ends(model, tiny_tokenizer, prompts, opened):
    engine = opened(model, tiny_tokenizer, (), 320, 2)
    *_, last = engine.stream(prompts[3], Sampling(100, 0.0, 1.0, 1.0))
    assert (last.tokens, last.finish_reason) == (20, "length")
    plain = Engine(model, tiny_tokenizer, (), quick=False)
    *_, expected = plain.stream(prompts[3], Sampling(20, 0.0, 1.0, 1.0))
    assert last.text == expected.text
    with pytest.raises(ValueError, match="320"):
        next(engine.stream([5] * 320, SETTINGS[0]))


@EVERYWHERE
@pytest.mark.parametrize(("ids", "error"), [([], ValueError), ([10**6], IndexError), ([-1], IndexError)])
def test_a_prompt_that_would_break_the_device_is_refused_before(model, tiny_tokenizer, opened, ids, error):
    with pytest.raises(error):
        next(opened(model, tiny_tokenizer, (), CONTEXT, 1).stream(ids, SETTINGS[0]))


@EVERYWHERE
def test_a_seed_gives_the_same_reply_in_any_company(model, tiny_tokenizer, prompts, opened):
    engine = opened(model, tiny_tokenizer, (), CONTEXT, 4)
    seeded = Sampling(30, 1.0, 0.95, 1.1, seed=11)
    alone = list(engine.stream(prompts[0], seeded))[-1].text
    readers = Readers(engine)
    for i in range(1, 4):
        readers.start(i, prompts[i], Sampling(60, 1.3, 1.0, 1.0))
    readers.start("seeded", prompts[0], seeded)
    assert readers.join()["seeded"].text == alone
    assert list(engine.stream(prompts[0], Sampling(30, 1.0, 0.95, 1.1)))[-1].text != alone


@EVERYWHERE
def test_a_closed_engine_tells_all_its_readers(model, tiny_tokenizer, prompts):
    engine = BatchEngine(model, tiny_tokenizer, (), CONTEXT, 1)
    readers = Readers(engine)
    for i in range(3):
        readers.start(i, prompts[i], Sampling(400, 0.0, 1.0, 1.0))
    wait_until(lambda: engine._written)
    engine.close()
    readers.join()
    assert all("closed" in str(error) for error in readers.errors.values())
    assert len(readers.errors) >= 2  # all whose reply had not ended by then
    with pytest.raises(RuntimeError, match="closed"):
        next(engine.stream(prompts[0], SETTINGS[0]))


@EVERYWHERE
def test_many_readers_with_random_stops_leave_nothing_behind(model, tiny_tokenizer, prompts, opened):
    engine = opened(model, tiny_tokenizer, (), CONTEXT, 4)
    readers = Readers(engine)
    stops: queue.SimpleQueue = queue.SimpleQueue()
    for i in range(40):
        stop = threading.Event()
        readers.start(i, prompts[i % 5], Sampling(20 + i, 0.8, 0.9, 1.0, seed=i), stop)
        if i % 3 == 0:
            stops.put(stop)
            threading.Timer(0.01 * (i % 7), stops.get().set).start()
    ends = readers.join()
    assert readers.errors == {}
    assert len(ends) == 40
    assert {end.finish_reason for end in ends.values()} <= {"length", "stopped"}
    wait_until(lambda: not engine._written and not engine._waiting)


def test_an_adapter_that_no_switch_can_turn_is_refused(model, tiny_tokenizer):
    other = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], use_dora=True)).eval()
    with pytest.raises(ValueError, match="adapter"):
        BatchEngine(other, tiny_tokenizer, (), CONTEXT, 1)
    assert isinstance(open_engine(other, tiny_tokenizer, (), CONTEXT), Engine)


def test_seats_by_memory(model):
    """A row: 2 layers x (keys + values) x 2 heads x 16 numbers x 4 bytes x 4096 positions = 2 MiB."""
    row, working = 2 << 20, 2 << 30
    assert room_for(model, 4096, working) == (0, False)
    assert room_for(model, 4096, working + 2 * row) == (1, False)
    assert room_for(model, 4096, working + 5 * row + 7) == (4, False)
    assert room_for(model, 4096, working + 99 * row) == (16, False)


@EVERYWHERE
def test_four_bit_weights_say_the_same_when_they_are_unpacked(place, tiny, tiny_tokenizer, prompts, opened):
    model = load_model(tiny, ModelConfig(dtype="float32", load_in_4bit=True), {"": place})
    plain = Engine(model, tiny_tokenizer, (), quick=False)
    expected = [list(plain.stream(*asked))[-1].text for asked in zip(prompts, SETTINGS, strict=True)]
    needed = 2 * 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)  # 16 bit, 2 layers: q and o, k and v, the three others
    assert room_for(model, 4096, (2 << 30) + (17 << 21) + needed - 1) == (16, False)
    assert room_for(model, 4096, (2 << 30) + (17 << 21) + needed) == (16, True)
    for unpacked in (False, True):
        engine = opened(model, tiny_tokenizer, (), CONTEXT, 2, unpacked)
        assert [list(engine.stream(*asked))[-1].text for asked in zip(prompts, SETTINGS, strict=True)] == expected
        assert len(packed_layers(engine._rows._body)) == (0 if unpacked else 14)
    assert len(packed_layers(model)) == 14


def test_the_model_itself_stays_as_it_was(model, tiny_tokenizer, prompts, alone, opened):
    before = model.config._attn_implementation
    opened(model, tiny_tokenizer, (), CONTEXT, 1)
    assert model.config._attn_implementation == before
    *_, last = Engine(model, tiny_tokenizer, ()).stream(prompts[0], SETTINGS[0])
    assert last.text == alone[0]
