"""Log-probabilities and entropy of given tokens from hidden states, without ever holding all logits.

Logits of a whole batch take `tokens x vocabulary` floats, several times over in the backward pass. Here they are
computed for a chunk of tokens at a time, and once more in the backward pass.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rlhf_ray.models.logit_transform import IDENTITY, LogitTransform

CHUNK_BYTES_CPU = 64 << 20
"""Logits of one chunk on CPU: 524 tokens of a vocabulary of 32,000. Each chunk passes over the gradient of the whole
output layer once more, so that few large ones are faster."""

CHUNK_BYTES_GPU = 256 << 20

NO_PROBABILITY = -1e4
"""A logarithm whose exponential is 0 in any type. Lower ones, as of a token that cannot come, are held here in products
with their probability: 0 times minus infinity is NaN."""


def chunk_tokens(vocab: int, device: torch.device) -> int:
    """Count the tokens whose float32 logits fill one chunk on this device."""
    budget = CHUNK_BYTES_CPU if device.type == "cpu" else CHUNK_BYTES_GPU
    return max(1, budget // (4 * vocab))


def chunked_logprobs(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocab width"],
    targets: Int[Tensor, " tokens"],
    temperature: float = 1.0,
    chunk: int | None = None,
    need_entropy: bool = False,
    bias: Float[Tensor, " vocab"] | None = None,
    transform: LogitTransform = IDENTITY,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"] | None]:
    """Return each target's log-probability, and its distribution's entropy, by softmax(logits / temperature).

    Args:
        hidden: last hidden states at the positions that predict the targets.
        weight: output projection.
        targets: token ids.
        temperature: divides the logits; must be above 0.
        chunk: tokens whose logits are held at a time; chosen by size unless given.
        need_entropy: whether to compute the entropy, in nats.
        bias: of the output projection.
        transform: what the network makes of its output projection's numbers, before the temperature.

    Returns:
        Log-probabilities and entropy in float32 (float64 for float64 inputs); entropy is None unless asked for.
    """
    chunk = chunk or chunk_tokens(weight.shape[0], weight.device)
    how = (float(temperature), transform, chunk, need_entropy)
    logprobs, entropy = _ChunkedLogprobs.apply(hidden, weight, bias, targets, *how)
    return logprobs, entropy if need_entropy else None


class _ChunkedLogprobs(torch.autograd.Function):
    """With p = softmax(z), z = logits / T: d logp[y] / dz = onehot(y) - p; d H / dz = -p (log p + H)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        transform: LogitTransform,
        chunk: int,
        need_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        precise = torch.promote_types(hidden.dtype, torch.float32)
        tokens = hidden.shape[0]
        logprobs = torch.empty(tokens, dtype=precise, device=hidden.device)
        normaliser = torch.empty_like(logprobs)
        entropy = torch.empty_like(logprobs) if need_entropy else logprobs.new_empty(0)
        for start in range(0, tokens, chunk):
            part = slice(start, start + chunk)
            logits = _divided(_logits(hidden[part], weight, bias, transform, precise), temperature)
            target_logits = logits.gather(1, targets[part, None]).squeeze(1)
            maximum = logits.amax(dim=1, keepdim=True)
            logits.sub_(maximum)
            if need_entropy:
                # sum of p z, from exp(z) z before the sum of exp(z) is known; of a logit of minus infinity it is 0
                exponent = logits.clamp_(min=NO_PROBABILITY).exp()
                total = exponent.sum(dim=1)
                entropy[part] = total.log() - exponent.mul_(logits).sum(dim=1) / total
            else:
                total = logits.exp_().sum(dim=1)
            normaliser[part] = total.log() + maximum.squeeze(1)
            logprobs[part] = target_logits - normaliser[part]
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser, entropy)
        ctx.temperature, ctx.transform, ctx.chunk, ctx.precise = temperature, transform, chunk, precise
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        logprobs_grad, entropy_grad = gradients
        hidden, weight, bias, targets, normaliser, entropy = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        if logprobs_grad is None and entropy_grad is None:
            return (None,) * 8
        hidden_grad = torch.empty_like(hidden) if needs_hidden else None
        # Chunks add up in float32: a sum kept in bfloat16 would lose the small ones.
        weight_grad = torch.zeros_like(weight, dtype=ctx.precise) if needs_weight else None
        bias_grad = torch.zeros_like(bias, dtype=ctx.precise) if needs_bias else None
        for start in range(0, hidden.shape[0], ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logits = _logits(hidden[part], weight, bias, ctx.transform, ctx.precise)
            slope = None if ctx.transform == IDENTITY else ctx.transform.slope(logits)
            grad = _logit_gradients(
                _divided(logits, ctx.temperature).sub_(normaliser[part, None]),
                targets[part],
                None if logprobs_grad is None else logprobs_grad[part] / ctx.temperature,
                None if entropy_grad is None else entropy_grad[part] / ctx.temperature,
                entropy[part],
            )
            if slope is not None:
                grad.mul_(slope)
            grad = grad.to(hidden.dtype)
            if hidden_grad is not None:
                torch.mm(grad, weight, out=hidden_grad[part])
            if weight_grad is not None:
                _add_product(weight_grad, grad, hidden[part])
            if bias_grad is not None:
                bias_grad += grad.sum(dim=0)
        return (
            hidden_grad,
            None if weight_grad is None else weight_grad.to(weight.dtype),
            None if bias_grad is None else bias_grad.to(bias.dtype),
            *(None,) * 5,
        )


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: LogitTransform, precise: torch.dtype
) -> Tensor:
    return transform(nn.functional.linear(hidden, weight, bias).to(precise))


def _divided(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1.0 else logits.div_(temperature)


def _logit_gradients(
    log_p: Tensor, targets: Tensor, logprobs_grad: Tensor | None, entropy_grad: Tensor | None, entropy: Tensor
) -> Tensor:
    """Return the gradient by the logits; overwrites `log_p`, the log-probabilities of all tokens."""
    if entropy_grad is None:
        assert logprobs_grad is not None
        grad = log_p.exp_().mul_(-logprobs_grad[:, None])
    else:
        # -p (g + e (log p + H)), with g and e the gradients of log-probability and entropy; p log p is 0 where p is
        p = log_p.clamp_(min=NO_PROBABILITY).exp()
        grad = log_p.add_(entropy[:, None]).mul_(entropy_grad[:, None])
        if logprobs_grad is not None:
            grad.add_(logprobs_grad[:, None])
        grad.mul_(p).neg_()
    if logprobs_grad is not None:
        grad.scatter_add_(1, targets[:, None], logprobs_grad[:, None].to(grad.dtype))
    return grad


def _add_product(total: Tensor, grad: Tensor, hidden: Tensor) -> None:
    if total.dtype == grad.dtype:
        total.addmm_(grad.t(), hidden)
    else:
        total.add_(grad.t() @ hidden)
