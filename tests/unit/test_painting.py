"""The painting objective: its blur rule, its gradients, its mask, and its two forms."""

import pytest
import torch
from torch.autograd import gradcheck
from torchvision.transforms.functional import gaussian_blur

from guided_synthesis.guidance.decoding import LinearDecoder
from guided_synthesis.guidance.painting import PaintingObjective, Pixels, blur_sigma, fitted, gaussian, trust
from guided_synthesis.guidance.painting_functions import NAMES
from guided_synthesis.guidance.steering import descend


class Doubling:
    """A decoder for tests: three of four channels, two px per cell, in the dtype it gets."""

    name, cost, scale, calls = "vae", "none", 2, 0

    def around(self, latent, picture=None):
        """Return itself."""
        return self

    def __call__(self, latent):
        """Return three channels, enlarged."""
        self.calls += 1
        return latent[:, :3].repeat_interleave(2, -1).repeat_interleave(2, -2)


class InDouble(PaintingObjective):
    """The objective in float64, for gradcheck."""

    def __init__(self, decoder, painting, mask=None, **settings):
        super().__init__(decoder, painting, mask, **settings)
        self.painting, self.mask = painting, mask


def test_blur_grows_with_the_picture_and_never_falls_below_the_latent_cell():
    assert blur_sigma(7, 512, 512, 8) == 7
    assert blur_sigma(7, 1024, 1536, 8) == 14
    assert blur_sigma(7, 128, 128, 8) == 6  # 0.75 cells of 8 px
    assert blur_sigma(7, 64, 64, 1) == pytest.approx(0.875)


def test_gaussian_agrees_with_torchvision_away_from_the_border():
    torch.manual_seed(0)
    image = torch.rand(2, 3, 64, 64)
    ours, theirs = gaussian(image, 3.0), gaussian_blur(image, [15, 15], [3.0, 3.0])
    assert torch.allclose(ours[..., 8:-8, 8:-8], theirs[..., 8:-8, 8:-8], atol=1e-4)


def test_gaussian_keeps_a_flat_picture_flat_up_to_its_border():
    assert torch.allclose(
        gaussian(torch.full((1, 3, 20, 12), 0.3), 4.0), torch.full((1, 3, 20, 12), 0.3), atol=1e-6
    )


def test_a_perfect_match_has_loss_zero_and_colour_counts():
    latent = torch.rand(1, 4, 8, 8)
    painting = Doubling()(latent)
    assert PaintingObjective(Doubling(), painting)(latent).item() < 1e-10
    assert PaintingObjective(Doubling(), 1 - painting)(latent).item() > 1e-3


def test_the_released_code_compares_clamped_colours_with_the_sharp_painting():
    latent = torch.full((1, 4, 8, 8), 1.7)  # decodes to 1.7: clamped to white
    objective = PaintingObjective(Doubling(), torch.ones(1, 3, 16, 16), released_code=True)
    assert objective(latent).item() < 1e-10
    sharp = (torch.arange(16) % 8 < 4).float().expand(1, 3, 16, 16)
    latent = sharp[:, :, ::2, ::2]
    assert PaintingObjective(Doubling(), sharp, released_code=True)(latent).item() > 1e-3
    assert PaintingObjective(Doubling(), sharp)(latent).item() < 1e-10


@pytest.mark.parametrize("released", [False, True])
def test_the_objective_passes_gradcheck(released):
    torch.manual_seed(0)
    latent = (0.2 + 0.6 * torch.rand(2, 4, 4, 4, dtype=torch.float64)).requires_grad_()
    painting, mask = torch.rand(1, 3, 10, 10).double(), torch.rand(1, 1, 10, 10).double()
    assert gradcheck(InDouble(Doubling(), painting, mask, released_code=released), latent)
    assert gradcheck(lambda image: gaussian(image, 1.2), latent[:, :3].detach().requires_grad_())
    assert gradcheck(lambda image: fitted(image, 3, 5), latent[:, :3].detach().requires_grad_())


def test_outside_the_mask_nothing_pulls_and_half_a_mask_pulls_half():
    latent = torch.zeros(1, 4, 16, 16, requires_grad=True)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :8] = 1
    objective = PaintingObjective(Doubling(), torch.ones(1, 3, 32, 32), mask)
    (gradient,) = torch.autograd.grad(objective(latent).sum(), latent)
    assert gradient[..., :4].abs().min(dim=-1).values[:, :3].gt(0).all()
    assert torch.equal(gradient[..., 10:], torch.zeros_like(gradient[..., 10:]))
    left, right = mask.clone(), 1 - mask
    grey = PaintingObjective(Doubling(), torch.ones(1, 3, 32, 32), left + 0.5 * right)
    (gradient,) = torch.autograd.grad(grey(latent).sum(), latent)
    assert gradient[0, 0, 8, 14] / gradient[0, 0, 8, 1] == pytest.approx(0.5, abs=0.02)


