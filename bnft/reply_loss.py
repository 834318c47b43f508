"""Cross-entropy of the reply tokens, with the output head applied to those tokens alone.

The head of a small model with a large vocabulary costs more than all its layers, and half of a conversation's tokens
carry no loss. TRL has the same idea as a Triton kernel, which a CPU build of PyTorch lacks. Knows nothing about
adapters, data or the training loop's settings.
"""

from __future__ import annotations

import torch

from bnft.errors import UserError
from bnft.head import products
from bnft.prompts import IGNORED
from bnft.streaming import causal_part

# Tokens whose logits exist at one time: 64 x 262,144 x 4 bytes = 64 MiB for Gemma on a CPU; on a GPU, which wants
# larger products, 512 x 128,256 x (2 + 4) bytes = 0.37 GiB for Llama.
CHUNK, GPU_CHUNK = 64, 512
# In a large vocabulary nearly all probabilities are far below this; leaving them out of the gradient (never out of
# the loss) costs 1 % of accuracy there and saves most of a product. The idea is Cut Cross-Entropy's gradient filter,
# https://arxiv.org/abs/2411.09009; below FILTERED_VOCABULARY entries nothing is left out, nor on a GPU, where looking
# for what to leave out takes longer than the product.
NEGLIGIBLE = 3e-6
FILTERED_VOCABULARY = 32_768


class _HeadLogLikelihood(torch.autograd.Function):
    """log softmax(hidden @ weight.T)[target], for a frozen head: the gradient reaches `hidden` only."""

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        wants_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wants_gradient else None
        values = hidden.new_empty(len(targets), dtype=torch.float32)
        chunk = GPU_CHUNK if hidden.is_cuda else CHUNK
        room = hidden.new_empty(len(weight), min(chunk, len(targets)))
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            scores, norms = _scores(hidden[part], weight, room)
            values[part] = scores.gather(0, targets[None, part])[0] - norms
            if wants_gradient:
                gradient[part] = weight[targets[part]] - _expected_row(scores.sub_(norms), weight)
        if wants_gradient:
            ctx.save_for_backward(gradient)
        return values

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return upstream[:, None].to(gradient.dtype) * gradient, None, None


def _scores(hidden, weight, room):
    """Scores of all rows of the head, (rows, tokens), and their logsumexp, (tokens,). `room` holds the scores."""
    scores = room[:, : len(hidden)]
    norms = [part.float().logsumexp(0) for part in products(weight, hidden, scores)]
    return scores.float(), torch.stack(norms).logsumexp(0)


def _expected_row(log_probabilities, weight):
    """Mean row of the head under each token's distribution, (tokens, columns): the softmax part of the gradient."""
    if len(weight) > FILTERED_VOCABULARY and not weight.is_cuda:
        kept = (log_probabilities.amax(1) > torch.tensor(NEGLIGIBLE).log()).nonzero()[:, 0]
        # Renormalised: the rows of a head share a large mean, which only cancels when the weights sum to one.
        log_probabilities, weight = log_probabilities[kept].log_softmax(0), weight[kept]
    return (weight.T @ log_probabilities.exp_().to(weight.dtype)).T


def reply_log_likelihoods(model, input_ids, labels, **inputs):
    """Natural log-likelihood of every labelled token, in reading order.

    Args:
        input_ids, labels: (batch, length); a label is judged by the hidden state one position before it. Labels on the
            host spare a GPU from being waited for.
        inputs: the model's other inputs, `attention_mask` or `position_ids`.
    """
    causal = causal_part(model)
    settings = causal.config.get_text_config()
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(settings, name, None):
            raise UserError(f"models with {name} are not supported: their logits are not hidden states times head")
    head = causal.get_output_embeddings()
    if getattr(head, "bias", None) is not None or (head.weight.requires_grad and torch.is_grad_enabled()):
        raise ValueError("the output head must be frozen and without bias")
    scored = labels != IGNORED
    scored[:, 0] = False
    places = scored.flatten().nonzero()[:, 0]
    hidden = causal.get_decoder()(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state
    hidden = hidden.flatten(0, 1).index_select(0, sent(places - 1, hidden.device))
    hidden = hidden.to(head.weight.device, head.weight.dtype)
    return _HeadLogLikelihood.apply(hidden, head.weight, sent(labels.flatten()[places], head.weight.device))


def sent(tensor: torch.Tensor, device) -> torch.Tensor:
    """The tensor on a device; on its way from the host to a GPU nobody waits for it."""
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
