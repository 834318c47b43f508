"""What a small language model reads in a message: the embedded Gemma 3 270M with an adapter for this one question.

Letters and words (bnft/crisis_classifier.py) do not tell who does what to whom; a language model knows a little of
that. The adapter was fitted on the same written examples by bnft/crisis_training.py. Knows nothing about phrases,
thresholds or what is done with an answer.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Lock, Thread

import torch

from bnft.config import REPOSITORY
from bnft.errors import UserError

log = logging.getLogger(__name__)

ADAPTER = REPOSITORY / "data" / "crisis_reader.safetensors"
BEFORE, AFTER = "বার্তা: ", "\nএই মানুষটি কি এখন আত্মহত্যা বা নিজের ক্ষতির বিপদে আছে? উত্তর:"
MOST_TOKENS = 160
RANK, ALPHA = 16, 32
_SCALE = 1 / 8  # of hidden states, which are large, before the answer is read from them


class Question:
    """The embedded model's layers, its table of embeddings, and a text as the input in which it is asked about.

    Attributes:
        layers: hidden states from embeddings, in float32.
    """

    def __init__(self, folder: Path):
        from safetensors import safe_open
        from transformers import AutoConfig, AutoModel
        from transformers.initialization import no_init_weights

        from bnft.models import ModelSource, load_tokenizer

        self._tokenizer = load_tokenizer(ModelSource("embedded", str(folder)))
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        self._scale = config.hidden_size**0.5
        config.vocab_size, config.pad_token_id = 1, None  # the table is left in its file: a message needs few rows
        with no_init_weights():
            self.layers = AutoModel.from_config(config, dtype=torch.float32)
        weights, prefix = safe_open(folder / "model.safetensors", framework="pt"), "model."
        self._table = weights.get_tensor(f"{prefix}embed_tokens.weight")
        names = [name for name in weights.keys() if name.startswith((f"{prefix}layers.", f"{prefix}norm."))]  # noqa: SIM118
        state = {name.removeprefix(prefix): weights.get_tensor(name).float() for name in names}
        missing, _ = self.layers.load_state_dict(state, strict=False)
        if missing != ["embed_tokens.weight"]:
            raise ValueError(f"the embedded model lacks {missing}")

    def tokens(self, text: str) -> list[int]:
        before, own, after = (
            self._tokenizer(part, add_special_tokens=False).input_ids for part in (BEFORE, text, AFTER)
        )
        return [self._tokenizer.bos_token_id, *before, *own[:MOST_TOKENS], *after]

    def embedded(self, rows: Sequence[Sequence[int]], device="cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of rows of tokens, (rows, length, columns), padded on the right, and the mask."""
        length = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        return self._table[ids].to(device).float() * self._scale, mask.to(device)

    def answers(self, rows: Sequence[Sequence[int]], head: torch.nn.Linear) -> torch.Tensor:
        """One row of topics' scores a text, read where its question ends."""
        inputs, mask = self.embedded(rows, head.weight.device)
        hidden = self.layers(inputs_embeds=inputs, attention_mask=mask).last_hidden_state.float()
        return head(hidden[torch.arange(len(rows)), mask.sum(1) - 1] * _SCALE)


def log_odds(answers: torch.Tensor, topics: Sequence[str]) -> torch.Tensor:
    """Of a crisis against everything else; topics are "label kind"."""
    crisis = torch.tensor([topic.split()[0] in ("self", "other") for topic in topics], device=answers.device)
    return answers[:, crisis].logsumexp(1) - answers[:, ~crisis].logsumexp(1)


class CrisisReader:
    """Log-odds of a crisis for one text at a time. It is loaded aside by `prepare`; whoever asks before that waits.

    Args:
        folder: gives the embedded model's folder.
    """

    def __init__(self, folder: Callable[[], Path] | None = None, adapter: Path = ADAPTER):
        self._folder, self._adapter = folder or embedded_folder, adapter
        self._lock, self._parts = Lock(), None

    def prepare(self) -> None:
        """Begins to load, once: seconds, and half a minute where the embedded model was never used before."""
        with self._lock:
            if self._parts is None:
                self._parts = Future()
                Thread(target=self._open, daemon=True).start()

    def _open(self) -> None:
        from safetensors import SafetensorError

        try:
            self._parts.set_result(load(self._folder(), self._adapter))
        except (UserError, OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
            # The classifier alone takes more for a crisis and misses no more: the chat goes on.
            log.warning("crisis detection goes on without its reader: %s", error)
            self._parts.set_result(None)
        except BaseException as error:  # whoever waits for the reader is told, and never waits for ever
            self._parts.set_exception(error)
            raise

    def __call__(self, text: str) -> float | None:
        """None where the reader could not be loaded."""
        self.prepare()
        parts = self._parts.result()
        if parts is None:
            return None
        question, head, topics = parts
        with torch.inference_mode():
            return float(log_odds(question.answers([question.tokens(text)], head), topics))


def load(folder: Path, adapter: Path) -> tuple[Question, torch.nn.Linear, list[str]]:
    """The question with the adapter added into its layers, the head that reads the answer, and its topics."""
    from safetensors import safe_open

    with safe_open(adapter, framework="pt") as file, torch.no_grad():
        question = Question(folder)
        topics = json.loads(file.metadata()["topics"])
        for name in file.keys():  # noqa: SIM118
            layer, _, part = name.rpartition(".")
            if part == "up":
                change = file.get_tensor(name).float() @ file.get_tensor(f"{layer}.down").float()
                question.layers.get_submodule(layer).weight += change * (ALPHA / RANK)
        weight, bias = file.get_tensor("head.weight").float(), file.get_tensor("head.bias").float()
    head = torch.nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": bias})
    question.layers.eval()
    return question, head, topics


def embedded_folder() -> Path:
    from bnft.models import find_model

    return Path(find_model("embedded", announce=log.info).base)
