"""The search for the unconditional text of one sampling step, without the host."""

import pytest
import torch
from torch.autograd import gradcheck

from guided_synthesis.guidance import null_text
from guided_synthesis.guidance.null_text import Descent, Target, optimise

PAPER = Descent(10, 1e-2, 0.9, 0.0)
OURS = Descent(5, 0.1, 0.5, 0.0)


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Toy:
    """An estimate that depends on the text as a small network does: (B, 3, 4) -> (B, 2, side, side)."""

    def __init__(self, dtype=torch.float32, side=4):
        self.weight, self.dtype, self.side = 0.3 * noise(12, 2 * side**2, seed=9).to(dtype), dtype, side
        self.calls = []

    def __call__(self, text):
        """Return the estimate for `text`."""
        self.calls.append(text.requires_grad)
        with torch.enable_grad():
            return (
                (text.to(self.dtype).flatten(1) @ self.weight)
                .tanh()
                .unflatten(1, (2, self.side, self.side))
                .float()
            )


def target(batch=2, dtype=torch.float32, sigma=2.0, following=1.5):
    x, pivot = (noise(batch, 2, 4, 4, seed=seed, dtype=dtype) for seed in (1, 2))
    return Target(x, torch.tensor(sigma, dtype=dtype), torch.tensor(following, dtype=dtype), pivot)


def part(whole, index):
    return Target(whole.x[index : index + 1], whole.sigma, whole.next_sigma, whole.pivot[index : index + 1])


TEXT = noise(2, 3, 4, seed=5)


def test_the_loss_has_the_gradient_of_its_finite_differences():
    problem, network = target(dtype=torch.float64), Toy(torch.float64)
    network.weight = network.weight.double()

    def loss(text):
        return problem.losses((text.flatten(1) @ network.weight).tanh().unflatten(1, (2, 4, 4)))

    assert gradcheck(loss, TEXT.double().requires_grad_())


def test_a_step_is_eulers_and_the_loss_is_that_of_variance_preserving_latents():
    """DDIM on x / sqrt(1 + sigma^2), in the letters of its paper."""
    problem, denoised = target(), noise(2, 2, 4, 4, seed=3)
    (a, b), eps = ((1 / (1 + s**2)) for s in (problem.sigma, problem.next_sigma)), (problem.x - denoised) / 2
    z = problem.x * a.sqrt()
    following = b.sqrt() * (z - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps
    assert torch.allclose(problem.step(denoised) * b.sqrt(), following, atol=1e-6)
    expected = (following - problem.pivot * b.sqrt()).square().mean((1, 2, 3))
    assert torch.allclose(problem.losses(denoised), expected, rtol=1e-5)
    assert torch.allclose(problem.residuals(denoised), (expected / b).sqrt(), rtol=1e-5)


def test_the_papers_settings_are_the_papers_loop():
    problem, network = target(), Toy()
    text = TEXT.clone().requires_grad_()
    adam = torch.optim.Adam([text], lr=1e-2 * (1 - 7 / 100))
    for _ in range(10):
        loss = problem.losses(network(text)).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    found = optimise(TEXT, Toy(), problem, PAPER, 7)
    assert torch.allclose(found.text, text, atol=1e-6) and not torch.allclose(found.text, TEXT, atol=1e-2)
    assert torch.allclose(found.denoised, network(text), atol=1e-6)
    assert torch.allclose(found.losses, problem.losses(network(text)), atol=1e-6)


@pytest.mark.parametrize("rate", [0.01, 1.0, 100.0])
def test_no_learning_rate_leads_away(rate):
    problem, network = target(), Toy()
    before = problem.losses(network(TEXT))
    found = optimise(TEXT, network, problem, Descent(6, rate, 0.5, 0.0), 0)
    assert (found.losses <= before).all()
    assert torch.equal(problem.losses(network(found.text)), found.losses)


def test_the_best_text_that_was_tried_is_kept_for_each_picture():
    problem, network, tried = target(), Toy(), []

    def estimate(text):
        denoised = network(text)
        tried.append(problem.losses(denoised).detach())
        return denoised

    found = optimise(TEXT, estimate, problem, Descent(6, 30.0, 0.9, 0.0), 0)
    best = torch.stack(tried).min(0).values
    assert torch.equal(found.losses, best) and (tried[-1] > best).any()
    assert torch.equal(problem.losses(network(found.text)), best)


def test_a_picture_that_is_near_enough_is_left_alone_though_it_could_come_nearer():
    problem, network = target(), Toy()
    before = problem.losses(network(TEXT))
    near, far = before.argmin(), before.argmax()
    stop = before[near].item() * 1.001
    assert optimise(TEXT, Toy(), problem, Descent(5, 0.1, 0.5, 0.0), 0).losses[near] < before[near]
    found = optimise(TEXT, Toy(), problem, Descent(5, 0.1, 0.5, stop), 0)
    assert torch.equal(found.text[near], TEXT[near]) and found.losses[far] < before[far]


def test_a_batch_finds_what_its_pictures_find_alone():
    problem = target()
    stop = Descent(20, 0.05, 0.5, 0.35)
    together = optimise(TEXT, Toy(), problem, stop, 0)
    for index in range(2):
        alone = optimise(TEXT[index : index + 1], Toy(), part(problem, index), stop, 0)
        assert torch.allclose(together.text[index], alone.text[0], atol=1e-6)
        assert torch.allclose(together.losses[index], alone.losses[0], atol=1e-6)


def test_a_picture_that_is_done_keeps_its_text_to_the_bit():
    problem, network = target(), Toy()
    text, reached = TEXT.clone(), noise(3, 4, seed=8)
    text[0] = reached
    pivot = problem.pivot.clone()
    pivot[0] = problem.step(network(text))[0]
    done = Target(problem.x, problem.sigma, problem.next_sigma, pivot)
    found = optimise(text, Toy(), done, Descent(5, 0.1, 0.5, 1e-6), 0)
    assert torch.equal(found.text[0], reached) and not torch.equal(found.text[1], text[1])


def test_when_all_are_done_nothing_more_is_computed():
    network, whole = Toy(), target()
    problem = Target(whole.x, whole.sigma, whole.next_sigma, whole.step(network(TEXT)))
    network.calls.clear()
    found = optimise(TEXT, network, problem, Descent(5, 0.1, 0.5, 1e-6), 0)
    assert network.calls == [True] and torch.equal(found.text, TEXT)


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_an_inner_step_takes_one_gradient_and_the_last_look_none(steps, monkeypatch):
    gradients, own = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: gradients.append(1) or own(*a, **k))
    network, ticks = Toy(), []
    found = optimise(TEXT, network, target(), Descent(steps, 0.1, 0.5, 0.0), 0, lambda: ticks.append(1))
    assert network.calls == [True] * steps + [False]
    assert len(gradients) == steps and len(ticks) == steps + 1
    assert torch.equal(found.text, TEXT) == (steps == 0)


