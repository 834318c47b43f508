"""Many rows at a time against one at a time: the same replies, however many seats, groups, refills and full GPUs."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from bnft.batch_generation import BatchWriter, Job, has_rows
from bnft.errors import UserError
from bnft.generation import generate_all
from bnft.gpu_memory import free_bytes, in_batches, read_bytes
from bnft.models import load_model
from bnft.rows import bytes_per_row
from bnft.settings import ModelConfig

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="GPU")]
LIMIT = 20


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=GPU)])
def model(request, tiny_model):
    """On a GPU steps are recorded."""
    return tiny_model.to(request.param)


@pytest.fixture(scope="module")
def prompts():
    """Of 1 to 90 tokens, most of them short, as talks are."""
    generator = torch.Generator().manual_seed(3)
    lengths = [1, 2, 17, 90, 61, *torch.randint(3, 24, (18,), generator=generator).tolist()]
    return [torch.randint(5, 2000, (length,), generator=generator).tolist() for length in lengths]


def ends_that_occur(model, prompts):
    """Two tokens that replies hold, so that some of them end by themselves."""
    made = write(model, prompts[:6], [])
    return [made[0][0][3], made[4][0][9]]


@torch.inference_mode()
def plain(model, prompts, ends, penalty=1.0, limit=LIMIT):
    """Tokens of each reply by the definition: after a pass over the whole text, the best one."""
    replies = []
    for prompt in prompts:
        reply = []
        while len(reply) < limit:
            scores = model(torch.tensor([[*prompt, *reply]], device=model.device)).logits[0, -1].float()
            seen = torch.tensor(sorted(set(reply)), dtype=torch.long, device=model.device)
            scores[seen] = torch.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
            token = int(scores.argmax())
            if token in ends:
                break
            reply.append(token)
        replies.append((reply, len(reply) < limit))
    return replies


def write(model, prompts, ends, penalty=1.0, limit=LIMIT, **options):
    """(tokens, ended) of each reply; every one must be told once."""
    told = {}

    def ready(number, tokens, ended, seconds):
        assert number not in told
        assert seconds > 0
        told[number] = tokens, ended

    BatchWriter(model, **{"announce": lambda text: None} | options).write(
        Job(prompts, frozenset(ends), limit, penalty, ready)
    )
    return [told[number] for number in range(len(prompts))]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_replies_do_not_depend_on_the_number_of_seats(model, prompts, penalty):
    ends = ends_that_occur(model, prompts)
    expected = plain(model, prompts, ends, penalty)
    assert 0 < sum(ended for _, ended in expected) < len(prompts)
    for seats in (1, 3, 16, 64):
        assert write(model, prompts, ends, penalty, seats=seats) == expected, seats


def test_plain_batches_and_rows_write_the_same_texts(tiny_model, tiny_tokenizer, prompts):
    ends = ends_that_occur(tiny_model, prompts)
    made = generate_all(tiny_model, tiny_tokenizer, prompts, ends, LIMIT, batch_size=5)
    for reply, (tokens, ended) in zip(made, write(tiny_model, prompts, ends, seats=7), strict=True):
        assert (reply.tokens, reply.ended) == (len(tokens), ended)
        assert tiny_tokenizer.decode(tokens, skip_special_tokens=True).strip().startswith(reply.text)


def test_shorter_prompts_get_more_rows(model, prompts, monkeypatch):
    """Memory for two rows of the longest prompt: its group takes two, the others' more."""
    from bnft import batch_generation

    sizes = []
    made = batch_generation.BatchRows

    def noting(body, head, switch, cap, seats, context, *more):
        sizes.append((seats, context))
        return made(body, head, switch, cap, seats, context, *more)

    monkeypatch.setattr(batch_generation, "BatchRows", noting)
    position = bytes_per_row(model.get_decoder(), 1)
    assert write(model, prompts, [], memory=2 * 128 * position) == plain(model, prompts, [])
    assert sizes == [(2, 128), (4, 64)]  # 90 + 20 and 61 + 20 tokens; all others are within 64


@pytest.mark.parametrize("on", [True, False])
def test_the_adapter_is_on_or_off_as_the_model_has_it(model, prompts, on):
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"])).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    other = plain(adapted, prompts[:8], [])
    with adapted.disable_adapter():
        base = plain(adapted, prompts[:8], [])
        off = write(adapted, prompts[:8], [], seats=3)
    assert base != other
    assert (write(adapted, prompts[:8], [], seats=3) if on else off) == (other if on else base)


