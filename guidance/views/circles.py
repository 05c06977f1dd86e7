"""Discs and rings that turn by any angle, exactly (Visual Anagrams, arXiv 2311.17919, has one that turns by 180).

A rotation is three shears (A. Paeth, A Fast Algorithm for General Raster Rotation, 1986),
    x' = x - tan(a / 2) y,   y' = y + sin(a) x',   x'' = x' - tan(a / 2) y',
and with the steps rounded each is a permutation of all pixels of the plane, half a px from the true shear at most.
The few pixels that leave the ring at its border fill the places left free there. Quarter turns are done as such.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, radians, sin, tan

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from .permutation import Permutation


@dataclass(frozen=True)
class ConcentricRings(Permutation):
    """`rows` rings of one width about the middle, turned clockwise by `angle` degrees; every second, other way.

    `size` is the diameter of the outermost, as a share of the short side. A permutation at every size and angle;
    multiples of 90 degrees are quarter turns, to the bit (of 180, where height and width differ by an odd number).
    """

    rows: int = 4
    size: float = 0.6
    angle: float = 90.0

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"There must be at least one ring, but rows is {self.rows}.")
        if not 0 < self.size <= 1:
            raise ValueError(
                f"The size of a circle is its diameter as a share of the picture's short side, above 0 and up to 1, "
                f"but it is {self.size}."
            )
        if not isfinite(self.angle):
            raise ValueError(f"The angle of a circle must be a number of degrees, but it is {self.angle}.")

    def check(self, height: int, width: int) -> None:
        """Raise ValueError if a ring would be narrower than a px."""
        radius = self.size * min(height, width) / 2
        if radius < self.rows:
            raise ValueError(
                f"{self.rows} ring(s) within a diameter of {2 * radius:.1f} px would be narrower than 1 px in a "
                f"picture {width} wide and {height} high. Choose a larger size, or fewer rows."
            )

    def in_latents(self, height: int, width: int) -> bool:
        """Tell that cells would be cut."""
        return False

    def sources(self, height: int, width: int) -> Tensor:
        """Return (height, width), int64: where each pixel of the view comes from, as y * width + x."""
        places = _from_middle(height, width)
        rings = self._ring(places, min(height, width))
        sources = torch.arange(height * width).reshape(height, width)
        for ring in range(self.rows):
            pixels = (rings == ring).nonzero()
            turned = _turned(places[rings == ring], self._angle(ring), (height - width) % 2 == 0)
            targets = (turned + places.new_tensor([height - 1, width - 1]) / 2).round().long()
            stays = self._ring(turned, min(height, width)) == ring
            free = rings == ring
            free[tuple(targets[stays].T)] = False
            middle = (ring + 0.5) / self.rows * self.size * min(height, width) / 2
            leaving = (~stays).nonzero().flatten()[_around(turned[~stays], middle)]
            targets[leaving] = free.nonzero()[_around(places[free], middle)]
            sources[tuple(targets.T)] = pixels[:, 0] * width + pixels[:, 1]
        return sources

    def between(self, image: Tensor, t: float) -> Tensor:
        """Return `image` (B, 3, H, W) with its rings on their way."""
        height, width = image.shape[-2:]
        places = _from_middle(height, width)
        rings = self._ring(places, min(height, width))
        angles = torch.tensor([self._angle(ring) for ring in range(self.rows)])[rings]
        back = torch.deg2rad(-t * angles)
        y, x = places.unbind(-1)
        source = torch.stack([x * back.cos() - y * back.sin(), x * back.sin() + y * back.cos()], -1)
        grid = (2 * source / torch.tensor([max(width - 1, 1), max(height - 1, 1)])).to(image)
        moved = grid_sample(image, grid.expand(len(image), -1, -1, -1), align_corners=True)
        return torch.where((rings >= 0).to(image.device), moved, image)

    def _angle(self, ring: int) -> float:
        return self.angle if ring % 2 == 0 else -self.angle

    def _ring(self, places: Tensor, short: int) -> Tensor:
        """Return the ring (...) of `places` (..., 2) from the middle, counted from there; -1 beyond them all."""
        distance = 2 * _distance(places) / (self.size * short)
        return torch.where(distance < 1, (distance * self.rows).long(), -1)


class InnerCircle(ConcentricRings):
    """A disc in the middle turned clockwise by `angle` degrees; `size` is its diameter, of the short side."""

    def __init__(self, size: float = 0.6, angle: float = 90.0):
        super().__init__(rows=1, size=size, angle=angle)


def _from_middle(height: int, width: int) -> Tensor:
    """Return (height, width, 2), float64: (y, x) of each pixel from the exact middle."""
    y, x = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in (height, width))
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), -1)


def _turned(places: Tensor, degrees: float, square_grid: bool) -> Tensor:
    """Return where pixels at `places` (N, 2), (y, x) from the middle, go: a permutation of the endless grid.

    On a `square_grid` quarter turns lead from pixel to pixel; on others, whose middle is that of a pixel's side, only
    half turns do.
    """
    whole = 90 if square_grid else 180
    turns = round(degrees / whole)
    angle = radians(degrees - whole * turns)
    y, x = places.unbind(-1)
    for _ in range(turns * whole // 90 % 4):
        y, x = x, -y
    x = x - (tan(angle / 2) * y).round()
    y = y + (sin(angle) * x).round()
    x = x - (tan(angle / 2) * y).round()
    return torch.stack([y, x], -1)


def _around(places: Tensor, middle: float) -> Tensor:
    """Return the order (N,) of `places` (N, 2) around the inner border of a ring, then around the outer."""
    y, x = places.unbind(-1)
    return (torch.atan2(y, x) + 10 * (_distance(places) > middle)).argsort()


def _distance(places: Tensor) -> Tensor:
    return places.square().sum(-1).sqrt()
