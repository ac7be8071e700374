import pytest
import torch

from rlhf_ray.models.logprobs import chunked_logprobs


def make(tokens=7, width=5, vocab=11, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(vocab, width, generator=generator, dtype=dtype).requires_grad_()
    bias = torch.randn(vocab, generator=generator, dtype=dtype).requires_grad_()
    return hidden, weight, bias, torch.randint(vocab, (tokens,), generator=generator)


def plain(hidden, weight, bias, targets, temperature):
    log_p = torch.log_softmax((hidden @ weight.t() + bias) / temperature, dim=-1)
    return log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(dim=1)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_log_softmax_over_all_logits(chunk, temperature):
    hidden, weight, bias, targets = make()
    ours = chunked_logprobs(hidden, weight, targets, temperature, chunk, True, bias)
    expected = plain(hidden, weight, bias, targets, temperature)
    coefficients = torch.linspace(-1, 2, 7, dtype=torch.float64)
    for terms in [(1.0, 0.0), (0.0, 1.0), (1.0, 0.3)]:
        losses = [((a * terms[0] + b * terms[1]) * coefficients).sum() for a, b in [ours, expected]]
        grads = [torch.autograd.grad(loss, [hidden, weight, bias], retain_graph=True) for loss in losses]
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("need_entropy", [False, True])
def test_gradients_by_finite_differences(need_entropy):
    hidden, weight, bias, targets = make(tokens=5, width=3, vocab=6)

    def outputs(hidden, weight, bias):
        return tuple(o for o in chunked_logprobs(hidden, weight, targets, 1.3, 2, need_entropy, bias) if o is not None)

    assert torch.autograd.gradcheck(outputs, (hidden, weight, bias))


def test_extreme_logits_stay_finite():
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.5]], requires_grad=True)
    logprobs, entropy = chunked_logprobs(hidden, weight, torch.tensor([0, 1]), need_entropy=True)
    (logprobs.sum() + entropy.sum()).backward()
    assert torch.equal(logprobs, torch.zeros(2))
    assert torch.isfinite(hidden.grad).all()
    assert torch.isfinite(weight.grad).all()


def test_bfloat16_results_are_float32_and_near():
    hidden, weight, bias, targets = (t.detach() if t.is_floating_point() else t for t in make(64, 32, 50))
    expected, _ = plain(hidden, weight, bias, targets, 1.0)
    low = [t.to(torch.bfloat16).requires_grad_() for t in (hidden, weight, bias)]
    logprobs, _ = chunked_logprobs(low[0], low[1], targets, 1.0, 8, False, low[2])
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), expected, atol=0.15, rtol=0.02)
    logprobs.sum().backward()
    assert all(t.grad.dtype == torch.bfloat16 for t in low)


def test_no_tokens():
    hidden, weight, _, _ = make()
    logprobs, _ = chunked_logprobs(hidden[:0], weight, torch.zeros(0, dtype=torch.long))
    assert logprobs.shape == (0,)


def test_a_token_that_cannot_come_adds_nothing_to_the_entropy():
    """A logit of minus infinity, as a bias of the output layer may hold it; 0 times it is NaN."""
    hidden, weight, bias, targets = make()
    bias = bias.detach().clone()
    bias[-2:] = -torch.inf
    targets = targets.clamp(max=len(weight) - 3)
    whole = [t.detach().clone().requires_grad_() for t in (hidden, weight, bias)]
    part = [t.detach().clone().requires_grad_() for t in (hidden, weight[:-2], bias[:-2])]
    found = chunked_logprobs(whole[0], whole[1], targets, 0.7, need_entropy=True, bias=whole[2])
    expected = chunked_logprobs(part[0], part[1], targets, 0.7, need_entropy=True, bias=part[2])
    torch.testing.assert_close(found, expected)
    for outputs, leaf in ((found, whole), (expected, part)):
        (outputs[0].sum() + 3 * outputs[1].sum()).backward()
        assert leaf[0].grad.isfinite().all()
    torch.testing.assert_close(whole[0].grad, part[0].grad)
    torch.testing.assert_close(whole[1].grad[:-2], part[1].grad)
    assert not whole[1].grad[-2:].any()