def test_more_steps_come_closer():
    losses = [
        optimise(TEXT, Toy(), target(), Descent(steps, 0.1, 0.5, 0.0), 0).losses.sum().item()
        for steps in (0, 2, 5, 20)
    ]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.9 * losses[0]


def test_half_precision_networks_pass_the_gradient_on():
    """The gradient of a mean over many numbers is one that float16 rounds to zero."""
    network, x = Toy(torch.float16, side=256), noise(2, 2, 256, 256)
    near = Target(x, torch.tensor(2.0), torch.tensor(1.5), x)
    reached = network(TEXT + 0.02 * noise(2, 3, 4, seed=4).sign())
    near = Target(x, near.sigma, near.next_sigma, near.step(reached))
    found = optimise(TEXT, network, near, Descent(2, 0.01, 0.5, 0.0), 0)
    assert (found.losses < 0.5 * near.losses(network(TEXT))).all()


def test_it_works_on_tensors_of_inference_mode_and_leaves_the_text_alone():
    expected, network = optimise(TEXT, Toy(), target(), OURS, 0), Toy()
    with torch.inference_mode():
        text, problem = TEXT.clone(), target()
        assert torch.equal(optimise(text, network, problem, OURS, 0).text, expected.text)
        assert torch.equal(text, TEXT) and not text.requires_grad


def test_an_interrupt_passes_through():
    def cancel():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimise(TEXT, Toy(), target(), OURS, 0, cancel)


def test_rate_and_threshold_are_the_papers_and_stay_positive_on_long_schedules():
    paper = Descent(10, 1e-2, 0.9, 1e-5)
    for index in (0, 10, 49):
        assert paper.rate(index) == pytest.approx(1e-2 * (1 - index / 100))
        assert paper.threshold(index) == pytest.approx(1e-5 + index * 2e-5)
    assert paper.rate(500) == pytest.approx(5e-3)
    assert OURS.threshold(49) == 0.0
    assert null_text.Descent(1, 1.0, 0.0, 0.0).rate(0) == 1.0
