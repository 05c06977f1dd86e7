"""Painting functions f: what a person would paint of a picture. Each in two forms, one to steer by, one to look at.

High-Fidelity Guided Image Synthesis with Latent Diffusion Models (arXiv 2211.17084) compares f(x) with a painting y:
    gaussian         a blur; the paper's fast choice
    median palette   strokes of one brush in a few colours: median filter, then the nearest colours of a palette
    superpixel       patches of one colour that follow the edges (SLIC)
`fit` returns a differentiable f with the palette or the patches of the painting; `paint` makes a painting of a photo.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from .palette import find_palette, mix, nearest
from .superpixels import flatten_patches, patches, superpixels

NAMES = ("gaussian", "median palette", "superpixel")
KERNEL_REACH = 2.5  # sigmas to each side: kernel 35 at sigma 7, as released
FINEST_BRUSH = 4  # px: a wider brush is worked out on a reduced picture, since it shows no details anyway
WINDOWS = 2**24  # values that a median looks at together: 64 MiB
PATCH = 4  # brushes: the side of a superpixel
STROKE_END = 0.5  # brushes: how far contours of a stroke painting are rounded
EDGE = 0.5  # brushes: how far a picture is blurred before its superpixels are sought
LEAK = 0.1  # the share of the plain median: far from every other colour a palette alone has no gradient

Function = Callable[[Tensor], Tensor]


def fit(name: str, painting: Tensor, brush: float, colours: int) -> Function:
    """Return f, fitted to `painting` (1 or B, 3, H, W) in [0, 1]: pictures (B, 3, H, W) -> (B, 3, H, W).

    f is differentiable, takes any values and returns float32 (float64 for float64). `brush` is in px of these pictures:
    the sigma of `gaussian`, the reach of the median to each side, a quarter of a superpixel's side. `colours` is the
    size of the palette. Raises ValueError for an unknown `name`.
    """
    painting, brush = _precise(painting), float(brush)
    if name == "gaussian":
        return lambda pictures: gaussian(_precise(pictures), brush)
    if name == "median palette":
        return _palette_function(painting, brush, colours)
    if name == "superpixel":
        side, (height, width) = PATCH * brush, painting.shape[-2:]
        labels = superpixels(gaussian(painting, EDGE * brush), side)
        return lambda pictures: flatten_patches(_precise(pictures), labels, patches(height, width, side))
    raise ValueError(f"There is no painting function {name!r}. Choose one of {', '.join(NAMES)}.")


def paint(name: str, picture: Tensor, brush: float, colours: int) -> Tensor:
    """Return paintings (B, 3, H, W) in [0, 1] of `picture` (B, 3, H, W): hard edges, palette and patches its own.

    The arguments are those of `fit`.
    """
    picture = _precise(picture).clamp(0, 1)
    if name == "median palette":
        return torch.stack([_stroke_painting(one, float(brush), colours) for one in picture])
    return fit(name, picture, brush, colours)(picture).clamp(0, 1)


def gaussian(image: Tensor, sigma: float) -> Tensor:
    """Blur `image` (B, 3, H, W) with a Gaussian of `sigma` px; the border is replicated. Differentiable."""
    side = 2 * max(1, int(KERNEL_REACH * sigma)) + 1
    return gaussian_blur2d(image, (side, side), (sigma, sigma), border_type="replicate")


def median(image: Tensor, reach: int) -> Tensor:
    """Return the median of `image` (B, C, H, W) in windows of `reach` px to each side; the border is replicated.

    Differentiable: the gradient goes to the pixel that is the median.
    """
    side, (height, width) = 2 * reach + 1, image.shape[-2:]
    padded = pad(image, (reach,) * 4, mode="replicate")
    row = side**2 * image.shape[:2].numel() * width  # values in the windows of one row
    rows = max(1, WINDOWS // row)  # worked out in bands, since all windows together would take gigabytes
    bands = [padded[:, :, top : top + rows + 2 * reach] for top in range(0, height, rows)]
    windows = (band.unfold(2, side, 1).unfold(3, side, 1).flatten(4) for band in bands)
    return torch.cat([window.median(-1).values for window in windows], dim=2)


def _palette_function(painting: Tensor, brush: float, colours: int) -> Function:
    palettes = [find_palette(one, colours) for one in _strokes(painting, brush)]

    def function(pictures: Tensor) -> Tensor:
        strokes = _strokes(_precise(pictures), brush)
        each = palettes if len(palettes) > 1 else palettes * len(strokes)
        mixed = torch.cat(
            [mix(one[None], palette.to(one)) for one, palette in zip(strokes, each, strict=True)]
        )
        return _enlarged(torch.lerp(mixed, strokes, LEAK), _reduction(brush), *pictures.shape[-2:])

    return function


def _stroke_painting(picture: Tensor, brush: float, colours: int) -> Tensor:
    strokes = _strokes(picture[None], brush)[0]
    palette = find_palette(strokes, colours)
    labels = nearest(strokes, palette)
    best = strokes.new_full(picture.shape[-2:], -1.0)
    painting = picture
    # enlarging each colour's region, not the colours: no third colour appears between two, and contours are smooth
    for index, colour in enumerate(palette):
        region = gaussian((labels == index).to(strokes)[None, None], STROKE_END * brush / _reduction(brush))
        share = interpolate(region, picture.shape[-2:], mode="bilinear")[0, 0]
        painting = torch.where(share > best, colour[:, None, None], painting)
        best = best.maximum(share)
    return painting


def _strokes(pictures: Tensor, brush: float) -> Tensor:
    """Return the median of `pictures`, reduced by `_reduction(brush)`."""
    factor = _reduction(brush)
    small = avg_pool2d(pictures, factor, ceil_mode=True, count_include_pad=False)
    return median(small, max(1, round(brush / factor)))


def _reduction(brush: float) -> int:
    return max(1, ceil(brush / FINEST_BRUSH))


def _enlarged(pictures: Tensor, factor: int, height: int, width: int) -> Tensor:
    return pictures.repeat_interleave(factor, -2).repeat_interleave(factor, -1)[..., :height, :width]


def _precise(pictures: Tensor) -> Tensor:
    return pictures.to(torch.promote_types(pictures.dtype, torch.float32))
