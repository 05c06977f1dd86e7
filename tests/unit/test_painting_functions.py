"""The painting functions: what each keeps and drops, their gradients, and their odd cases."""

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter
from torch.autograd import gradcheck

from guided_synthesis.guidance.painting_functions import LEAK, NAMES, fit, median, paint
from guided_synthesis.guidance.palette import find_palette, mix, nearest
from guided_synthesis.guidance.superpixels import flatten_patches, means, patches, superpixels
from tiny_sd.world import draw, make_spec


def scene(seed=3, side=64, count=1):
    """Drawn scenes (count, 3, side, side) in [0, 1]."""
    images = [draw(make_spec(seed + i, things=1)).image for i in range(count)]
    pictures = torch.from_numpy(np.stack(images)).float().movedim(-1, 1) / 255
    return torch.nn.functional.interpolate(pictures, (side, side), mode="bilinear", antialias=True)


def checkers(colours, side=24, cell=4):
    """A picture (1, 3, side, side) of cells that take `colours` (k, 3) in turn."""
    rows = torch.arange(side) // cell
    return torch.tensor(colours)[(rows[:, None] + rows) % len(colours)].movedim(-1, 0)[None]


def colours_of(picture):
    """The different colours (k, 3) of a picture (3, H, W)."""
    return picture.flatten(1).T.unique(dim=0)


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_the_median_is_that_of_scipy_up_to_the_border(reach):
    picture = torch.rand(2, 3, 19, 30, generator=torch.Generator().manual_seed(0))
    theirs = median_filter(picture.numpy(), size=(1, 1, 2 * reach + 1, 2 * reach + 1), mode="nearest")
    assert torch.equal(median(picture, reach), torch.from_numpy(theirs))


def test_the_median_in_bands_is_the_median_of_the_whole(monkeypatch):
    from guided_synthesis.guidance import painting_functions

    picture = torch.rand(1, 3, 23, 17, generator=torch.Generator().manual_seed(0))
    whole = median(picture, 2)
    monkeypatch.setattr(painting_functions, "WINDOWS", 5000)
    assert torch.equal(median(picture, 2), whole)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("brush", [0.75, 4.5])
def test_every_function_passes_gradcheck(name, brush):
    generator = torch.Generator().manual_seed(1)
    painting = torch.rand(1, 3, 12, 10, generator=generator, dtype=torch.float64)
    pictures = torch.rand(2, 3, 12, 10, generator=generator, dtype=torch.float64).requires_grad_()
    assert gradcheck(fit(name, painting, brush, 4), pictures)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side, brush", [(16, 0.75), (64, 3.0), (50, 7.0), (5, 25.0)])
def test_batch_equals_one_by_one_and_half_precision_comes_out_single(name, side, brush):
    pictures, paintings = scene(3, side, 3), scene(20, side, 3)
    together = fit(name, paintings, brush, 5)(pictures)
    alone = [fit(name, y[None], brush, 5)(x[None]) for x, y in zip(pictures, paintings, strict=True)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)
    one_for_all = fit(name, paintings[:1], brush, 5)(pictures)
    assert torch.allclose(one_for_all[0], together[0], atol=1e-6)
    painted = paint(name, pictures, brush, 5)
    assert torch.allclose(painted, torch.cat([paint(name, x[None], brush, 5) for x in pictures]), atol=1e-6)
    half = fit(name, paintings.half(), brush, 5)(pictures.half())
    assert half.dtype == paint(name, pictures.half(), brush, 5).dtype == torch.float32
    assert half.shape == painted.shape == pictures.shape
    assert 0 <= painted.min() and painted.max() <= 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("colours", [1, 8])
def test_a_flat_painting_stays_flat_and_makes_no_nan(name, colours):
    flat = torch.tensor([0.2, 0.5, 0.7])[None, :, None, None].expand(1, 3, 20, 14)
    assert torch.allclose(paint(name, flat, 3.0, colours), flat, atol=1e-6)
    pictures = scene(side=20)[..., :14].requires_grad_()
    seen = fit(name, flat, 3.0, colours)(pictures)
    (gradient,) = torch.autograd.grad((seen - flat).square().sum(), pictures)
    assert seen.isfinite().all() and gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_picture_gives_the_same_painting_and_no_random_number_is_drawn(name):
    picture, before = scene(), torch.get_rng_state()
    assert torch.equal(paint(name, picture, 3.0, 6), paint(name, picture, 3.0, 6))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_values_outside_the_range_of_colours_keep_a_gradient(name):
    painting = scene()
    pictures = torch.full_like(painting, 1.4).requires_grad_()
    loss = (fit(name, painting, 1.0, 6)(pictures) - painting).square().mean()
    (gradient,) = torch.autograd.grad(loss, pictures)
    assert gradient.isfinite().all()
    assert (gradient.sum((2, 3)) > 0).all()  # descent makes them darker


def test_an_unknown_function_is_one_clear_sentence():
    with pytest.raises(
        ValueError, match="no painting function 'oil'. Choose one of gaussian, median palette"
    ):
        paint("oil", scene(), 1.0, 8)


