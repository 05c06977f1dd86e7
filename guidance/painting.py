"""GradOP / GradOP+: the picture, seen through the painting function f, shall be the user's painting y.

High-Fidelity Guided Image Synthesis with Latent Diffusion Models (arXiv 2211.17084, CVPR 2023):
    x* = argmin_x L(f(x), y)   s.t.   x is a picture that the model makes from the text.
f is one of guidance/painting_functions.py, by default a Gaussian blur (the paper's fast choice, sigma 7 px at 512 px);
L is the mean squared error, x = decoder(latent).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .decoding import Decoder
from .painting_functions import fit
from .painting_functions import gaussian as gaussian  # the blur by which others measure, too

PAPER_SIZE = 512  # px: the size at which the brush is given
SMALLEST_BLUR = 0.75  # latent cells: below this the blur no longer hides what a latent cell cannot show


def blur_sigma(brush: float, height: int, width: int, scale: int) -> float:
    """Return the brush in px of a decoded picture of `height` x `width` px with `scale` px per latent cell.

    `brush` is given in px at 512 px (the short side) and grows with the picture; it is never below 0.75 latent cells.
    """
    return max(brush * min(height, width) / PAPER_SIZE, SMALLEST_BLUR * scale)


def fitted(picture: Tensor, height: int, width: int) -> Tensor:
    """Resize `picture` (B, C, H, W) to `height` x `width` px: to half or less by the mean of areas, else bilinear.

    The mean of the areas is what a latent cell shows; an interpolation would blur it a second time.
    """
    if 2 * height <= picture.shape[-2] and 2 * width <= picture.shape[-1]:
        return interpolate(picture, (height, width), mode="area")
    return interpolate(picture, (height, width), mode="bilinear", antialias=True)


def trust(tolerance: float, variance: float, channels: int) -> float:
    """Return gamma, the weight of mean (z - x0hat)^2 in L + gamma * d, that weighs painting and estimate as measured.

    Minus the logarithm of p(y | z) p(z): colours differ from the painting's by `tolerance` (standard deviation, of the
    range 0 to 1), and z from the estimate x0hat by `variance` (of latents of variance 1). Both are sums over cells, the
    loss over 3 colours, the distance over `channels`. An estimate that is sure (late in the schedule) hardly moves.
    """
    return channels / 3 * tolerance**2 / variance


class Pixels:
    """The decoder of what is a picture already (B, 3, H, W): it hands it back, to be compared as a guide does."""

    name, cost, scale, calls = "pixels", "Nothing.", 1, 0

    def __call__(self, latent: Tensor) -> Tensor:
        """Return `latent`, which is the picture."""
        self.calls += 1
        return latent

    def around(self, latent: Tensor, picture: Tensor | None = None) -> Pixels:
        """Return itself: it is exact everywhere."""
        return self


class View(NamedTuple):
    """What a painting asks of pictures of one size: `function`(picture) = `target` where `weight` is."""

    function: Callable[[Tensor], Tensor]
    target: Tensor
    weight: Tensor | None


class PaintingObjective:
    """Mean squared difference between f(decoder(latent)) and the painting: latents (B, C, h, w) -> losses (B,).

    `painting` (1 or B, 3, H, W) in [0, 1]; `mask` (1 or B, 1, H, W) in [0, 1] says where the painting counts, by how
    much (None: everywhere). Both are resized to what the decoder makes. `function` is one of painting_functions.NAMES,
    `brush` its size in px at 512 px, `colours` the palette's. With `released_code` the loss is that of the paper's
    released program (there with `gaussian`): colours clamped to [0, 1], the painting not passed through f. Otherwise
    nothing is clamped (a clamp has no gradient outside) and the painting is seen through f as well, so that a perfect
    match is loss 0.
    """

    def __init__(
        self,
        decoder: Decoder,
        painting: Tensor,
        mask: Tensor | None = None,
        brush: float = 7.0,
        function: str = "gaussian",
        colours: int = 8,
        released_code: bool = False,
    ) -> None:
        self.decoder, self.brush, self.function, self.colours = decoder, brush, function, colours
        self.painting, self.mask = painting.float(), None if mask is None else mask.float()
        self.released_code = released_code
        self._views: dict[torch.Size, View] = {}  # by size; shared with every `around`

    def around(self, latent: Tensor, picture: Tensor | None = None) -> PaintingObjective:
        """Return this objective with its decoder as exact as it can be near `latent` (B, C, h, w).

        `picture` (B, 3, H, W) in [0, 1] is what `latent` shows, where that is known.
        """
        near = copy(self)
        near.decoder = self.decoder.around(latent, picture)
        return near

    def share(self) -> Tensor:
        """Return the mean of the mask, (1 or B,): how much of the picture the painting counts for."""
        return self.painting.new_ones(1) if self.mask is None else self.mask.mean((1, 2, 3))

    def __call__(self, latent: Tensor) -> Tensor:
        """Return one loss per sample of `latent` (B, C, h, w)."""
        image = self.decoder(latent)
        error, weight = self.errors(image), self.weight(image)
        if weight is None:
            return error.mean((1, 2, 3))
        return (error * weight).sum((1, 2, 3)) / (3 * weight.sum((1, 2, 3)))

    def errors(self, image: Tensor) -> Tensor:
        """Return the squared differences (B, 3, H, W) of decoded pictures `image`, without the mask."""
        function, target, _ = self._view(image)
        return (function(image.clamp(0, 1) if self.released_code else image) - target).square()

    def weight(self, image: Tensor) -> Tensor | None:
        """Return the mask (1 or B, 1, H, W) at the size of decoded pictures `image`, or None."""
        return self._view(image).weight

    def _view(self, image: Tensor) -> View:
        """Return function, painting and mask at the size, type and place of `image`; made once, they stay."""
        size = image.shape[-2:]
        if size not in self._views:
            painting = fitted(self.painting.to(image), *size)
            function = fit(self.function, painting, self._brush(size), self.colours)
            target = painting if self.released_code else function(painting)
            mask = None if self.mask is None else fitted(self.mask.to(image), *size)
            self._views[size] = View(function, target, mask)
        return self._views[size]

    def _brush(self, size: torch.Size) -> float:
        return blur_sigma(self.brush, size[0], size[1], self.decoder.scale)
