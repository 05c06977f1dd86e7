"""Components: linear parts f_i with sum_i f_i(x) = x, each with a prompt (Factorized Diffusion, arXiv 2404.11615).

The model sees x itself, and f_i takes from its answer what this prompt decides. Filters are not orthogonal, and need
not be: the noise in the sum of all parts is the noise of x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .moving import Moving, on_grey, precisely


class Component(Moving):
    """A part of a sum; a reader sees it upon mid grey, clipped to [0, 1]."""

    orthogonal: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    component: ClassVar[bool] = True

    def part(self, x: Tensor) -> Tensor:
        """Return f(x) of `x` (B, C, H, W) in float32 or better, centred at 0."""
        raise NotImplementedError

    def in_latents(self, height: int, width: int) -> bool:
        """Tell that latents can be filtered: a filter of space treats all their channels alike."""
        return True

    def view(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, H, W): the model sees it whole."""
        return x

    def inverse(self, x: Tensor) -> Tensor:
        """Return f(`x`) (B, C, H, W), computed in float32 or better."""
        return self.part(precisely(x)).to(x.dtype)

    def reading(self, image: Tensor) -> Tensor:
        """Return f of RGB `image` (B, 3, H, W) upon mid grey."""
        return on_grey(self.inverse, image)


@dataclass(frozen=True)
class Rest(Component):
    """What another component leaves: x - f(x)."""

    other: Component

    def in_latents(self, height: int, width: int) -> bool:
        """Tell whether the other component can be taken from latents."""
        return self.other.in_latents(height, width)

    def part(self, x: Tensor) -> Tensor:
        """Return x - f(x) of `x` (B, C, H, W)."""
        return x - self.other.part(x)
