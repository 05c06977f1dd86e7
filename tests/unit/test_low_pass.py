"""ILVR's low pass and what is done with it: the paper's formula, linearity, the resizer, the way through pixels."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.autograd import gradcheck
from torch.nn.functional import avg_pool2d

from guided_synthesis.guidance.low_pass import clean_part, clean_part_in_pixels, low_pass, noise_part

SIZES = [(16, 16), (9, 17), (25, 8)]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("factor", [1, 2, 2.5, 3, 8, 64])
def test_the_low_pass_is_linear_and_keeps_the_size_and_a_flat_picture(size, factor):
    a, b = noise(2, 4, *size).double(), noise(2, 4, *size, seed=1).double()
    together = low_pass(3 * a - 0.5 * b, factor)
    assert together.shape == a.shape
    assert torch.allclose(together, 3 * low_pass(a, factor) - 0.5 * low_pass(b, factor), atol=1e-12)
    flat = torch.full((1, 3, *size), 0.3)
    assert torch.allclose(low_pass(flat, factor), flat, atol=1e-6)


def test_factor_one_is_the_identity_and_a_factor_beyond_the_picture_leaves_one_colour():
    x = noise(1, 3, 9, 17)
    assert torch.equal(low_pass(x, 1), x)
    one = low_pass(x, 1000)
    assert torch.allclose(one, one[..., :1, :1].expand_as(one), atol=1e-6)


@pytest.mark.parametrize("size, small", [((64, 96), (8, 12)), ((40, 72), (5, 9)), ((44, 60), (6, 8))])
def test_the_resizer_is_the_bicubic_one_of_pillow(size, small):
    x = torch.rand(*size, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(x.numpy(), mode="F").resize(small[::-1], Image.Resampling.BICUBIC)
    theirs = torch.from_numpy(np.array(image.resize(size[::-1], Image.Resampling.BICUBIC)))
    assert torch.allclose(low_pass(x[None, None], 8)[0, 0], theirs, atol=1e-5)


def test_it_removes_what_is_finer_and_keeps_what_is_coarser():
    ramp = torch.linspace(-1, 1, 64).expand(1, 1, 64, 64)
    checks = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(32, 32)[None, None]
    assert low_pass(checks, 8)[..., 8:-8, 8:-8].abs().max() < 0.05
    assert (low_pass(ramp, 8) - ramp)[..., 8:-8, 8:-8].abs().max() < 0.05


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_both_parts_together_are_the_formula_of_the_paper(factor):
    sigma, clean, eps, y, fresh = 2.7, *(noise(2, 4, 9, 17, seed=s).double() for s in range(4))
    x = clean + sigma * eps
    expected = x - low_pass(x, factor) + low_pass(y + sigma * fresh, factor)
    ours = clean_part(clean, y, factor) + sigma * noise_part(eps, fresh, factor)
    assert torch.allclose(ours, expected, atol=1e-12)
    assert torch.allclose(low_pass(clean_part(clean, y, 1), 1), y)


def test_one_reference_serves_a_batch_and_each_latent_may_have_its_own():
    clean, y = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1)
    both = clean_part(clean, y, 2)
    assert torch.equal(both[1:], clean_part(clean[1:], y[1:], 2))
    assert torch.allclose(clean_part(clean, y[:1], 2)[1:], clean_part(clean[1:], y[:1], 2))


def test_strength_zero_changes_nothing_and_half_keeps_the_power_of_the_noise():
    clean, y = noise(1, 4, 16, 16), noise(1, 4, 16, 16, seed=1)
    assert torch.equal(clean_part(clean, y, 4, 0.0), clean)
    assert torch.equal(noise_part(clean, y, 4, 0.0), clean)
    eps, fresh = noise(64, 4, 32, 32), noise(64, 4, 32, 32, seed=1)
    power = avg_pool2d(eps, 8).square().mean()  # of the low frequencies
    for strength in (0.3, 0.7, 1.0):
        mixed = noise_part(eps, fresh, 4, strength)
        assert avg_pool2d(mixed, 8).square().mean() == pytest.approx(power.item(), rel=0.15)


def test_half_precision_is_computed_in_float32():
    x = noise(1, 4, 9, 17)
    half = low_pass(x.half(), 3)
    assert half.dtype == torch.float16
    assert torch.equal(half, low_pass(x.half().float(), 3).half())


def lossy(scale: float):
    """A decoder and an encoder, two px per cell, that do not undo each other."""

    def decode(latent):
        return (latent[:, :3] + 0.1 * latent[:, 3:]).repeat_interleave(2, -1).repeat_interleave(2, -2)

    def encode(picture):
        cells = avg_pool2d(picture, 2) * scale
        return torch.cat([cells, 0 * cells[:, :1]], dim=1)

    return decode, encode


def test_through_pixels_the_picture_takes_the_low_frequencies_of_the_reference():
    decode, encode = lossy(1.0)
    latent, reference = noise(2, 4, 8, 6), noise(1, 3, 16, 12, seed=1)
    moved = clean_part_in_pixels(latent, reference, 4, decode, encode)
    expected = encode(decode(latent) + low_pass(reference - decode(latent), 4)) - encode(decode(latent))
    assert torch.allclose(moved, latent + expected, atol=1e-6)
    before, after = (low_pass(decode(z) - reference, 4).square().mean() for z in (latent, moved))
    assert after < 0.1 * before


def test_through_pixels_a_picture_that_is_right_already_keeps_its_latent_to_the_bit():
    decode, encode = lossy(0.7)
    latent = noise(1, 4, 8, 6)
    assert torch.equal(clean_part_in_pixels(latent, decode(latent), 4, decode, encode), latent)
    other = noise(1, 3, 16, 12)
    assert torch.equal(clean_part_in_pixels(latent, other, 4, decode, encode, 0.0), latent)


def test_every_function_passes_gradcheck():
    x, y = noise(2, 3, 6, 9).double().requires_grad_(), noise(1, 3, 6, 9, seed=1).double().requires_grad_()
    decode, encode = lossy(0.7)
    latent = noise(1, 4, 3, 5).double().requires_grad_()
    picture = noise(1, 3, 6, 10).double().requires_grad_()
    assert gradcheck(lambda a: low_pass(a, 2.5), x)
    assert gradcheck(lambda a, b: clean_part(a, b, 3, 0.6), (x, y))
    assert gradcheck(lambda a, b: noise_part(a, b, 3, 0.6), (x, y))
    assert gradcheck(lambda z, p: clean_part_in_pixels(z, p, 2, decode, encode), (latent, picture))
