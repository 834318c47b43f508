"""The next tokens of many replies in one go, each chosen by its reply's own settings, without asking the host.

Chance comes in as numbers drawn beforehand, one a position, so a seed gives one reply whoever is written beside it.
Knows nothing about models, caches or threads.
"""

from __future__ import annotations

import torch

from bnft.streaming import Sampling


class RowSampler:
    """Settings and memory of `rows` replies.

    Args:
        vocabulary: number of scores of each row.
        context: number of positions of each row.
    """

    def __init__(self, rows: int, vocabulary: int, context: int, device: torch.device) -> None:
        def column(value: float) -> torch.Tensor:
            return torch.full((rows, 1), value, device=device)

        self._temperature, self._top_p, self._penalty = column(0.0), column(1.0), column(1.0)
        self._seen = torch.zeros(rows, vocabulary, dtype=torch.bool, device=device)
        self._dice = torch.zeros(rows, context, device=device)
        self.state = (self._temperature, self._top_p, self._penalty, self._seen, self._dice)

    def open(self, row: int, sampling: Sampling) -> None:
        """Begins a reply."""
        self._temperature[row] = sampling.temperature
        self._top_p[row] = sampling.top_p
        self._penalty[row] = sampling.repetition_penalty
        self._seen[row] = False
        dice = torch.Generator()
        dice.seed() if sampling.seed is None else dice.manual_seed(sampling.seed)
        self._dice[row] = torch.rand(self._dice.shape[1], generator=dice).to(self._dice.device)

    def choose(self, scores: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Tokens (n, 1) for the first n rows.

        Args:
            scores: (n, vocabulary), float32.
            positions: (n, 1), where in each row the last token stands.
        """
        n = len(scores)
        seen, penalty, temperature = self._seen[:n], self._penalty[:n], self._temperature[:n]
        weakened = torch.where(scores > 0, scores / penalty, scores * penalty)
        scores = torch.where(seen, weakened, scores)
        best = scores.argmax(-1, keepdim=True)
        greedy = temperature == 0
        shares, order = (scores / torch.where(greedy, 1.0, temperature)).softmax(-1).sort(-1, descending=True)
        reached = shares.cumsum(-1)
        nucleus = reached - shares < self._top_p[:n]  # the token that crosses the border is in
        whole = torch.where(nucleus, reached, 0.0).amax(-1, keepdim=True)
        # A number of [0, 1) can become 1 where it is rounded: then the last token of the nucleus is meant.
        target = self._dice[:n].gather(1, positions) * whole
        place = torch.minimum((reached <= target).sum(-1, keepdim=True), nucleus.sum(-1, keepdim=True) - 1)
        chosen = torch.where(greedy, best, order.gather(1, place.clamp_min(0)))
        seen.scatter_(1, chosen, True)
        return chosen
