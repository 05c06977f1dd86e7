"""The descent of inverting gradients against the loop written out, without the host."""

import dataclasses
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from guided_synthesis.guidance.gradient_matching import GradientMatching
from guided_synthesis.guidance.inverting import Descent, Inverter
from unit.classifier_nets import picture, prepare, smooth_net

SIDE, LABEL = 12, 3


def start(seed=1):
    return torch.randn(1, 4, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(seed))


def render(latent):
    """Return RGB (1, 3, 12, 12) of a latent (1, 4, 6, 6), as a decoder would."""
    mixed = torch.einsum("oc,bchw->bohw", torch.tensor(MIX, dtype=latent.dtype), latent)
    return torch.sigmoid(mixed).repeat_interleave(2, 2).repeat_interleave(2, 3)


MIX = [[0.9, -0.4, 0.2, 0.1], [-0.3, 0.8, 0.3, -0.2], [0.2, 0.1, -0.7, 0.6]]


def matching():
    return GradientMatching(smooth_net(), prepare, picture(SIDE, 2), LABEL)


def inverted(steps, descent, objective=None, state=None, latent=None):
    """Return an `Inverter` after `steps` steps and the objectives that they told."""
    inverter = Inverter(
        start() if latent is None else latent, render, objective or matching(), descent, state
    )
    return inverter, [inverter.step() for _ in range(steps)]


