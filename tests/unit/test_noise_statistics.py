"""Statistics of noise: standardising, blending, and spectra against white noise and against waves of one frequency."""

import math

import pytest
import torch

from guided_synthesis.guidance.noise_statistics import (
    blended,
    ring_means,
    rings,
    spectrum,
    standardised,
    white_spread,
)

SIZES = [(16, 16), (9, 24), (32, 17), (2, 3)]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_standardised_noise_has_mean_zero_and_deviation_one_in_each_picture_and_channel(size, dtype):
    found = standardised((3 + 0.2 * noise(2, 4, *size)).to(dtype))
    assert found.dtype == torch.float32
    assert found.mean((-2, -1)).abs().max() < 1e-6
    assert (found.std((-2, -1), correction=0) - 1).abs().max() < 1e-6


def test_standardising_does_not_depend_on_scale_and_offset_and_twice_is_once():
    once = standardised(noise(2, 4, 8, 8))
    assert torch.allclose(standardised(1e4 * once - 7), once, atol=1e-5)
    assert torch.allclose(standardised(once), once, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.3, float("nan"), float("inf")])
def test_a_constant_or_broken_channel_is_refused(value):
    broken = noise(2, 4, 8, 8)
    broken[1, 2] = value
    with pytest.raises(ValueError, match="same everywhere or not a number"):
        standardised(broken)


def test_the_ends_of_a_blend_are_the_fresh_noise_to_the_bit_and_the_structure():
    structure, fresh = standardised(noise(1, 4, 8, 8)), noise(3, 4, 8, 8, seed=1)
    assert torch.equal(blended(structure, fresh, 1), fresh)
    assert blended(structure, fresh.half(), 1).dtype == torch.float16
    assert torch.allclose(blended(structure, fresh, 0), structure.expand(3, -1, -1, -1), atol=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_blend_is_the_formula_and_shares_the_power(share):
    structure, fresh = standardised(noise(1, 4, 64, 64)), noise(2, 4, 64, 64, seed=1)
    found = blended(structure, fresh, share)
    by_hand = standardised(math.sqrt(1 - share) * structure + math.sqrt(share) * fresh)
    assert torch.allclose(found, by_hand, atol=1e-5)
    likeness = (found * structure).mean((-2, -1))  # correlation, since both are standardised
    assert torch.allclose(likeness, torch.full((2, 4), math.sqrt(1 - share)), atol=0.06)


@pytest.mark.parametrize("share", [-0.1, 1.01, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="choose 0 .structure only. to 1"):
        blended(noise(1, 1, 4, 4), noise(1, 1, 4, 4), share)


@pytest.mark.parametrize("size", SIZES)
def test_white_noise_has_power_one_at_all_frequencies_and_scatters_as_foretold(size):
    many, bins = noise(1500, 3, *size), max(size) // 2
    frequencies, power = spectrum(many, bins)
    spread = white_spread(many, bins)
    assert frequencies.shape == spread.shape == (bins,) and power.shape == (1500, bins)
    assert 0 < frequencies.min() and frequencies.max() <= 0.5 and (frequencies.diff() > 0).all()
    assert ((power.mean(0) - 1).abs() < 5 * spread / 1500**0.5).all()
    # of the few frequencies that are their own mirror image the power scatters more: up to twice, in tiny noise
    ratio = power.std(0) / spread
    assert ratio.min() > 0.9 and ratio.max() < (1.15 if min(size) > 8 else 1.5)


@pytest.mark.parametrize("cycles", [(0, 1), (2, 0), (3, 4), (0, 8)])
def test_a_wave_has_its_power_in_the_ring_of_its_frequency_only(cycles):
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    wave = torch.cos(2 * math.pi * (cycles[0] * y + cycles[1] * x) / 16)[None, None]
    power = spectrum(wave, 8)[1][0]
    ring = math.ceil(math.hypot(*cycles)) - 1
    assert power[ring] > 0.1 and power.sum() == pytest.approx(power[ring].item(), rel=1e-4)


def test_the_mean_of_the_noise_is_no_part_of_the_spectrum_and_power_goes_with_the_square():
    n = noise(2, 4, 12, 12)
    assert torch.allclose(spectrum(n + 5, 6)[1], spectrum(n, 6)[1], atol=1e-4)
    assert torch.allclose(spectrum(3 * n, 6)[1], 9 * spectrum(n, 6)[1], rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_the_rings_hold_all_of_the_power(size):
    n = noise(1, 1, *size).double()
    index = rings(*size, 4)
    power = torch.fft.fft2(n, norm="ortho").abs().square()
    counts = torch.bincount(index.flatten(), minlength=6)
    assert torch.allclose((ring_means(power, index, 4) * counts).sum(), n.square().sum())
    assert (index == 0).sum() == 1 and index[0, 0] == 0


@pytest.mark.parametrize("bins", [0, 9])
def test_a_number_of_bins_that_leaves_some_empty_is_refused(bins):
    with pytest.raises(ValueError, match="choose 1 to 8"):
        spectrum(noise(1, 1, 8, 16), bins)
