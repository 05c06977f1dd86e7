"""How views move between the picture and their reading: cards, turns, crossfades, on a table of mid grey.

Visual Anagrams (arXiv 2311.17919) shows its pictures this way. All frames have the size of the picture, RGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from math import copysign, cos, pi, radians, sin

import torch
from kornia.geometry.transform import get_rotation_matrix2d, warp_affine
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from .protocol import View

GREY = 0.5
"""The table that shows where the picture is not: 0 of tensors centred at 0."""
EYE = 3.0
"""How far the eye is from a card that turns over, in half widths of the card."""


class Moving(View):
    """A view whose frames begin with the picture and end with its reading, both to the bit."""

    def frame(self, image: Tensor, t: float) -> Tensor:
        """Return RGB (B, 3, H, W) between `image` (t = 0) and its reading (t = 1)."""
        if t <= 0:
            return image
        return self.reading(image) if t >= 1 else self.between(image, t)

    def between(self, image: Tensor, t: float) -> Tensor:
        """Return the frame at 0 < t < 1; here a crossfade."""
        return torch.lerp(image, self.reading(image), t)


def precisely(x: Tensor) -> Tensor:
    """Return `x` in float32, or as it is if that is better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def on_grey(change: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Return what `change`, made for tensors centred at 0, makes of `image` in [0, 1]; within [0, 1] too."""
    return (change(image - GREY) + GREY).clamp(0, 1)


def turned(x: Tensor, degrees: float, scale: float = 1.0) -> Tensor:
    """Return `x` (B, C, h, w) turned clockwise about its middle by `degrees`, bilinearly; 0 where it does not reach."""
    height, width = x.shape[-2:]
    precise = precisely(x)
    middle = precise.new_tensor([[(width - 1) / 2, (height - 1) / 2]])
    matrix = get_rotation_matrix2d(
        middle, precise.new_tensor([-degrees]), precise.new_tensor([[scale, scale]])
    )
    return warp_affine(precise, matrix.expand(len(x), -1, -1), (height, width)).to(x.dtype)


def fitting(degrees: float, height: int, width: int) -> float:
    """Return how much a picture turned by `degrees` must shrink to fit where it lay: 1 at 0 and 180."""
    c, s = abs(cos(radians(degrees))), abs(sin(radians(degrees)))
    return min(width / (width * c + height * s), height / (width * s + height * c))


def turned_over(image: Tensor, t: float, vertical: bool) -> Tensor:
    """Return `image` (B, 3, H, W) as a card that has turned by `t` half turns about its axis; mirrored at t = 1.

    `vertical`: top over bottom. The card steps back as it turns, so it stays within the picture: with (u, v) on the
    card and (x, y) on the screen, in half sides, x = k c u / (1 - d u), y = k v / (1 - d u), k = 1 - d.
    """
    screen = affine_grid(torch.eye(2, 3).to(image)[None], [1, *image.shape[1:]], align_corners=False)
    x, y = (screen.flip(-1) if vertical else screen).unbind(-1)
    side = image.shape[-2 if vertical else -1]
    c = copysign(max(abs(cos(pi * t)), 1 / side), cos(pi * t))  # edge-on it is still a line
    d = sin(pi * t) / EYE
    u = (x / ((1 - d) * c + d * x)).clamp(-2, 2)
    v = y * (1 - d * u) / (1 - d)
    card = torch.stack([v, u] if vertical else [u, v], -1).expand(len(image), -1, -1, -1)
    return on_grey(lambda centred: grid_sample(centred, card, align_corners=False), image)
