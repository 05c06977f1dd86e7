"""Layers that keep less for the backward pass: the same results, the same gradients, fewer bytes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import group_norm, silu

from memory import PeakMemory


@pytest.fixture(scope="module")
def differentiable(host):
    from guided_synthesis.nodes.host.gradients import differentiable

    return differentiable


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def block(inplace, **settings):
    torch.manual_seed(0)
    layers = nn.GroupNorm(2, 4), nn.SiLU(inplace), nn.Conv2d(4, 4, 3, **settings)
    return nn.Sequential(*layers, *layers).double().requires_grad_(False)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    "settings",
    [{"padding": 1}, {"padding": 1, "stride": 2, "bias": False}, {"padding": 2, "dilation": 2, "groups": 2}]
    + [{"padding": "same"}],
    ids=str,
)
def test_results_and_gradients_are_those_of_autograd(differentiable, inplace, settings):
    network, x = block(inplace, **settings), random(2, 4, 8, 8).requires_grad_()
    expected = network(x)
    gradient = torch.autograd.grad(expected.square().sum(), x)[0]
    with differentiable():
        found = network(x)
        again = torch.autograd.grad(found.square().sum(), x)[0]
        assert torch.autograd.gradcheck(network, (random(1, 4, 6, 6).requires_grad_(),))
    assert torch.equal(found, expected)
    assert torch.allclose(again, gradient, rtol=1e-12, atol=1e-14)


def test_only_the_inputs_of_norms_are_kept(differentiable):
    network, x = block(True, padding=1), random(1, 4, 64, 64).requires_grad_()
    size = x.numel() * x.element_size()
    kept = []
    for context in (torch.enable_grad, differentiable):
        with PeakMemory() as memory, context():
            out = network(x)
            kept.append(round(memory.now / size))
            del out
    # the second norm's input and out; autograd alone: twice the norm's result, once written to, and both between
    assert kept == [6, 2]


def test_a_norm_that_was_written_to_since_is_taken_as_it_is_now(differentiable):
    x = random(1, 4, 6, 6).requires_grad_()

    def shifted(at):
        return silu(group_norm(at, 2).add_(1))

    with differentiable():
        assert torch.equal(shifted(x), silu(group_norm(x.detach(), 2) + 1))
        assert torch.autograd.gradcheck(shifted, (x,))


def test_weights_that_want_gradients_get_them(differentiable):
    x = random(1, 4, 6, 6).requires_grad_()
    weight, scale = random(4, 4, 3, 3, seed=1).requires_grad_(), random(4, seed=2).requires_grad_()

    def layers(x, weight, scale):
        return torch.nn.functional.conv2d(silu(group_norm(x, 2, scale)), weight)

    with differentiable():
        assert torch.autograd.gradcheck(layers, (x, weight, scale))


def test_a_second_derivative_through_the_silu_is_refused_instead_of_wrong(differentiable):
    x = random(1, 4, 6, 6).requires_grad_()
    with differentiable():
        loss = silu(group_norm(x, 2)).square().sum()
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.square().sum().backward()
