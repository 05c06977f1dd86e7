"""Blending several readings of a picture, band by band.

The Laplacian Pyramid as a Compact Image Code (Burt and Adelson, 1983): a picture is the sum of bands of detail, each
at its own resolution. LookingGlass (arXiv 2504.08902) leads each band back through the view at that resolution, so
that the seams of a view (pieces, circles) are as soft as the band is coarse. Without seams it is the plain mean.
"""

from __future__ import annotations

from collections.abc import Sequence

from kornia.geometry.transform import build_pyramid, pyrup
from torch import Tensor

from .anagram import fits, reduced
from .views.protocol import View

SMALLEST = 8  # px along a side of the coarsest band


def blended(pictures: Sequence[Tensor], views: Sequence[View], weights: Sequence[float]) -> Tensor:
    """Return the one picture (B, C, H, W) that `pictures`, as `views` show it, have in common, by their `weights`."""
    levels = _levels(views, *pictures[0].shape[-2:])
    pyramids = [bands(picture, levels) for picture in pictures]
    parts = [
        reduced([view.inverse(band) for view, band in zip(views, level, strict=True)], weights)
        for level in zip(*pyramids, strict=True)
    ]
    return rebuilt(parts)


def bands(picture: Tensor, levels: int) -> list[Tensor]:
    """Return `levels` bands of `picture` (B, C, H, W), the finest first, each half as wide as the one before.

    H and W must be multiples of 2 ** (levels - 1).
    """
    blurred = build_pyramid(picture, levels)
    return [
        *(fine - pyrup(coarse) for fine, coarse in zip(blurred[:-1], blurred[1:], strict=True)),
        blurred[-1],
    ]


def rebuilt(parts: Sequence[Tensor]) -> Tensor:
    """Return the picture (B, C, H, W) whose `bands` are `parts`."""
    *details, picture = parts
    for detail in reversed(details):
        picture = pyrup(picture) + detail
    return picture


def _levels(views: Sequence[View], height: int, width: int) -> int:
    """Return how many times the sides can be halved so that all views still fit, plus one."""
    levels = 1
    while height % 2 == width % 2 == 0 and min(height, width) >= 2 * SMALLEST:
        height, width = height // 2, width // 2
        if not all(fits(view, height, width) for view in views):
            break
        levels += 1
    return levels
