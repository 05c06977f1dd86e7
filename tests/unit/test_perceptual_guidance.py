"""The mathematics of perceptual guidance: the equation, its gradient, masks, sizes."""

import pytest
import torch
from torch.nn.functional import interpolate

from guided_synthesis.guidance.decoding import LinearDecoder
from guided_synthesis.guidance.perceptual import (
    PULL_OF_NOISE,
    STEEPEST,
    PerceptualObjective,
    enlarged,
    moved,
    norm_ratio,
    product,
    pull_of_text,
    rms,
    rms_clip,
)

EVERYWHERE = torch.ones(1, 1, 1, 1)


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mean_square(first, second):
    """A distance in the place of LPIPS, smooth and without weights."""
    return (first - second).square().mean((1, 2, 3))


def objective(side=80, dtype=torch.float32, distance=mean_square, reference_side=None):
    """Latents of `side` cells against random colours, by a linear decoder: no network."""
    decoder = LinearDecoder(noise(4, 3, seed=1, dtype=dtype), noise(3, seed=2, dtype=dtype))
    reference_side = reference_side or side
    reference = noise(1, 3, reference_side, reference_side, seed=3, dtype=dtype).sigmoid()
    return PerceptualObjective(decoder, distance, reference)


def test_a_guided_estimate_is_the_equation_in_four_lines():
    d, c, u, g = (noise(3, 4, 8, 8, seed=seed, dtype=torch.float64) for seed in range(4))
    strength, cfg = 0.3, 7.5
    size = lambda t: t.pow(2).mean(dim=(1, 2, 3), keepdim=True).sqrt()  # noqa: E731
    expected = d - strength * cfg * size(c - u) / size(g) * g
    found = moved(
        d.float(), norm_ratio(g.float(), strength * pull_of_text(c.float(), u.float(), cfg, d), EVERYWHERE)
    )
    torch.testing.assert_close(found, expected.float())


def test_without_an_unconditional_estimate_the_noise_stands_for_the_pull():
    x, d, g = (noise(2, 4, 8, 8, seed=seed) for seed in range(3))
    move = norm_ratio(g, pull_of_text(d, None, 1.0, x - d), EVERYWHERE)
    torch.testing.assert_close(rms(move, EVERYWHERE), PULL_OF_NOISE * rms(x - d, EVERYWHERE))


def test_a_step_never_depends_on_the_scale_of_the_loss_or_on_the_other_samples():
    g, pull = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1)
    move = norm_ratio(g, pull, EVERYWHERE)
    torch.testing.assert_close(norm_ratio(1e-6 * g, pull, EVERYWHERE), move)
    torch.testing.assert_close(norm_ratio(g[1:], pull[1:], EVERYWHERE), move[1:])


@pytest.mark.parametrize("rule", ["norm ratio", "rms clip"])
def test_no_gradient_is_no_move(rule):
    g, d = torch.zeros(1, 4, 8, 8), noise(1, 4, 8, 8)
    move = norm_ratio(g, d, EVERYWHERE) if rule == "norm ratio" else rms_clip(g, 1.0, EVERYWHERE)
    assert torch.equal(moved(d, move), d)


def test_a_clipped_step_follows_the_gradient_up_to_a_bound():
    g = noise(1, 4, 8, 8)
    steep = STEEPEST / (4 * 8 * 8) * g / rms(g, EVERYWHERE)
    torch.testing.assert_close(rms_clip(0.5 * steep, 1.0, EVERYWHERE), 0.5 * steep * 4 * 8 * 8)
    for factor in (1.0, 3.0, 1000.0):
        torch.testing.assert_close(rms_clip(factor * steep, 2.0, EVERYWHERE), 2 * steep * 4 * 8 * 8)