def inverting_gradients(steps, descent):
    """Return objectives and latents of the published loop: plain autograd, Adam by its formulas, in float64."""
    network = smooth_net().double()

    def gradients(image):
        loss = cross_entropy(network(prepare(image)), torch.tensor([LABEL]))
        return torch.autograd.grad(loss, list(network.parameters()), create_graph=True)

    target = [g.detach() for g in gradients(picture(SIDE, 2).double())]
    z, m, v, told, latents = start().double(), 0.0, 0.0, [], []
    for step in range(steps):
        z = z.detach().requires_grad_()
        x = render(z)
        mine = gradients(x)
        dot = sum((a * b).sum() for a, b in zip(mine, target, strict=True))
        lengths = [sum(g.pow(2).sum() for g in side).sqrt() for side in (mine, target)]
        objective = 1 - dot / lengths[0] / lengths[1]
        variation = (x[..., 1:] - x[..., :-1]).abs().mean() + (x[..., 1:, :] - x[..., :-1, :]).abs().mean()
        (slope,) = torch.autograd.grad(objective + descent.total_variation * variation, z)
        slope = slope.sign() if descent.signed else slope
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
        passed = sum(step >= steps * eighths / 8 for eighths in (3, 5, 7))
        rate = descent.learning_rate / 10**passed
        told.append(objective.item())
        z = z.detach() - rate * (m / (1 - 0.9 ** (step + 1))) / (
            (v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
        )
        latents.append(z)
    return told, latents


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("weight", [0.0, 1e-4, 0.1])
def test_the_loss_curve_is_that_of_inverting_gradients_written_out(signed, weight):
    descent = Descent(40, 0.1, signed, weight, cosine=False)
    inverter, told = inverted(40, descent)
    expected, latents = inverting_gradients(40, descent)
    assert told == pytest.approx(expected, rel=1e-4)
    assert torch.allclose(inverter.latent, latents[-1].float(), atol=1e-3)
    assert told[-1] < 0.7 * told[0]


def test_the_learning_rate_falls_to_a_tenth_after_3_5_and_7_eighths():
    rates = [Descent(80, 0.1, cosine=False).rate(done) for done in range(100)]
    expected = [0.1] * 30 + [0.01] * 20 + [1e-3] * 20 + [1e-4] * 30
    assert rates == pytest.approx(expected)
    assert Descent(1, 0.1, cosine=False).rate(0) == 0.1


def test_along_a_cosine_the_learning_rate_falls_from_all_to_nothing_and_stays_there():
    descent = Descent(80, 0.1, cosine=True)
    assert [descent.rate(done) for done in (0, 20, 40, 80, 99)] == pytest.approx(
        [0.1, 0.08535534, 0.05, 0, 0]
    )
    rates = [descent.rate(done) for done in range(81)]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == 81


def test_along_a_cosine_a_descent_ends_lower_than_with_drops():
    ends = [inverted(60, Descent(60, 0.1, False, 0.0, cosine))[0].lowest for cosine in (False, True)]
    assert ends[1] < ends[0]


def test_a_signed_step_moves_every_number_by_the_learning_rate():
    inverter, _ = inverted(1, Descent(1000, 0.05, True, 0.0))
    assert torch.allclose((inverter.latent - start()).abs(), torch.tensor(0.05), atol=1e-6)
    unsigned, _ = inverted(2, Descent(1000, 0.05, False, 0.0))
    assert not torch.allclose(
        unsigned.latent, inverted(2, Descent(1000, 0.05, True, 0.0))[0].latent, atol=1e-3
    )


def test_the_best_latent_is_kept_where_the_descent_jumps_about():
    tried = []

    def objective(image):
        loss = GOAL(image)
        tried.append(loss.item())
        return loss

    descent = Descent(1000, 3.0, True, 0.0)
    inverter, told = inverted(25, descent, objective)
    assert told == tried and inverter.lowest == min(told) < told[-1]
    again, _ = inverted(told.index(min(told)), descent, GOAL)
    assert torch.equal(inverter.best, again.latent) and not torch.equal(inverter.best, inverter.latent)


def GOAL(image):  # noqa: N802
    return (image - 0.6).square().mean().reshape(1)


def test_the_lowest_loss_counts_the_total_variation_and_the_step_tells_the_objective():
    inverter, (told,) = inverted(1, Descent(10, 0.1, True, 1.0), GOAL)
    image = render(start())
    variation = image.diff(dim=2).abs().mean() + image.diff(dim=3).abs().mean()
    assert told == pytest.approx(GOAL(image).item(), rel=1e-6)
    assert inverter.lowest == pytest.approx((GOAL(image) + variation).item(), rel=1e-6)


@pytest.mark.parametrize("cut", [0, 1, 13, 40])
@pytest.mark.parametrize(("signed", "cosine"), [(True, False), (False, False), (False, True)])
def test_interrupted_and_resumed_is_uninterrupted_to_the_bit(cut, signed, cosine):
    descent = Descent(40, 0.1, signed, 1e-2, cosine)
    whole, told = inverted(40, descent)
    first, before = inverted(cut, descent)
    state = first.state()
    first.step()  # the state does not hang on what the first one does next
    second, after = inverted(40 - cut, descent, state=state, latent=torch.zeros_like(start()))
    assert before + after == told and second.done == whole.done == 40
    assert torch.equal(second.latent, whole.latent) and torch.equal(second.best, whole.best)
    assert second.lowest == whole.lowest


def test_a_state_resumes_twice_alike_and_lies_on_the_cpu():
    descent = Descent(40, 0.1)
    state = inverted(5, descent)[0].state()
    (first, told), (second, again) = (inverted(7, descent, state=state) for _ in range(2))
    assert told == again and torch.equal(first.latent, second.latent)
    tensors = [part for part in dataclasses.astuple(state) if isinstance(part, torch.Tensor)]
    assert len(tensors) == 4 and all(t.device.type == "cpu" and not t.requires_grad for t in tensors)


def test_before_the_first_step_the_start_is_the_best():
    latent = start()
    inverter, _ = inverted(0, Descent(10), latent=latent)
    assert torch.equal(inverter.latent, latent) and torch.equal(inverter.best, latent)
    assert inverter.lowest == math.inf and inverter.done == 0
    inverter.step()
    assert torch.equal(latent, start()) and inverter.done == 1 and inverter.lowest < math.inf


def test_it_runs_inside_inference_mode_with_an_inference_latent():
    _, expected = inverted(3, Descent(10))
    with torch.inference_mode():
        latent, objective = start(), matching()
        with torch.inference_mode(False), torch.enable_grad():
            inverter, told = inverted(3, Descent(10), objective, latent=latent)
            assert told == expected and not inverter.latent.is_inference()


@pytest.mark.parametrize(
    "objective", [lambda image: (image * torch.nan).sum(), lambda image: (image - image).abs().sqrt().sum()]
)
def test_a_loss_or_gradient_that_is_no_number_ends_the_descent_in_a_sentence(objective):
    turn = iter([GOAL, GOAL, objective])
    inverter, _ = inverted(2, Descent(10), lambda image: next(turn)(image))
    latent = inverter.latent
    with pytest.raises(ValueError, match="After 2 steps.*not a number.*lower the learning rate"):
        inverter.step()
    assert torch.equal(inverter.latent, latent) and inverter.done == 2 and inverter.lowest < math.inf
