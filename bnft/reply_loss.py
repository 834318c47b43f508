"""Cross-entropy of the reply tokens, with the output head applied to those tokens alone.

The head of a small model with a large vocabulary costs more than all its layers, and half of a conversation's tokens
carry no loss. TRL has the same idea as a Triton kernel, which a CPU build of PyTorch lacks. Knows nothing about
adapters, data or the training loop's settings.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch

from bnft.errors import UserError
from bnft.prompts import IGNORED

# Tokens whose logits exist at one time: 64 x 262,144 x 4 bytes = 64 MiB for Gemma.
CHUNK = 64
# In a large vocabulary nearly all probabilities are far below this; leaving them out of the gradient (never out of
# the loss) costs 1 % of accuracy there and saves most of a product. The idea is Cut Cross-Entropy's gradient filter,
# https://arxiv.org/abs/2411.09009; below FILTERED_VOCABULARY entries nothing is left out.
NEGLIGIBLE = 3e-6
FILTERED_VOCABULARY = 32_768


class _HeadLogLikelihood(torch.autograd.Function):
    """log softmax(hidden @ weight.T)[target], for a frozen head: the gradient reaches `hidden` only."""

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        wants_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wants_gradient else None
        values = hidden.new_empty(len(targets), dtype=torch.float32)
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            logits = (hidden[part] @ weight.T).float()
            norms = torch.logsumexp(logits, dim=-1, keepdim=True)
            values[part] = (logits.gather(1, targets[part, None]) - norms)[:, 0]
            if wants_gradient:
                gradient[part] = weight[targets[part]] - _expected_row(logits - norms, weight)
        if wants_gradient:
            ctx.save_for_backward(gradient)
        return values

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return upstream[:, None].to(gradient.dtype) * gradient, None, None


def _expected_row(log_probabilities, weight):
    """Mean row of the head under each token's distribution: the softmax part of the gradient."""
    if weight.shape[0] > FILTERED_VOCABULARY:
        kept = (log_probabilities.amax(0) > torch.tensor(NEGLIGIBLE).log()).nonzero()[:, 0]
        # Renormalised: the rows of a head share a large mean, which only cancels when the weights sum to one.
        log_probabilities, weight = log_probabilities[:, kept].log_softmax(-1), weight[kept]
    return log_probabilities.exp().to(weight.dtype) @ weight


@contextmanager
def _no_head(model):
    """While open, the model returns its last hidden states in place of logits."""
    head = model.get_output_embeddings()
    forward = head.forward
    head.forward = lambda hidden: hidden
    try:
        yield head
    finally:
        head.forward = forward


def reply_log_likelihoods(model, input_ids, labels, **inputs):
    """Natural log-likelihood of every labelled token, in reading order.

    Args:
        input_ids, labels: (batch, length); a label is judged by the hidden state one position before it.
        inputs: the model's other inputs, `attention_mask` or `position_ids`.
    """
    scored = labels[:, 1:] != IGNORED
    with _no_head(model) as head:
        hidden = model(input_ids=input_ids, use_cache=False, **inputs).logits
    settings = model.config.get_text_config()
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(settings, name, None):
            raise UserError(f"models with {name} are not supported: their logits are not hidden states times head")
    if getattr(head, "bias", None) is not None or (head.weight.requires_grad and torch.is_grad_enabled()):
        raise ValueError("the output head must be frozen and without bias")
    return _HeadLogLikelihood.apply(hidden[:, :-1][scored], head.weight, labels[:, 1:][scored])