def test_the_palette_of_a_picture_of_k_colours_is_these_colours():
    colours = [[0.0, 0.0, 0.0], [1.0, 0.9, 0.8], [0.8, 0.1, 0.1], [0.1, 0.3, 0.9], [0.2, 0.6, 0.2]]
    picture = checkers(colours)[0]
    for asked in (5, 9):
        assert torch.allclose(
            colours_of(find_palette(picture, asked).T[..., None]), colours_of(picture), atol=1e-6
        )
    assert len(find_palette(picture, 3)) == 3


def test_the_palette_of_one_colour_is_the_mean():
    picture = scene()[0]
    assert torch.allclose(find_palette(picture, 1)[0], picture.mean((1, 2)), atol=1e-5)


def test_more_colours_come_closer_to_the_picture():
    picture = scene()[0]
    errors = []
    for colours in (1, 2, 4, 8, 16):
        palette = find_palette(picture, colours)
        errors.append((palette[nearest(picture, palette)].movedim(-1, 0) - picture).square().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05 * errors[0]


def test_the_soft_palette_keeps_its_own_colours_nearly_and_halves_the_way_between_two():
    palette = torch.tensor([[0.1, 0.1, 0.1], [0.9, 0.5, 0.1]])
    own = palette.T[None, :, :, None]  # (1, 3, 2, 1)
    assert torch.allclose(mix(own, palette), own, atol=0.02)
    middle = own.mean(2, keepdim=True)
    assert torch.allclose(mix(middle, palette), middle, atol=1e-6)
    quarter = torch.lerp(own[:, :, :1], own[:, :, 1:], 0.25)
    assert ((mix(quarter, palette) - own[:, :, :1]).norm() < (quarter - own[:, :, :1]).norm()).item()


def test_a_painting_has_at_most_the_colours_asked_for_and_no_speck_smaller_than_the_brush():
    picture = scene(side=96)
    painting = paint("median palette", picture, 3.0, 5)[0]
    assert 2 <= len(colours_of(painting)) <= 5
    speck = torch.zeros(1, 3, 64, 64)
    speck[..., 30:33, 30:33] = 1
    assert len(colours_of(paint("median palette", speck, 5.0, 5)[0])) == 1


def test_strokes_keep_a_straight_edge_where_it_was():
    picture = torch.zeros(1, 3, 48, 48)
    picture[..., 24:] = torch.tensor([0.9, 0.4, 0.2])[:, None, None]
    for brush in (2.0, 6.0):
        assert torch.allclose(paint("median palette", picture, brush, 4), picture, atol=1e-6)


def test_a_descent_through_the_palette_leaves_the_wrong_colour_for_the_right_one():
    colours = [[0.1, 0.1, 0.1], [0.15, 0.15, 0.2], [0.9, 0.1, 0.1], [0.1, 0.2, 0.9]]
    painting = checkers(colours, side=32, cell=8)
    function = fit("median palette", painting, 0.75, 4)
    target = function(painting)
    picture = (
        painting.roll(16, -1).clone().requires_grad_()
    )  # everywhere a colour of the palette, but another one
    optimiser = torch.optim.SGD([picture], lr=400.0)
    start = (function(picture) - target).square().mean().item()
    for _ in range(300):
        optimiser.zero_grad()
        loss = (function(picture) - target).square().mean()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05 * start
    assert 0 < LEAK < 0.5


def test_superpixels_cover_the_picture_and_are_about_of_the_size_asked_for():
    picture = scene(side=60)
    labels = superpixels(picture, 10.0)
    count = patches(60, 60, 10.0)
    sizes = torch.bincount(labels.flatten(), minlength=count)
    assert count == 36 and labels.min() >= 0 and labels.max() < count
    assert (sizes > 0).all() and sizes.float().std() < sizes.float().mean()
    assert patches(3, 5, 100.0) == 1 and patches(16, 16, 0.1) == 64


def test_superpixels_follow_an_edge_that_crosses_their_grid():
    picture = torch.zeros(1, 3, 40, 40)
    picture[..., 23:] = 1
    labels = superpixels(picture, 10.0)
    assert torch.equal(flatten_patches(picture, labels, 16), picture)


def test_the_means_over_superpixels_are_numpys_linear_and_idempotent():
    pictures, painting = scene(3, 32, 2), scene(9, 32)
    labels, count = superpixels(painting, 8.0), patches(32, 32, 8.0)
    ours = means(pictures.flatten(2), labels.flatten(1).expand(2, -1), count)
    label = labels[0].numpy()
    theirs = [[c.numpy()[label == i].mean() for i in range(count)] for x in pictures for c in x]
    assert np.allclose(ours.reshape(6, count), theirs, atol=1e-5)
    function = fit("superpixel", painting, 2.0, 8)
    once = function(pictures)
    assert torch.allclose(function(once), once, atol=1e-6)
    mixed = function(0.3 * pictures[:1] - 2 * pictures[1:])
    assert torch.allclose(mixed, 0.3 * once[:1] - 2 * once[1:], atol=1e-5)
    assert torch.allclose(once.mean((2, 3)), pictures.mean((2, 3)), atol=1e-5)
