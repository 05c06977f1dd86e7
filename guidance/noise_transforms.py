"""Turns, flips, shifts, scales and mixes noise such that it stays the noise it was: white noise stays white.

Object saliency noise (arXiv 2205.03859, Fig. 4): where the noise is rotated or flipped, so is what is made of it.
Quarter turns, flips and whole-cell shifts are permutations. Interpolation would darken high frequencies and tie
neighbours to each other; so every other map here is orthogonal, or fresh noise makes up for what it loses:
    rotation: three shears (Paeth, Graphics Interface 1986), each a shift of rows or columns by the phases of their
    Fourier transform, on a canvas of fresh noise around the noise;
    scaling: z' = A z + (I - A A^T)^(1/2) e  with A a resampling that amplifies nothing, and e fresh noise.
If z and e are white, the covariance of z' is A A^T + I - A A^T = I. For other noise, e gets its radial spectrum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .noise_statistics import PLACES, ring_power, rings

FLIPS = {"none": (), "horizontal": (-1,), "vertical": (-2,)}
LOBES = 3  # of Lanczos' kernel on either side
RING = 4  # cells of the shorter side for each ring of a spectrum: so the lowest ring has 12 frequencies
OPPOSITE = 1e-6  # of the norm: what two unit vectors that cancel leave
ODD = 3  # makes the side of a canvas odd: then each frequency but 0 has a mirror image, and a phase
WIDER = 1 / math.cos(math.pi / 8)  # than the diagonal: where cells are between the shears, at 45 degrees

Fresh = Callable[[int, int], Tensor]
"""Makes white noise (..., height, width) with the leading dimensions of the noise in question, new at each call."""


@dataclass(frozen=True)
class Movement:
    """What is done to noise, in this order: quarter turns, flip, scale, rotation, shift. The default does nothing."""

    quarters: int = 0
    flip: str = "none"
    scale: float = 1.0
    angle: float = 0.0
    shift_x: float = 0.0
    shift_y: float = 0.0

    def __call__(self, noise: Tensor, fresh: Fresh) -> Tensor:
        """Return `noise` (..., h, w) moved: (..., w, h) after an odd number of quarter turns."""
        noise = flipped(turned(noise, self.quarters), self.flip)
        noise = rotated(scaled(noise, self.scale, fresh), self.angle, fresh)
        return shifted(noise, self.shift_x, self.shift_y)


def turned(noise: Tensor, quarters: int) -> Tensor:
    """Return `noise` (..., h, w) turned clockwise by so many `quarters`: (..., w, h) if they are odd. A permutation."""
    return noise.rot90(-quarters, PLACES)


def flipped(noise: Tensor, flip: str) -> Tensor:
    """Return `noise` (..., h, w) flipped as one of FLIPS; horizontal swaps left and right. A permutation."""
    return noise.flip(FLIPS[flip])


def shifted(noise: Tensor, x: float, y: float) -> Tensor:
    """Return `noise` (..., h, w) shifted right by `x` of its width and down by `y` of its height, in whole cells.

    What leaves on one side comes in on the other: a permutation.
    """
    height, width = noise.shape[-2:]
    return noise.roll((round(y * height), round(x * width)), PLACES)


def scaled(noise: Tensor, factor: float, fresh: Fresh) -> Tensor:
    """Return `noise` (..., h, w) enlarged by `factor` about its middle, of the same size, mean and deviation.

    Fresh noise fills what an enlarged picture has no frequencies for, and the margin around a reduced one. `factor` 1
    is `noise` itself.
    """
    if factor == 1:
        return noise
    rows, columns = (Contraction.zoom(side, factor) for side in noise.shape[-2:])
    filling = coloured(fresh(*noise.shape[-2:]), noise)
    return restored(rewhitened(loosened(noise, fresh), rows, columns, filling), noise)


def rotated(noise: Tensor, degrees: float, fresh: Fresh) -> Tensor:
    """Return `noise` (..., h, w) rotated clockwise about its middle, of the same size, mean and deviation.

    Fresh noise fills the corners. Multiples of 90 degrees are permutations where the size allows it.
    """
    quarters = round(degrees / 90)
    source, size = turned(noise, quarters), noise.shape[-2:]
    angle = math.radians(degrees - 90 * quarters)
    if not angle and source.shape == noise.shape:
        return source
    side = math.ceil(WIDER * math.hypot(*size)) // 2 * 2 + ODD
    canvas = coloured(fresh(side, side), noise)
    rows, columns = _middle(side, source)
    canvas[..., rows, columns] = loosened(source, fresh)
    rows, columns = _middle(side, noise)
    y, x = ((part.start + part.stop - 1) / 2 for part in (rows, columns))
    canvas = _sheared(canvas, -math.tan(angle / 2), y)
    canvas = _sheared(canvas.mT, math.sin(angle), x).mT
    canvas = _sheared(canvas, -math.tan(angle / 2), y)
    return restored(canvas[..., rows, columns], noise)


def _middle(side: int, noise: Tensor) -> tuple[slice, slice]:
    """Return the rows and columns of a canvas (`side`, `side`) in whose middle `noise` (..., h, w) lies."""
    top, left = ((side - length) // 2 for length in noise.shape[-2:])
    return slice(top, top + noise.shape[-2]), slice(left, left + noise.shape[-1])


def _sheared(canvas: Tensor, slope: float, middle: float) -> Tensor:
    """Return `canvas` (..., s, s), s odd, with each row shifted right by `slope` times its distance below `middle`."""
    side = canvas.shape[-1]
    shifts = slope * (torch.arange(side, dtype=torch.float64) - middle)
    phases = torch.outer(shifts, torch.fft.rfftfreq(side, dtype=torch.float64))
    return torch.fft.irfft(torch.fft.rfft(canvas) * torch.exp(-2j * math.pi * phases), n=side)


@dataclass(frozen=True)
class Contraction:
    """A map of a line of cells to one of the same length that makes no noise louder, as U diag(s) V^T in float64."""

    left: Tensor
    gains: Tensor
    right: Tensor

    @classmethod
    def zoom(cls, side: int, factor: float) -> Contraction:
        """Return the enlargement of `side` cells by `factor` about their middle (Lanczos; without aliasing below 1).

        White noise keeps its power at each frequency that there is before and after. What lies outside is 0.
        """
        cells = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
        apart = (cells[:, None] / factor - cells[None]) * min(1.0, factor)
        kernel = torch.sinc(apart) * torch.sinc(apart / LOBES) * (apart.abs() < LOBES)
        left, gains, right = torch.linalg.svd(kernel / max(factor, 1 / factor) ** 0.5)
        return cls(left, gains.clamp(max=1), right)

    def __matmul__(self, lines: Tensor) -> Tensor:
        """Return the columns of `lines` (..., side, n) float64, mapped."""
        return self.left @ (self.gains[:, None] * (self.right @ lines))


def rewhitened(noise: Tensor, rows: Contraction, columns: Contraction, fresh: Tensor) -> Tensor:
    """Return `noise` (..., h, w) mapped along columns of cells by `rows` and along rows by `columns`, float64, plus
    as much of `fresh` (..., h, w) as makes white noise of both white again.

    With A = `rows` x `columns` (Kronecker): A z + (I - A A^T)^(1/2) e, in the basis in which A A^T is diagonal.
    """
    mapped = (columns @ (rows @ noise.double()).mT).mT
    lost = (1 - torch.outer(rows.gains**2, columns.gains**2)).sqrt()
    filled = lost * (rows.left.mT @ fresh @ columns.left)
    return mapped + rows.left @ filled @ columns.left.mT


def coloured(fresh: Tensor, noise: Tensor) -> Tensor:
    """Return white noise `fresh` (..., H, W) with the radial spectrum of `noise` (..., h, w), float64.

    The mean is as strong as what varies slowest.
    """
    bins = max(1, min(noise.shape[-2:]) // RING)
    index = rings(fresh.shape[-2], fresh.shape[-1], bins).clamp(min=1)
    gains = ring_power(noise, bins).sqrt()[..., index]
    return torch.fft.ifft2(torch.fft.fft2(fresh.double()) * gains).real


def loosened(noise: Tensor, fresh: Fresh) -> Tensor:
    """Return `noise` (..., h, w), float64, with a fresh mean in place of its own.

    The mean of the whole is kept to the end (`restored`); if what is moved within the whole brought it along too, the
    two would be correlated.
    """
    precise, new = noise.double(), coloured(fresh(*noise.shape[-2:]), noise)
    return precise - precise.mean(PLACES, keepdim=True) + new.mean(PLACES, keepdim=True)


def restored(changed: Tensor, noise: Tensor) -> Tensor:
    """Return `changed` with mean, standard deviation and dtype of `noise` (both (..., h, w)), per picture and channel.

    Where `noise` is constant, so is what comes out.
    """
    precise, tiny = noise.double(), torch.finfo(torch.float64).tiny
    centred = changed - changed.mean(PLACES, keepdim=True)
    wanted, found = (
        x.square().mean(PLACES, keepdim=True).sqrt()
        for x in (precise - precise.mean(PLACES, keepdim=True), centred)
    )
    return (centred * (wanted / found.clamp(min=tiny)) + precise.mean(PLACES, keepdim=True)).to(noise.dtype)


def spherical_mix(first: Tensor, second: Tensor, mix: float) -> Tensor:
    """Return the noise on the arc from `first` (`mix` 0) to `second` (1), both (..., h, w), per picture and channel.

    The angle grows evenly and the norm goes evenly from the one's to the other's, so that noise of equal power keeps
    it. The ends are the noises themselves, to the bit. Raises ValueError for noises of different shapes, one that is
    zero everywhere, or two that are opposite: there is no arc.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"The noises to be mixed have the shapes {tuple(first.shape)} and {tuple(second.shape)}. Make both for "
            "the same latent."
        )
    if mix in (0, 1):
        return second if mix else first
    (a, a_norm), (b, b_norm) = _direction(first), _direction(second)
    apart, together = ((x.square().sum(PLACES, keepdim=True)).sqrt() for x in (a - b, a + b))
    if bool((together < OPPOSITE).any()):
        raise ValueError(
            "The noises to be mixed are opposite, so no way leads from one to the other. Choose another seed for one."
        )
    turns = 2 * torch.atan2(apart, together) / math.pi
    from_first, from_second = (
        share * torch.sinc(share * turns) / torch.sinc(turns) for share in (1 - mix, mix)
    )
    norm = (1 - mix) * a_norm + mix * b_norm
    return (norm * (from_first * a + from_second * b)).to(first.dtype)


def _direction(noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return `noise` (..., h, w) with norm 1, and its norm; raise ValueError if that is 0."""
    norm = noise.double().square().sum(PLACES, keepdim=True).sqrt()
    if bool((norm == 0).any()):
        raise ValueError(
            "A noise that is zero everywhere (Disable Noise) cannot be mixed. Connect Random Noise, or set mix to 0."
        )
    return noise.double() / norm, norm
