"""GradOP / GradOP+: the picture, seen through the painting function f, shall be the user's painting y.

High-Fidelity Guided Image Synthesis with Latent Diffusion Models (arXiv 2211.17084, CVPR 2023):
    x* = argmin_x L(f(x), y)   s.t.   x is a picture that the model makes from the text.
f is a Gaussian blur (the paper's fast choice, sigma 7 px at 512 px), L the mean squared error, x = decoder(latent).
"""

from __future__ import annotations

from copy import copy

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor
from torch.nn.functional import interpolate

from .decoding import Decoder

PAPER_SIZE = 512  # px: the size at which the blur is given
SMALLEST_BLUR = 0.75  # latent cells: below this the blur no longer hides what a latent cell cannot show
KERNEL_REACH = 2.5  # sigmas to each side: kernel 35 at sigma 7, as released


def blur_sigma(blur: float, height: int, width: int, scale: int) -> float:
    """Return the blur's sigma in px of a decoded picture of `height` x `width` px with `scale` px per latent cell.

    `blur` is given in px at 512 px (the short side) and grows with the picture; it is never below 0.75 latent cells.
    """
    return max(blur * min(height, width) / PAPER_SIZE, SMALLEST_BLUR * scale)


def gaussian(image: Tensor, sigma: float) -> Tensor:
    """Blur `image` (B, 3, H, W) with a Gaussian of `sigma` px; the border is replicated. Differentiable."""
    side = 2 * max(1, int(KERNEL_REACH * sigma)) + 1
    return gaussian_blur2d(image, (side, side), (sigma, sigma), border_type="replicate")


def fitted(picture: Tensor, height: int, width: int) -> Tensor:
    """Resize `picture` (B, C, H, W) to `height` x `width` px, bilinear, without aliasing."""
    return interpolate(picture, (height, width), mode="bilinear", antialias=True)


class PaintingObjective:
    """Mean squared difference between f(decoder(latent)) and the painting: latents (B, C, h, w) -> losses (B,).

    `painting` (1 or B, 3, H, W) in [0, 1]; `mask` (1 or B, 1, H, W) in [0, 1] says where the painting counts, by how
    much (None: everywhere). Both are resized to what the decoder makes. With `released_code` the loss is that of the
    paper's released program: colours clamped to [0, 1], the painting itself not blurred. Otherwise nothing is clamped
    (a clamp has no gradient outside) and the painting is seen through f as well, so that a perfect match is loss 0.
    """

    def __init__(
        self,
        decoder: Decoder,
        painting: Tensor,
        mask: Tensor | None = None,
        blur: float = 7.0,
        released_code: bool = False,
    ) -> None:
        self.decoder, self.blur, self.released_code = decoder, blur, released_code
        self.painting, self.mask = painting.float(), None if mask is None else mask.float()
        self._targets: dict[
            torch.Size, tuple[Tensor, Tensor | None]
        ] = {}  # by size; shared with every `around`

    def around(self, latent: Tensor) -> PaintingObjective:
        """Return this objective with its decoder as exact as it can be near `latent` (B, C, h, w)."""
        near = copy(self)
        near.decoder = self.decoder.around(latent)
        return near

    def __call__(self, latent: Tensor) -> Tensor:
        """Return one loss per sample of `latent` (B, C, h, w)."""
        image = self.decoder(latent)
        if self.released_code:
            image = image.clamp(0, 1)
        sigma = self._sigma(image)
        target, weight = self._prepared(image)
        error = (gaussian(image, sigma) - target).square()
        if weight is None:
            return error.mean((1, 2, 3))
        return (error * weight).sum((1, 2, 3)) / (3 * weight.sum((1, 2, 3)))

    def _sigma(self, image: Tensor) -> float:
        return blur_sigma(self.blur, image.shape[-2], image.shape[-1], self.decoder.scale)

    def _prepared(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return painting and mask at the size, type and place of `image`; made once, they stay for a run."""
        size = image.shape[-2:]
        if size not in self._targets:
            target = fitted(self.painting.to(image), *size)
            if not self.released_code:
                target = gaussian(target, self._sigma(image))
            self._targets[size] = target, None if self.mask is None else fitted(self.mask.to(image), *size)
        return self._targets[size]
