"""Steering: descent on an objective, and blending."""

import pytest
import torch
from torch.autograd import gradcheck

from guided_synthesis.guidance.steering import conjugate, descend, steered


def squared_distance_to(target):
    return lambda latent: (latent - target).square().mean((1, 2, 3))


def test_descent_goes_down_the_objective():
    start, target = torch.zeros(2, 4, 8, 8), torch.full((2, 4, 8, 8), 0.5)
    objective = squared_distance_to(target)
    moved = descend(start, objective, steps=12, learning_rate=0.1)
    assert (objective(moved) < 0.25 * objective(start)).all()


def test_elementwise_descent_is_torchs_adam():
    torch.manual_seed(0)
    start, target = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    objective = squared_distance_to(target)
    theirs = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs], lr=0.1)
    for _ in range(8):
        optimizer.zero_grad()
        objective(theirs).sum().backward()
        optimizer.step()
    assert torch.allclose(descend(start, objective, 8, 0.1, elementwise=True), theirs, atol=1e-5)


def test_the_first_step_keeps_the_direction_of_the_gradient():
    torch.manual_seed(0)
    start, target = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    move = descend(start, squared_distance_to(target), 1, 0.1) - start
    wanted = target - start
    cosine = torch.cosine_similarity(move.flatten(1), wanted.flatten(1))
    assert torch.allclose(cosine, torch.ones(2), atol=1e-5)
    assert torch.allclose(move.square().mean((1, 2, 3)).sqrt(), torch.full((2,), 0.1), atol=1e-4)


def test_samples_of_a_batch_do_not_influence_each_other():
    torch.manual_seed(0)
    start, target = torch.randn(3, 4, 6, 6), torch.randn(3, 4, 6, 6)
    together = descend(start, squared_distance_to(target), 5, 0.1)
    alone = descend(start[1:2], squared_distance_to(target[1:2]), 5, 0.1)
    assert torch.equal(together[1:2], alone)


def test_descent_works_in_inference_mode_and_leaves_its_input_alone():
    with torch.inference_mode():
        start = torch.randn(1, 4, 4, 4)
        kept = start.clone()
        moved = descend(start, lambda z: z.square().mean((1, 2, 3)), 2, 0.1)
        assert torch.equal(start, kept) and not torch.equal(moved, start)


def test_an_exception_of_tick_stops_the_descent():
    calls = []

    def tick():
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        descend(torch.zeros(1, 4, 4, 4), lambda z: z.square().sum((1, 2, 3)), 10, 0.1, tick)
    assert len(calls) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_strength_zero_and_region_zero_are_the_input_to_the_bit(dtype):
    torch.manual_seed(0)
    denoised, moved = torch.randn(2, 4, 8, 8).to(dtype), torch.randn(2, 4, 8, 8)
    assert torch.equal(steered(denoised, moved, 0.0), denoised)
    region = torch.zeros(1, 1, 8, 8)
    region[..., :4] = 1
    out = steered(denoised, moved, 1.0, region)
    assert out.dtype == dtype
    assert torch.equal(out[..., 4:], denoised[..., 4:])
    assert torch.allclose(out[..., :4].float(), moved[..., :4], atol=0.05)


def test_half_strength_goes_half_way():
    denoised, moved = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    assert torch.allclose(steered(denoised, moved, 0.5), torch.full((1, 4, 2, 2), 0.5))


def test_steered_passes_gradcheck():
    torch.manual_seed(0)
    denoised = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    moved = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, y: steered(x, y, 0.4), (denoised, moved))


def quadratic(size=12, samples=3):
    """A quadratic objective of latents (samples, 1, 1, size), each sample its own, and its optimum."""
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(samples, size, size, generator=generator)
    matrix = root @ root.mT / size + 0.1 * torch.eye(size)
    target = torch.randn(samples, size, generator=generator)

    def objective(latent):
        away = latent[:, 0, 0] - target
        return torch.einsum("bi,bij,bj->b", away, matrix, away)

    return objective, target[:, None, None]


def test_conjugate_gradients_solve_a_quadratic_in_as_many_steps_as_it_has_unknowns():
    objective, optimum = quadratic()
    found = conjugate(torch.zeros_like(optimum), objective, 13, reach=10.0)
    assert torch.allclose(found, optimum, atol=1e-3)


def test_conjugate_gradients_agree_with_scipy_on_a_curved_objective():
    from scipy.optimize import minimize

    def curved(latent):
        return (latent - 0.3).square().mean((1, 2, 3)) + 0.5 * (latent.square().mean((1, 2, 3)) - 1).square()

    start = torch.randn(1, 1, 2, 3, generator=torch.Generator().manual_seed(2))
    theirs = minimize(
        lambda z: curved(torch.tensor(z).reshape(1, 1, 2, 3)).item(),
        start.double().flatten().numpy(),
        tol=1e-10,
    )
    ours = conjugate(start, curved, 30, reach=0.5)
    assert curved(ours).item() == pytest.approx(theirs.fun, abs=1e-5)


def test_conjugate_gradients_treat_each_sample_alone_and_stop_where_nothing_is_to_gain():
    objective, optimum = quadratic()
    start = torch.zeros_like(optimum)
    start[1] = optimum[1]  # already there: must not become NaN
    together = conjugate(start, objective, 4, reach=2.0)
    assert torch.allclose(together[1], optimum[1], atol=1e-6)

    def first_only(latent):
        return objective(torch.cat([latent, start[1:]]))[:1]

    assert torch.allclose(together[:1], conjugate(start[:1], first_only, 4, reach=2.0), atol=1e-5)


def test_no_step_of_conjugate_gradients_goes_further_than_its_reach():
    far = squared_distance_to(torch.full((2, 4, 8, 8), 50.0))
    moved = conjugate(torch.zeros(2, 4, 8, 8), far, 3, reach=0.5)
    assert moved.square().mean().sqrt().item() <= 3 * 0.5 + 1e-5


def test_conjugate_gradients_work_in_inference_mode_and_can_be_interrupted():
    objective, optimum = quadratic()
    ticks = []
    with torch.inference_mode():
        start = torch.zeros_like(optimum)
        conjugate(start, objective, 3, 1.0, lambda: ticks.append(1))
    assert len(ticks) == 3 and torch.equal(start, torch.zeros_like(start))


def test_conjugate_gradients_never_end_higher_than_they_began():
    """Not even where the objective is bumpy, and the slope says nothing about the next valley."""
    start = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(3))

    def bumpy(latent):
        return (latent.square() + 2 * torch.cos(9 * latent)).mean((1, 2, 3))

    losses = [bumpy(conjugate(start, bumpy, steps, reach=2.0)) for steps in (0, 1, 4, 12)]
    for before, after in zip(losses[:-1], losses[1:], strict=True):
        assert (after <= before).all()
    assert (losses[-1] < losses[0]).all()
