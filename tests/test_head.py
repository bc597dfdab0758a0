"""The head in chunks against plain autograd on full logits, in values and every gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from rlvr.head import TokenHead

TOKENS, WIDTH, VOCABULARY = 7, 6, 11


def problem(*, bias: bool = False, tokens: int = TOKENS) -> tuple[nn.Linear, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output layer, hidden states, targets, and a coefficient for each log-probability."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        output = nn.Linear(WIDTH, VOCABULARY, bias=bias)
        hidden = (3 * torch.randn(tokens, WIDTH)).requires_grad_()
        return output, hidden, torch.randint(VOCABULARY, (tokens,)), torch.randn(tokens)


def plainly(
    output: nn.Linear, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = output(hidden)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    distribution = torch.distributions.Categorical(logits=logits / temperature)
    return distribution.log_prob(targets), distribution.entropy()


@pytest.mark.parametrize("chunk", [1, 3, TOKENS, 100])
@pytest.mark.parametrize(("softcap", "bias"), itertools.product([None, 2.0], [False, True]))
def test_values_and_gradients_are_those_of_full_logits(chunk: int, softcap: float | None, bias: bool) -> None:
    output, hidden, targets, coefficients = problem(bias=bias)
    weights = [hidden, *output.parameters()]
    expected, entropies = plainly(output, hidden, targets, 0.7, softcap)
    expected_gradients = torch.autograd.grad((coefficients * expected).sum(), weights)
    logprobs, entropy = TokenHead(output, chunk_tokens=chunk)(hidden, targets, 0.7, softcap)
    assert entropy is not None
    assert not entropy.requires_grad
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy, entropies, rtol=0, atol=1e-5)
    gradients = torch.autograd.grad((coefficients * logprobs).sum(), weights)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert theirs.abs().max() > 0.01
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_without_entropy_the_log_probabilities_and_gradients_are_the_same_bits() -> None:
    output, hidden, targets, coefficients = problem()
    results = []
    for entropy in (True, False):
        logprobs, entropies = TokenHead(output)(hidden, targets, 1.0, None, entropy=entropy)
        assert (entropies is not None) == entropy
        results.append((logprobs, *torch.autograd.grad((coefficients * logprobs).sum(), [hidden, output.weight])))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_second_backward_gives_the_first_ones_gradient() -> None:
    output, hidden, targets, coefficients = problem()
    loss = (coefficients * TokenHead(output)(hidden, targets, 0.7, None)[0]).sum()
    first = torch.autograd.grad(loss, [hidden, output.weight], retain_graph=True)
    second = torch.autograd.grad(loss, [hidden, output.weight])
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_frozen_output_layer_gets_no_gradient_and_the_hidden_states_do() -> None:
    output, hidden, targets, coefficients = problem()
    output.requires_grad_(requires_grad=False)
    for chunk in (2, TOKENS):
        hidden.grad = None
        (coefficients * TokenHead(output, chunk_tokens=chunk)(hidden, targets, 0.7, None)[0]).sum().backward()
        assert hidden.grad is not None
        assert output.weight.grad is None


def test_no_tokens_give_a_gradient_of_zero() -> None:
    output, hidden, targets, _ = problem(tokens=0)
    TokenHead(output)(hidden, targets, 1.0, None)[0].sum().backward()
    assert output.weight.grad is not None
    assert torch.equal(output.weight.grad, torch.zeros(VOCABULARY, WIDTH))


def test_logits_too_large_for_an_exponential_are_read_exactly() -> None:
    output, hidden, _, _ = problem(tokens=1)
    output.weight.data.zero_()
    output.weight.data[3] = 1000 * hidden.detach()[0] / hidden.detach().norm() ** 2  # logit 1000, others 0
    logprobs, entropy = TokenHead(output)(hidden, torch.tensor([3]), 1.0, None)
    assert logprobs.item() == pytest.approx(0.0, abs=1e-3)
    assert entropy.item() == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize(("vocabulary", "tokens"), [(151_936, 441), (512, 131_072)])
def test_a_chunk_is_256_mib_of_float32_logits_unless_told(vocabulary: int, tokens: int) -> None:
    with torch.device("meta"):
        output = nn.Linear(2, vocabulary, bias=False)
    assert TokenHead(output).chunk_tokens == tokens  # floor(2^28 bytes / 4 / V)
    assert TokenHead(output, chunk_tokens=5).chunk_tokens == 5
