"""The relaxed problem of GradOP and its descent, without the host."""

import pytest
import torch
from torch.autograd import gradcheck
from torchvision.transforms.functional import gaussian_blur

from guided_synthesis.guidance.gradop import (
    REFRESH,
    WINDOW,
    DecodedOnce,
    Relaxed,
    latent_distance,
    low_pass_distance,
    perceptual_distance,
    relax,
)
from guided_synthesis.guidance.painting import PaintingObjective
from guided_synthesis.guidance.steering import descend


class FirstThree:
    """Takes the first three channels for colours, exactly; counts its decodes and corrections."""

    name, cost, scale = "vae", "none", 1

    def __init__(self):
        self.calls, self.corrections = 0, 0

    def around(self, latent, picture=None):
        """Return itself."""
        self.corrections += 1
        return self

    def __call__(self, latent):
        """Return the first three channels."""
        self.calls += 1
        return latent[:, :3]


def squares(first, second):
    return (first - second).square().mean((1, 2, 3))


def problem(gamma=0.0, start=None, painting=None, decoder=None, distance=latent_distance):
    start = torch.zeros(1, 4, 8, 8) if start is None else start
    painting = torch.full((1, 3, 8, 8), 0.5) if painting is None else painting
    return Relaxed(PaintingObjective(decoder or FirstThree(), painting), distance(start), gamma)


def test_gamma_pulls_the_optimum_back_to_its_start():
    torch.manual_seed(0)
    start, painting = torch.rand(2, 4, 8, 8), torch.rand(2, 3, 8, 8)
    moves = []
    for gamma in (0.0, 0.1, 1.0, 10.0):
        found = relax(start, problem(gamma, start, painting), 300, 0.05).latent
        moves.append((found - start).square().mean().item())
    assert moves == sorted(moves, reverse=True) and moves[-1] < 0.05 * moves[0]


def test_the_optimum_is_the_weighted_mean_where_that_is_known_in_closed_form():
    """On flat pictures: argmin of (z - y)^2 / 1 over 3 channels + gamma * (z - 0)^2 * 3/4 is y / (1 + 0.75 gamma)."""
    found = relax(torch.zeros(1, 4, 8, 8), problem(gamma=2.0), 400, 0.02).latent
    assert torch.allclose(found[:, :3], torch.full((1, 3, 8, 8), 0.5 / 2.5), atol=0.01)
    assert found[:, 3].abs().max() < 1e-3


def test_a_batch_finds_what_its_samples_find_alone():
    torch.manual_seed(0)
    start = torch.rand(3, 4, 8, 8) * torch.tensor([0.1, 1.0, 3.0])[:, None, None, None]
    painting = torch.rand(3, 3, 8, 8)
    together = relax(start, problem(0.3, start, painting), 300, 0.05)
    lengths = []
    for i in range(3):
        one = slice(i, i + 1)
        alone = relax(start[one], problem(0.3, start[one], painting[one]), 300, 0.05)
        assert torch.allclose(together.latent[one], alone.latent, atol=1e-5)
        lengths.append(len(alone.losses))
    assert together.losses.isfinite().sum(0).tolist() == lengths and len(together.losses) == max(lengths)
    assert len(set(lengths)) > 1  # they settle at different steps, or this test shows nothing


def test_a_flat_loss_stops_after_two_windows_and_a_falling_one_does_not():
    start = torch.zeros(1, 4, 8, 8)
    at_the_optimum = problem(1.0, start, painting=torch.zeros(1, 3, 8, 8))
    assert len(relax(start, at_the_optimum, 300, 0.1).losses) == 2 * WINDOW
    assert len(relax(start, problem(), 100, 0.0005).losses) == 100


def test_without_iterations_the_start_comes_back_to_the_bit():
    start = torch.randn(2, 4, 8, 8)
    found = relax(start, problem(start=start), 0, 0.1)
    assert torch.equal(found.latent, start) and found.losses.shape == (0, 2)


def test_the_descent_is_steerings_own_and_its_losses_are_those_before_each_step():
    torch.manual_seed(0)
    start = torch.rand(2, 4, 8, 8)
    objective = problem(0.1, start)
    found = relax(start, objective, 15, 0.05)
    assert torch.equal(found.latent, descend(start, objective, 15, 0.05))
    assert torch.equal(found.losses[0], objective(start))
    assert torch.equal(found.losses[9], objective(descend(start, objective, 9, 0.05)))


def test_the_decoder_is_corrected_where_the_descent_stands_every_ten_steps():
    decoder = FirstThree()
    relax(torch.zeros(1, 4, 8, 8), problem(decoder=decoder), 25, 0.001)
    assert (REFRESH, decoder.corrections, decoder.calls) == (10, 3, 25)


def test_an_exception_of_tick_stops_the_descent():
    seen = []

    def tick(step, latent):
        seen.append((step, tuple(latent.shape)))
        if step == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        relax(torch.zeros(1, 4, 8, 8), problem(), 10, 0.1, tick)
    assert seen == [(0, (1, 4, 8, 8)), (1, (1, 4, 8, 8)), (2, (1, 4, 8, 8))]


def test_it_works_in_inference_mode_with_what_was_made_there():
    with torch.inference_mode():
        start, painting = torch.rand(1, 4, 8, 8), torch.rand(1, 3, 8, 8)
        for distance in (latent_distance, lambda z: low_pass_distance(z, 1.5)):
            objective = problem(0.1, start, painting, distance=distance)
            assert objective(relax(start, objective, 30, 0.05).latent) < objective(start)


def test_every_distance_is_zero_at_home_and_passes_gradcheck():
    torch.manual_seed(0)
    anchor = torch.rand(2, 4, 6, 6, dtype=torch.float64)
    latent = torch.rand(2, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    for distance in (
        latent_distance(anchor),
        low_pass_distance(anchor, 1.2),
        perceptual_distance(anchor, FirstThree(), squares),
    ):
        assert torch.equal(distance(anchor), torch.zeros(2, dtype=torch.float64))
        assert (distance(latent) > 0).all()
        assert gradcheck(distance, latent)


def test_the_low_pass_distance_is_torchvisions_blur_of_the_difference_and_blind_to_detail():
    torch.manual_seed(0)
    anchor, latent = torch.zeros(1, 4, 24, 24), torch.zeros(1, 4, 24, 24)
    latent[..., 9:15, 9:15] = torch.rand(1, 4, 6, 6)  # far from the border
    expected = gaussian_blur(latent, [7, 7], [1.5, 1.5]).square().mean()
    assert low_pass_distance(anchor, 1.5)(latent).item() == pytest.approx(expected.item(), rel=1e-4)
    grain = ((torch.arange(24)[:, None] + torch.arange(24)) % 2 * 2.0 - 1).expand(1, 4, 24, 24)
    assert low_pass_distance(anchor, 3.0)(grain).item() < 0.01 * latent_distance(anchor)(grain).item()


def test_loss_and_distance_share_one_decode_and_one_gradient():
    torch.manual_seed(0)
    start, painting, decoder = torch.rand(1, 4, 8, 8), torch.rand(1, 3, 8, 8), FirstThree()
    once = DecodedOnce(decoder)
    shared = problem(0.5, start, painting, once, lambda z: perceptual_distance(z, once, squares))
    apart = problem(
        0.5, start, painting, FirstThree(), lambda z: perceptual_distance(z, FirstThree(), squares)
    )
    assert torch.equal(relax(start, shared, 7, 0.1).latent, relax(start, apart, 7, 0.1).latent)
    assert decoder.calls == once.calls == 1 + 7  # the anchor, and each step