def test_each_picture_of_a_batch_may_have_its_own_painting():
    latent = torch.rand(2, 4, 8, 8)
    paintings = Doubling()(latent)
    assert PaintingObjective(Doubling(), paintings)(latent).max() < 1e-10
    assert PaintingObjective(Doubling(), paintings.flip(0))(latent).min() > 1e-4


def test_paintings_of_any_size_are_fitted_to_what_the_decoder_makes():
    decoder = LinearDecoder(torch.eye(4)[:, :3], torch.zeros(3))
    painting = torch.full((1, 3, 513, 257), 0.25)
    assert PaintingObjective(decoder, painting)(torch.full((1, 4, 9, 5), 0.25)).item() < 1e-10


@pytest.mark.parametrize("function", NAMES)
def test_every_painting_function_is_zero_at_the_painting_and_falls_on_the_way_to_it(function):
    torch.manual_seed(0)
    coarse = torch.nn.functional.interpolate(torch.rand(1, 4, 4, 4), scale_factor=8, mode="nearest")
    objective = PaintingObjective(Doubling(), Doubling()(coarse), brush=16.0, function=function, colours=6)
    assert objective(coarse).item() < 1e-10
    away = torch.nn.functional.interpolate(torch.rand(1, 4, 4, 4), scale_factor=8, mode="nearest")
    moved = descend(away, objective, 40, 0.1)
    assert objective(moved).item() < 0.3 * objective(away).item()


@pytest.mark.parametrize("function", NAMES)
def test_pictures_are_compared_as_through_a_decoder_that_changes_nothing(function):
    torch.manual_seed(0)
    pictures, painting = torch.rand(2, 3, 16, 16), torch.rand(1, 3, 16, 16)
    mask = torch.rand(1, 1, 16, 16)
    objective = PaintingObjective(Pixels(), painting, mask, 30.0, function, 4)
    errors, weight = objective.errors(pictures), objective.weight(pictures)
    expected = (errors * weight).sum((1, 2, 3)) / (3 * weight.sum())
    assert torch.equal(objective(pictures), expected)
    assert torch.equal(objective.around(pictures)(pictures), expected)
    identity = LinearDecoder(torch.eye(3), torch.zeros(3))
    guided = PaintingObjective(identity, painting, mask, 30.0, function, 4)
    # not to the bit: its colours lie in memory in another order, and a blur then adds them in another order
    assert torch.allclose(guided(pictures), objective(pictures), rtol=1e-5, atol=0)


def test_the_palette_and_the_patches_are_those_of_the_painting_not_of_the_picture():
    painting = torch.zeros(1, 3, 16, 16)
    painting[..., 8:] = torch.tensor([1.0, 0.5, 0.0])[:, None, None]
    grey = torch.full((1, 3, 16, 16), 0.4)
    for function in ("median palette", "superpixel"):
        objective = PaintingObjective(Pixels(), painting, brush=32.0, function=function, colours=2)
        assert objective.errors(grey).isfinite().all()
        assert objective(grey) > 0.01


def test_the_trust_weighs_painting_and_estimate_as_a_posterior_does():
    """For one colour cell that shows the latent itself, the optimum is the mean weighted by the two precisions."""
    tolerance, variance = 0.1, 0.5
    gamma = trust(tolerance, variance, channels=3)
    z, y, estimate = torch.linspace(0, 1, 10001, dtype=torch.float64), 0.8, 0.2
    best = z[((z - y).square() + gamma * (z - estimate).square()).argmin()]
    expected = (y / tolerance**2 + estimate / variance) / (1 / tolerance**2 + 1 / variance)
    assert best.item() == pytest.approx(expected, abs=1e-3)


def test_the_share_of_a_mask_is_its_mean():
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, ..., :4], mask[1] = 1, 0.25
    painting = torch.rand(2, 3, 8, 8)
    assert PaintingObjective(Doubling(), painting, mask).share().tolist() == [0.5, 0.25]
    assert PaintingObjective(Doubling(), painting).share().tolist() == [1.0]
