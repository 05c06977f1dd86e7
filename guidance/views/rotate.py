"""Rotations: quarter turns, exact (Visual Anagrams, arXiv 2311.17919), and any angle, lossy."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor

from .moving import Moving, fitting, on_grey, turned


@dataclass(frozen=True)
class QuarterTurn(Moving):
    """The picture turned by `turns` quarter turns clockwise; odd ones need a square."""

    turns: int = 1

    def check(self, height: int, width: int) -> None:
        """Raise ValueError if an odd number of turns would change the shape."""
        if self.turns % 2 and height != width:
            raise ValueError(
                f"A quarter turn of a picture {width} wide and {height} high would change its shape. Use a square "
                f"one, such as {min(height, width)} x {min(height, width)}, or turn by 180 degrees."
            )

    def in_latents(self, height: int, width: int) -> bool:
        """Tell whether whole cells move: always, where it fits."""
        return self.turns % 2 == 0 or height == width

    def view(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, H, W) turned clockwise."""
        return self._turned(x, -self.turns)

    def inverse(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, H, W) turned back."""
        return self._turned(x, self.turns)

    def _turned(self, x: Tensor, counter_clockwise: int) -> Tensor:
        self.check(*x.shape[-2:])
        return torch.rot90(x, counter_clockwise, (-2, -1))

    def between(self, image: Tensor, t: float) -> Tensor:
        """Return `image` (B, 3, H, W) on its way, just small enough to keep its corners."""
        degrees = 90 * t * ((self.turns + 1) % 4 - 1)  # the short way
        return on_grey(lambda centred: turned(centred, degrees, fitting(degrees, *image.shape[-2:])), image)


@dataclass(frozen=True)
class Rotation(Moving):
    """The picture turned by any angle, `degrees` clockwise: pixels are interpolated and corners are lost.

    Noise is no longer white after it, so the readings get blurry; the inverse only leads back about.
    """

    orthogonal: ClassVar[bool] = False
    exact: ClassVar[bool] = False

    degrees: float = 45.0

    def __post_init__(self) -> None:
        if not isfinite(self.degrees):
            raise ValueError(
                f"The angle of a rotation must be a number of degrees, but it is {self.degrees}."
            )

    def in_latents(self, height: int, width: int) -> bool:
        """Tell that cells would be cut."""
        return False

    def view(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, H, W), centred at 0, turned; 0 where it does not reach."""
        return turned(x, self.degrees)

    def inverse(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, H, W), centred at 0, turned back; 0 where it does not reach."""
        return turned(x, -self.degrees)

    def reading(self, image: Tensor) -> Tensor:
        """Return `image` (B, 3, H, W) turned, with grey corners."""
        return on_grey(self.view, image)

    def between(self, image: Tensor, t: float) -> Tensor:
        """Return `image` (B, 3, H, W) on its way."""
        return on_grey(lambda centred: turned(centred, t * self.degrees), image)


def rotate(degrees: float) -> QuarterTurn | Rotation:
    """Return the view that turns clockwise by `degrees`: exact for multiples of 90, lossy for others."""
    return QuarterTurn(int(degrees // 90) % 4) if degrees % 90 == 0 else Rotation(degrees)