@pytest.mark.parametrize("rule", ["norm ratio", "rms clip"])
def test_a_mask_limits_the_move_and_its_size_counts_only_there(rule):
    where = torch.zeros(1, 1, 8, 8)
    where[..., :4, :2] = 1
    g, d = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1)
    move = norm_ratio(g, d, where) if rule == "norm ratio" else rms_clip(g, 1.0, where)
    found = moved(d, move)
    assert torch.equal(found * (1 - where), d * (1 - where))
    inside = move[..., :4, :2].square().mean((1, 2, 3)).sqrt()
    full = d[..., :4, :2].square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(inside, full if rule == "norm ratio" else torch.full((2,), STEEPEST))


def test_half_a_mask_is_half_the_move():
    g, d = noise(1, 4, 8, 8), noise(1, 4, 8, 8, seed=1)
    half = torch.full((1, 1, 8, 8), 0.5)
    torch.testing.assert_close(norm_ratio(g, d, half), 0.5 * norm_ratio(g, d, EVERYWHERE.expand(1, 1, 8, 8)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_estimate_keeps_its_type_and_is_untouched_where_nothing_moves(dtype):
    d, move = noise(1, 4, 8, 8).to(dtype), noise(1, 4, 8, 8, seed=1)
    move[..., 4:] = 0
    found = moved(d, move)
    assert found.dtype == dtype and torch.equal(found[..., 4:], d[..., 4:])
    torch.testing.assert_close(found, (d.float() - move).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_is_that_of_finite_differences(masked):
    mask = noise(1, 1, 12, 12, seed=5, dtype=torch.float64).sigmoid()
    loss = objective(6, torch.float64)
    latent = noise(2, 4, 6, 6, seed=4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, [mask] if masked else []), (latent,))


def test_a_step_down_the_gradient_comes_closer():
    loss, latent = objective(16), noise(1, 4, 16, 16).requires_grad_()
    before = loss(latent)
    (gradient,) = torch.autograd.grad(before.sum(), latent)
    assert loss(moved(latent, norm_ratio(gradient, 0.05 * latent, EVERYWHERE))) < before


def test_what_is_outside_of_the_mask_does_not_count():
    left = torch.zeros(1, 1, 80, 80)
    left[..., :40] = 1
    loss, latent = objective(), noise(1, 4, 80, 80)
    other = latent.clone()
    other[..., 40:] += 1
    assert torch.equal(loss(latent, [left]), loss(other, [left]))
    assert loss(latent) != loss(other)
    assert loss(latent, [left]) < loss(latent)
    assert loss(latent, [left, 1 - left]) == 0
    torch.testing.assert_close(loss(latent, [torch.ones(1, 1, 160, 160)]), loss(latent))


def test_several_masks_multiply_at_the_size_of_what_they_weigh():
    a, b = torch.full((1, 1, 80, 80), 0.5), torch.full((2, 1, 10, 10), 0.25)
    found = product([a, b], torch.zeros(2, 3, 40, 40, dtype=torch.float16))
    assert found.shape == (2, 1, 40, 40) and found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((2, 1, 40, 40), 0.125))
    assert torch.equal(product([], torch.zeros(2, 3, 4, 4)), torch.ones(1, 1, 4, 4))


@pytest.mark.parametrize("side, factor", [(8, 8), (16, 4), (40, 2), (63, 2), (64, 1), (100, 1)])
def test_small_pictures_are_enlarged_to_64_px_by_a_whole_number(side, factor):
    picture = noise(1, 3, side, side + 8)
    found = enlarged(picture)
    assert found.shape == (1, 3, factor * side, factor * (side + 8))
    torch.testing.assert_close(interpolate(found, picture.shape[-2:], mode="area").mean(), picture.mean())
    assert (found is picture) == (factor == 1)


def test_a_reference_of_another_size_is_resized_to_the_decoded_picture_and_made_once():
    seen = []

    def distance(first, second):
        seen.append((first.shape, second.shape, second.data_ptr()))
        return mean_square(first, second)

    loss = objective(80, distance=distance, reference_side=330)
    for _ in range(2):
        loss(noise(2, 4, 80, 80))
    loss(noise(2, 4, 96, 96))
    assert [shapes[:2] for shapes in seen[1:]] == [
        ((2, 3, side, side), (1, 3, side, side)) for side in (80, 96)
    ]
    assert seen[0][2] == seen[1][2]