@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=GPU)])
def test_two_kinds_of_attention(tiny_gemma, prompts, place):
    gemma = tiny_gemma.to(place)
    assert write(gemma, prompts[:9], [], seats=4) == plain(gemma, prompts[:9], [])


class FullCard:
    """A real forward pass that runs out of memory with more rows than fit, a given number of passes after the start."""

    def __init__(self, model, fits, after=0):
        self.fits, self.after, self.failed = fits, after, 0
        model.get_input_embeddings().register_forward_pre_hook(self._look)

    def _look(self, module, args):
        self.after -= 1
        if self.after < 0 and args[0].shape[0] > self.fits:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("after", [0, 1, 9, 30])
def test_a_full_gpu_halves_the_rows_and_loses_nothing(tiny_model, prompts, after):
    ends, prompts = ends_that_occur(tiny_model, prompts), prompts[5:]
    expected = plain(tiny_model, prompts, ends)
    card, told = FullCard(tiny_model, 3, after), []
    assert write(tiny_model, prompts, ends, seats=8, announce=told.append) == expected
    assert card.failed == 2
    full = [text for text in told if "full" in text]
    assert full == [
        "the GPU's memory is full with 8 rows at a time; going on with 4",
        "the GPU's memory is full with 4 rows at a time; going on with 2",
    ]


def test_a_row_that_never_fits_is_told_with_what_to_do(tiny_model, prompts):
    FullCard(tiny_model, 0, after=1)  # the first pass measures a row
    with pytest.raises(UserError, match=r"one row alone has no room on the GPU: CUDA out of memory") as caught:
        write(tiny_model, prompts, [], seats=8)
    assert "--generation.max_new_tokens" in caught.value.hint


def test_unpacked_weights_are_given_up_first(tiny, prompts):
    packed = load_model(tiny, ModelConfig(dtype="float32", load_in_4bit=True), {"": "cpu"})
    prompts = prompts[5:11]
    expected = write(packed, prompts, [], seats=4, packed=True)
    FullCard(packed, 3, after=1)  # the first pass measures a row
    told = []
    assert write(packed, prompts, [], seats=4, announce=told.append) == expected
    assert [text.split("; ")[-1] for text in told if "full" in text] == [
        "going on with packed weights",
        "going on with 2",
    ]


def test_plain_batches_are_halved_too(tiny_model, tiny_tokenizer, prompts, capsys):
    expected = generate_all(tiny_model, tiny_tokenizer, prompts, [], LIMIT)
    FullCard(tiny_model, 3)
    made = generate_all(tiny_model, tiny_tokenizer, prompts, [], LIMIT, batch_size=8)
    assert [reply.text for reply in made] == [reply.text for reply in expected]
    assert "full with 8 rows at a time; going on with 4" in capsys.readouterr().out


def test_a_batch_costs_its_count_times_its_dearest():
    batches = []
    in_batches([9, 8, 8, 3, 2, 2, 2, 30], batches.append, lambda item: item, 20)
    assert batches == [[9, 8], [8, 3], [2, 2, 2, 30]]


def test_a_model_on_the_cpu_or_in_parts_keeps_plain_batches(tiny_model):
    assert not has_rows(tiny_model)
    tiny_model.get_decoder().layers[1].to("meta")
    assert not has_rows(tiny_model)


def test_bytes_that_a_token_takes(tiny_model):
    """The widest layers have 64 and 128 numbers on their two sides."""
    assert read_bytes(tiny_model) == 16 * (64 + 128)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="GPU")
def test_a_share_of_the_memory_is_kept_to():
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(0.25)
    try:
        assert free_bytes(torch.device("cuda:0")) <= total / 4
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_model_on_one_gpu_writes_by_rows(tiny_model, tiny_tokenizer, prompts, monkeypatch):
    """On a GPU it is the place that decides; here the same way is taken on the CPU."""
    ends = ends_that_occur(tiny_model, prompts)
    expected = generate_all(tiny_model, tiny_tokenizer, prompts, ends, LIMIT)
    monkeypatch.setattr("bnft.batch_generation.has_rows", lambda model: True)
    made = generate_all(tiny_model, tiny_tokenizer, prompts, ends, LIMIT)
    assert [(reply.text, reply.tokens, reply.finish_reason) for reply in made] == [
        (reply.text, reply.tokens, reply.finish_reason) for reply in expected
    ]
