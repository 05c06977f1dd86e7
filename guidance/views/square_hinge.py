"""Square hinge: squares that hang together at their corners and turn (Visual Anagrams, arXiv 2311.17919)."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin

import torch

from .mosaic import Layout, Mosaic

SQUARES = 3
"""Squares along a side."""


@dataclass(frozen=True)
class SquareHinge(Mosaic):
    """3 x 3 squares, each turned in its place by a quarter: clockwise and counter-clockwise in turn.

    Of a picture that is not square, the ends of the long side stay; of a square that 3 does not divide, up to two
    rows below and columns to the right.
    """

    def check(self, height: int, width: int) -> None:
        """Raise ValueError if there are fewer than 6 px to a side, so that nothing would turn."""
        if min(height, width) < 2 * SQUARES:
            raise ValueError(
                f"A hinge of 3 x 3 squares does not fit a picture {width} wide and {height} high: both must be 6 px "
                "or more."
            )

    def in_latents(self, height: int, width: int) -> bool:
        """Tell whether the squares hold whole cells."""
        return min(height, width) % SQUARES == 0 and (height - width) % 2 == 0

    def layout(self, height: int, width: int) -> Layout:
        """Return the squares of a picture of this size."""
        whole = min(height, width)
        side, top, left = whole // SQUARES, (height - whole) // 2, (width - whole) // 2
        cell = torch.arange(SQUARES).repeat_interleave(side)
        labels = torch.full((height, width), -1)
        labels[top : top + len(cell), left : left + len(cell)] = cell[:, None] * SQUARES + cell
        row_column = torch.cartesian_prod(torch.arange(SQUARES), torch.arange(SQUARES))
        middles = 2 * (row_column * side + torch.tensor([top, left])) + side - 1
        return Layout(labels, middles, middles, 1 - 2 * (row_column.sum(1) % 2))

    def size(self, t: float) -> float:
        """Return how large the squares are at `t`: as they open, all is scaled so that it stays in the picture."""
        return 1 / (cos(pi * t / 2) + sin(pi * t / 2))
