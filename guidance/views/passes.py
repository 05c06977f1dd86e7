"""Hybrid pictures: one thing from afar, another from close by (Factorized Diffusion, arXiv 2404.11615).

With G_s a Gaussian blur of sigma s: low = G_s x, high = x - G_s x; of three, with r = s / 2,
    low = G_s G_r x,   middle = G_r x - G_s G_r x,   high = x - G_r x.
Published values at 64 px: s = 2 for two, r = 1 and s = 2 for three; here s is a share of the short side.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import ClassVar

from kornia.filters import gaussian_blur2d
from torch import Tensor
from torch.nn.functional import interpolate, pad

from .component import Component, Rest
from .moving import on_grey

FARTHEST = 1 / 12
"""The smallest a receding picture gets, of its size; as published."""


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Return G x of `x` (B, C, H, W), float; `sigma` is a share of the short side, borders are reflected."""
    short = min(x.shape[-2:])
    reach = min(ceil(4 * sigma * short), short - 1)
    return gaussian_blur2d(x, 2 * reach + 1, (sigma * short, sigma * short)) if reach else x


@dataclass(frozen=True)
class Pass(Component):
    """A band of frequencies; `sigma` of the blur is a share of the short side, 1/32 = 2 px at 64."""

    narrowest: ClassVar[float] = 1.0
    """The narrowest blur of its family, in `sigma`."""

    sigma: float = 1 / 32

    def __post_init__(self) -> None:
        if not 0 < self.sigma <= 0.25:
            raise ValueError(
                f"The sigma of a blur is a share of the picture's short side, above 0 and up to 0.25, but it is "
                f"{self.sigma}. 0.03 is usual."
            )

    def in_latents(self, height: int, width: int) -> bool:
        """Tell whether the blur reaches beyond a cell of the latent, so that something is left for the others."""
        return self.narrowest * self.sigma * min(height, width) >= 0.5


@dataclass(frozen=True)
class LowPass(Pass):
    """What is seen from afar: it recedes until `sigma` is 1 px, where the eye blurs as much by itself."""

    def part(self, x: Tensor) -> Tensor:
        """Return G_s `x` (B, C, H, W)."""
        return blurred(x, self.sigma)

    def frame(self, image: Tensor, t: float) -> Tensor:
        """Return RGB `image` (B, 3, H, W), smaller and smaller; at t = 1 its reading is what can be made out."""
        height, width = image.shape[-2:]
        farthest = min(1.0, max(1 / (self.sigma * min(height, width)), FARTHEST))
        size = farthest**t  # distance grows evenly
        y, x = (round(side * (1 - size) / 2) for side in (height, width))
        return on_grey(lambda centred: _receded(centred, y, x), image) if x or y else image


@dataclass(frozen=True)
class TripleLow(LowPass):
    """What is seen from afar, of three."""

    narrowest: ClassVar[float] = 0.5

    def part(self, x: Tensor) -> Tensor:
        """Return G_s G_r `x` (B, C, H, W)."""
        return blurred(blurred(x, self.sigma / 2), self.sigma)


@dataclass(frozen=True)
class TripleMiddle(Pass):
    """What is seen from half way, of three."""

    narrowest: ClassVar[float] = 0.5

    def part(self, x: Tensor) -> Tensor:
        """Return G_r `x` - G_s G_r `x` (B, C, H, W)."""
        coarse = blurred(x, self.sigma / 2)
        return coarse - blurred(coarse, self.sigma)


def triple_high(sigma: float) -> Component:
    """Return what is seen from close by, of three: x - G_r x."""
    return Rest(LowPass(sigma / 2))


def _receded(x: Tensor, y: int, x_margin: int) -> Tensor:
    """Return `x` (B, C, H, W), smaller by margins of `y` and `x_margin` px all around, which are 0."""
    height, width = x.shape[-2:]
    small = (max(height - 2 * y, 1), max(width - 2 * x_margin, 1))
    reduced = interpolate(x, small, mode="bilinear", antialias=True)
    return pad(reduced, (x_margin, width - small[1] - x_margin, y, height - small[0] - y))
