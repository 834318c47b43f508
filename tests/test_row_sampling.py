"""Rows with their own settings each get the token that `generate`'s processors would have given them."""

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TopPLogitsWarper

from bnft.row_sampling import RowSampler
from bnft.streaming import Sampling

SAID = torch.tensor([3, 5, 8, 13])  # by the reply so far
DRAWS = 4000


def made_up_scores(rows, vocabulary=60, seed=0):
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def expected_shares(scores, sampling, said):
    """transformers' own processors, in its order."""
    scores = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(said[None], scores[None].clone())
    return TopPLogitsWarper(sampling.top_p)(None, scores / sampling.temperature)[0].softmax(-1)


@pytest.mark.parametrize(
    ("temperature", "top_p", "penalty"),
    [(0.7, 0.9, 1.0), (1.0, 0.5, 1.3), (1.5, 1.0, 1.0), (0.3, 0.05, 1.0), (2.0, 0.95, 2.0)],
)
def test_tokens_come_as_often_as_their_shares_say(temperature, top_p, penalty):
    """Instead of dice, the numbers 0.5/4000, 1.5/4000, ...: each token comes within one time of its share."""
    sampling = Sampling(1, temperature, top_p, penalty, seed=1)
    sampler = RowSampler(DRAWS, 60, 4, torch.device("cpu"))
    for row in range(DRAWS):
        sampler.open(row, sampling)
    sampler.state[3][:, SAID] = True
    sampler.state[-1][:] = ((torch.arange(DRAWS) + 0.5) / DRAWS)[:, None]
    scores = made_up_scores(1)
    chosen = sampler.choose(scores.repeat(DRAWS, 1), torch.zeros(DRAWS, 1, dtype=torch.long))
    counts = torch.bincount(chosen[:, 0], minlength=60)
    assert (counts - expected_shares(scores[0], sampling, SAID) * DRAWS).abs().max() <= 1.5


def test_each_row_has_its_own_settings():
    scores = made_up_scores(3)
    sampler = RowSampler(3, 60, 4, torch.device("cpu"))
    sampler.open(0, Sampling(1, 0.0, 1.0, 1.0))
    sampler.open(1, Sampling(1, 0.0, 1.0, 5.0))
    sampler.open(2, Sampling(1, 1.0, 1e-6, 1.0))  # a nucleus of one
    sampler.state[3][range(3), scores.argmax(-1)] = True
    chosen = sampler.choose(scores, torch.zeros(3, 1, dtype=torch.long))[:, 0].tolist()
    assert chosen == [int(scores[0].argmax()), int(scores[1].topk(2).indices[1]), int(scores[2].argmax())]


def test_a_chosen_token_counts_as_said():
    scores = torch.tensor([[4.0, 3.0, 1.0]])
    sampler = RowSampler(1, 3, 4, torch.device("cpu"))
    place = torch.zeros(1, 1, dtype=torch.long)
    for _ in range(2):  # the second reply in a row knows nothing of the first
        sampler.open(0, Sampling(4, 0.0, 1.0, 2.0))
        assert [int(sampler.choose(scores, place)) for _ in range(3)] == [0, 1, 0]  # 4; 2 < 3; 2 > 1.5


def test_a_draw_at_the_very_end_stays_in_the_nucleus():
    scores = made_up_scores(1)
    sampling = Sampling(1, 1.0, 0.6, 1.0)
    sampler = RowSampler(1, 60, 4, torch.device("cpu"))
    sampler.open(0, sampling)
    sampler.state[-1][:] = 1.0
    chosen = int(sampler.choose(scores, torch.zeros(1, 1, dtype=torch.long)))
    assert expected_shares(scores[0], sampling, SAID[:0])[chosen] > 0


def test_a_seed_gives_the_same_in_any_row_and_another_seed_another():
    def reply(row, seed):
        sampler = RowSampler(4, 60, 32, torch.device("cpu"))
        sampler.open(row, Sampling(1, 1.5, 1.0, 1.0, seed))
        positions = torch.zeros(4, 1, dtype=torch.long)
        tokens = []
        for step in range(20):
            tokens.append(int(sampler.choose(made_up_scores(1, seed=step).repeat(4, 1), positions + step)[row]))
        return tokens

    assert reply(0, 7) == reply(3, 7) != reply(0, 8)
    assert reply(0, None) != reply(0, None)
