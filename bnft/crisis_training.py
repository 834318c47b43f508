"""Fits the adapter of bnft/crisis_reader.py to the written examples.

    python -m bnft.crisis_training                          a GPU: two minutes; two CPU cores: hours
    python -m bnft.crisis_training --fold 0 --output F.npz  leaves a fifth out and writes its log-odds, for the report

Knows nothing about the chat, or about how the answers are weighed against other evidence.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from bnft.crisis_classifier import Example, read_examples
from bnft.crisis_reader import ADAPTER, ALPHA, RANK, Question, embedded_folder, log_odds
from bnft.safety import EXAMPLES

FOLDS, BLOCK = 5, 8  # neighbouring examples, which often share a scene, stay in one fold
BATCH, RATE, WARM_UP, DROPOUT, SMOOTHING = 64, 5e-4, 0.1, 0.05, 0.05
_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def fold_of(place: int) -> int:
    """The fold of an example by its place among the fit examples."""
    return place // BLOCK % FOLDS


def fingerprint(examples: Sequence[Example]) -> str:
    return sha256("\n".join(f"{e.label} {e.kind} {e.text}" for e in examples).encode()).hexdigest()[:16]


class ReaderTraining:
    """A question's layers with a fresh adapter, and the head that reads answers.

    Args:
        device: with "cuda" products are made in bfloat16.
    """

    def __init__(self, question: Question, examples: Sequence[Example], device: str, seed: int = 1):
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        self.question, self.device, self.seed = question, device, seed
        self.topics = sorted({f"{e.label} {e.kind}" for e in examples})
        adapter = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=_LAYERS)
        self.question.layers = get_peft_model(question.layers, adapter).to(device)
        self.head = torch.nn.Linear(question.layers.config.hidden_size, len(self.topics)).to(device)
        torch.nn.init.normal_(self.head.weight, std=0.01)
        self.rows = [question.tokens(e.text) for e in examples]
        self.targets = torch.tensor([self.topics.index(f"{e.label} {e.kind}") for e in examples], device=device)
        self.crisis = torch.tensor([float(e.label in ("self", "other")) for e in examples], device=device)

    def _answers(self, places: Sequence[int]) -> torch.Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            return self.question.answers([self.rows[i] for i in places], self.head).float()

    def fit(self, places: Sequence[int], epochs: int) -> list[float]:
        """The loss of every step: which topic, and whether it is a crisis."""
        order, losses = np.random.default_rng(self.seed), []
        adapter = [p for p in self.question.layers.parameters() if p.requires_grad]
        groups = [{"params": adapter, "lr": RATE}, {"params": self.head.parameters(), "lr": 2 * RATE}]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        steps = epochs * max(1, len(places) // BATCH)
        rate = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda k: min(1.0, (k + 1) / (steps * WARM_UP)) * (steps - k) / steps
        )
        self.question.layers.train()
        for _ in range(epochs):
            shuffled = order.permutation(places)
            for batch in np.array_split(shuffled, max(1, len(places) // BATCH)):
                answers = self._answers(batch)
                loss = cross_entropy(answers, self.targets[batch], label_smoothing=SMOOTHING)
                loss = loss + binary_cross_entropy_with_logits(log_odds(answers, self.topics), self.crisis[batch])
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_([*adapter, *self.head.parameters()], 1.0)
                optimizer.step()
                rate.step()
                losses.append(loss.item())
        return losses

    def log_odds(self, places: Sequence[int]) -> np.ndarray:
        self.question.layers.eval()
        with torch.inference_mode():
            parts = [log_odds(self._answers(part), self.topics).cpu() for part in np.array_split(places, len(places))]
        return torch.cat(parts).numpy()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The adapter as `crisis_reader.load` reads it: LAYER.down, LAYER.up, and the head."""
        found = {"head.weight": self.head.weight, "head.bias": self.head.bias}
        for name, layer in self.question.layers.base_model.model.named_modules():
            for part, its in (("down", "lora_A"), ("up", "lora_B")):
                if hasattr(layer, its):
                    found[f"{name}.{part}"] = getattr(layer, its)["default"].weight
        return {name: tensor.detach().half().cpu().contiguous() for name, tensor in found.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fold", type=int, choices=range(FOLDS), help="leave this fold out, and write its log-odds")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ADAPTER)
    args = parser.parse_args(argv)
    from safetensors.torch import save_file

    examples = read_examples(EXAMPLES, "fit")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    training = ReaderTraining(Question(embedded_folder()), examples, device)
    places = np.array([i for i in range(len(examples)) if fold_of(i) != args.fold])
    losses = training.fit(places, args.epochs)
    print(
        f"{len(places)} examples, {len(losses)} steps on {device}: loss {losses[0]:.2f} -> {np.mean(losses[-20:]):.2f}"
    )
    if args.fold is None:
        notes = {"topics": json.dumps(training.topics), "examples": fingerprint(examples)}
        save_file(training.tensors(), args.output, notes)
    else:
        left_out = [i for i in range(len(examples)) if fold_of(i) == args.fold]
        np.savez(args.output, places=left_out, log_odds=training.log_odds(left_out), examples=fingerprint(examples))
    return 0


if __name__ == "__main__":
    sys.exit(main())
