"""How far noise is from the white Gaussian noise that diffusion models start from, and how to bring it back.

White noise of standard deviation 1 has power 1 at every frequency and normally distributed values. Noise that was
optimised or moved has neither by itself. Blending, after METHODS of object saliency noise (arXiv 2205.03859, Algorithm
1, brought to latents):  z' = sqrt(1 - m) z + sqrt(m) n,  then mean 0 and standard deviation 1 per channel.
"""

from __future__ import annotations

import torch
from torch import Tensor

CONSTANT = 1e-6  # of the largest value: less spread than that is rounding
PLACES = (-2, -1)


def standardised(noise: Tensor) -> Tensor:
    """Return `noise` (..., h, w) with mean 0 and (population) standard deviation 1 per picture and channel, float32.

    Raises ValueError if a channel is constant or not finite.
    """
    precise = noise.double()
    centred = precise - precise.mean(PLACES, keepdim=True)
    spread = centred.square().mean(PLACES, keepdim=True).sqrt()
    if not bool((spread > CONSTANT * precise.abs().amax(PLACES, keepdim=True)).all()):
        raise ValueError(
            "A channel of the noise is the same everywhere or not a number, so it cannot be brought to a standard "
            "deviation of 1. Choose another seed, or fewer steps of what makes the noise."
        )
    return (centred / spread).float()


def blended(structure: Tensor, noise: Tensor, share: float) -> Tensor:
    """Return standardised(sqrt(1 - m) `structure` + sqrt(m) `noise`), m = `share` in [0, 1], as (B, C, h, w) float32.

    `noise` (B, C, h, w) is fresh, `structure` (1 or B, C, h, w) is standardised. Share 1 is `noise` itself, share 0 the
    structure. Raises ValueError for a share outside of [0, 1], or if what comes out is constant.
    """
    if not 0 <= share <= 1:
        raise ValueError(
            f"The share of fresh noise is {share:g}; choose 0 (structure only) to 1 (noise only)."
        )
    if share == 1:
        return noise
    return standardised((1 - share) ** 0.5 * structure.double() + share**0.5 * noise.double())


def spectrum(noise: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Return the radial power spectrum of `noise` (B, C, h, w): frequencies (bins,), mean power (B, bins), float32.

    A bin is a ring of the width 0.5 / `bins` cycles per cell, up to 0.5; its frequency is the mean of what lies in it.
    The mean of the noise (frequency 0) is left out, channels are averaged. White noise of standard deviation 1 has
    about 1 everywhere. Raises ValueError if there are more bins than half of the longer side: some would be empty.
    """
    height, width = noise.shape[-2:]
    if not 1 <= bins <= max(height, width) // 2:
        raise ValueError(
            f"{bins} bins do not fit the spectrum of {width}x{height} cells; choose 1 to {max(height, width) // 2}."
        )
    index, own = rings(height, width, bins), slice(1, bins + 1)
    power = ring_power(noise, bins).flatten(1, -2).mean(1)
    return ring_means(radii(height, width), index, bins)[own].float(), power[..., own].float()


def white_spread(noise: Tensor, bins: int) -> Tensor:
    """Return the standard deviation of the values of `spectrum` in white noise of the size of `noise`, (bins,) float32.

    `noise` is (B, C, h, w), the spread that of one picture: a ring of n frequencies, which come in pairs of the same
    power, has sqrt(2 / (n C)).
    """
    index = rings(noise.shape[-2], noise.shape[-1], bins)
    counts = torch.bincount(index.flatten())[1 : bins + 1]
    return (2 / (counts * noise[0].flatten(0, -3).shape[0])).sqrt()


def radii(height: int, width: int) -> Tensor:
    """Return how far each frequency of a Fourier transform is from 0, (height, width) float64, in cycles per cell."""
    vertical, horizontal = (torch.fft.fftfreq(side, dtype=torch.float64) for side in (height, width))
    return torch.hypot(vertical[:, None], horizontal[None])


def rings(height: int, width: int, bins: int) -> Tensor:
    """Return the ring that each frequency lies in, (height, width) int64.

    0 is frequency 0, 1 to `bins` are rings of equal width up to 0.5 cycles per cell, `bins` + 1 is what lies beyond.
    """
    rounding = 1e-9  # a frequency on the edge of two rings belongs to the lower one
    return (2 * bins * radii(height, width) - rounding).ceil().clamp(0, bins + 1).long()


def ring_power(noise: Tensor, bins: int) -> Tensor:
    """Return the mean power of `noise` (..., h, w) in each of the `rings`, (..., `bins` + 2) float64."""
    power = torch.fft.fft2(noise.double(), norm="ortho").abs().square()
    return ring_means(power, rings(noise.shape[-2], noise.shape[-1], bins), bins)


def ring_means(values: Tensor, index: Tensor, bins: int) -> Tensor:
    """Return the mean of `values` (..., h, w) in each of the rings `index` (h, w), (..., `bins` + 2); 0 if empty."""
    flat, index = values.flatten(-2), index.flatten().to(values.device)
    counts = torch.bincount(index, minlength=bins + 2)
    sums = flat.new_zeros(*flat.shape[:-1], bins + 2).index_add(-1, index, flat)
    return sums / counts.clamp(min=1)
