"""The evaluator against independent computations of the same numbers."""

import copy
import math

import pytest
import torch

from bnft.config import resolve
from bnft.errors import UserError
from bnft.evaluation import Evaluator, choose_rows, rows_of
from bnft.metrics import score_likelihood
from bnft.training import LLAMAFineTuner


@pytest.fixture(scope="module")
def config():
    return resolve("smoke", {"model.load_in_4bit": "false"})[0]


@pytest.fixture
def evaluator(tiny_model, tiny_tokenizer, config):
    return Evaluator(tiny_model, tiny_tokenizer, config)


def test_every_reply_is_a_row_with_what_was_said_before(conversations):
    rows = rows_of(conversations)
    assert len(rows) == 8 + 2 + 2 + 3 + 2  # eight singles, talks of two, two, three and two turns
    last = rows[-1]
    assert [m["role"] for m in last.messages] == ["user", "assistant", "user"]
    assert (last.question, last.reference) == ("hmm", "আজ একটু বিশ্রাম নিন।")
    assert len({row.id for row in rows}) == len(rows)


def test_a_sample_is_seeded_and_in_order(conversations):
    rows = rows_of(conversations)
    sample = choose_rows(rows, 5, seed=1)
    assert sample == choose_rows(rows, 5, seed=1)
    assert sample != choose_rows(rows, 5, seed=2)
    assert sample == sorted(sample, key=rows.index)
    assert choose_rows(rows, "all", 1) == choose_rows(rows, 999, 1) == rows


def test_likelihood_is_lm_evaluation_harness_definition(evaluator, tiny_model, tiny_tokenizer, config, conversations):
    """loglikelihood(context, continuation) of lm_eval/models/huggingface.py: context and continuation are tokenised
    together and cut where the context ends, one plain forward pass a row, the continuation's log-softmax values summed;
    then bits_per_byte of lm_eval/api/metrics.py. In float64, and with none of this program's code but the rows.
    """
    exact = copy.deepcopy(tiny_model).double()
    total = tokens = size = characters = 0
    for row in rows_of(conversations):
        messages = [{"role": "system", "content": config.data.system_prompt}, *row.messages]
        text = tiny_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        context = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = tiny_tokenizer(text + row.reference, add_special_tokens=False)["input_ids"]
        continuation = whole[len(context) :]
        assert whole[: len(context)] == context
        with torch.no_grad():
            logits = exact(torch.tensor([whole])).logits[0]
        assert logits.dtype == torch.float64
        log_p = logits.log_softmax(-1)[len(context) - 1 : -1]
        total -= log_p.gather(1, torch.tensor(continuation)[:, None]).sum().item()
        tokens += len(continuation)
        size += len(row.reference.encode("utf-8"))
        characters += len(row.reference)
    scores = score_likelihood(evaluator.likelihoods(conversations), bootstrap=0)
    assert scores["bits_per_byte"].value == pytest.approx(total / size / math.log(2), rel=1e-6)
    assert scores["token_perplexity"].value == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert scores["char_perplexity"].value == pytest.approx(math.exp(total / characters), rel=1e-5)


def test_batch_size_does_not_change_likelihoods(tiny_model, tiny_tokenizer, config, conversations):
    one, eight = (
        Evaluator(tiny_model, tiny_tokenizer, config.replace("eval.batch_size", size)).likelihoods(conversations)
        for size in (1, 32)
    )
    assert [r.nats for r in one] == pytest.approx([r.nats for r in eight], rel=1e-5)
    assert [(r.tokens, r.utf8_bytes) for r in one] == [(r.tokens, r.utf8_bytes) for r in eight]


def test_an_untrained_adapter_equals_its_base_and_a_changed_one_does_not(tiny, config, conversations):
    tuner = LLAMAFineTuner(config=config)
    evaluator = Evaluator(tuner.model, tuner.tokenizer, config)
    base, tuned, comparison = evaluator.evaluate_pair(conversations)
    assert [r.text for r in base.replies] == [r.text for r in tuned.replies]
    assert comparison["bits_per_byte"].difference == 0
    with torch.no_grad():
        for name, parameter in tuner.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
    base_again, _, comparison = evaluator.evaluate_pair(conversations)
    assert base_again.scores["bits_per_byte"].value == base.scores["bits_per_byte"].value
    assert comparison["bits_per_byte"].difference != 0


def test_an_empty_split_is_an_error(evaluator):
    with pytest.raises(UserError, match="test split is empty"):
        evaluator.evaluate([])
