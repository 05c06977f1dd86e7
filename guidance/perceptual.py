"""Perceptual guidance: the estimate takes a step down LPIPS between what it shows and a reference picture.

Perceptual Similarity guidance and text guidance optimization for Editing Real Images using Guided Diffusion Models
(arXiv 2312.06680); with the gradient through the model it is DPS (arXiv 2209.14687):
    D' = D - rho * g,    g = d LPIPS(decode(D), reference) / d (D or x),    rho = strength * cfg * rms(c - u) / rms(g)
D is the estimate x0hat after classifier-free guidance, c and u are those with and without the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .decoding import Decoder
from .painting import fitted

NORM_RATIO, RMS_CLIP = STEP_RULES = ("norm ratio", "rms clip")
SMALLEST = 64  # px: LPIPS was fitted to patches of this size
PULL_OF_NOISE = 0.3  # what cfg * rms(c - u) is of rms(x - D)
STEEPEST = 0.1  # latent units: the longest step of "rms clip" at strength 1
TINY = 1e-20  # keeps a quotient finite where nothing is left to gain


class PerceptualObjective:
    """LPIPS between what latents show and a reference: latents (B, C, h, w) -> losses (B,), differentiable.

    `reference` (1 or B, 3, H, W) in [0, 1] is resized to what `decoder` makes; `distance(first, second)` compares RGB
    (B, 3, H, W) in [0, 1], at least 32 px a side, and gives (B,).
    """

    def __init__(
        self, decoder: Decoder, distance: Callable[[Tensor, Tensor], Tensor], reference: Tensor
    ) -> None:
        self._decode, self._distance, self._reference = decoder, distance, reference
        self._target: Tensor | None = None

    def __call__(self, latent: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
        """Return the loss of each sample of `latent`.

        Where the product of `masks` (1 or B, 1, ., .) is 0 the picture is replaced by the reference: only the rest is
        compared. A network's features reach some px across that border, so they see the reference there, as it was.
        """
        picture = self._decode(latent)
        target = self._like(picture)
        if masks:
            picture = target + product(masks, picture) * (picture - target)
        return self._distance(enlarged(picture), enlarged(target))

    def _like(self, picture: Tensor) -> Tensor:
        """Return the reference at the size and place of `picture`; it is made once for each size."""
        if self._target is None or self._target.shape[-2:] != picture.shape[-2:]:
            self._target = fitted(self._reference.to(picture), *picture.shape[-2:])
        return self._target


def enlarged(picture: Tensor) -> Tensor:
    """Return `picture` (B, 3, H, W) as it is, or enlarged by a whole number so that its short side has 64 px or more.

    Bilinear. The decoder `linear` makes pictures of one px a cell, and LPIPS was fitted to patches of 64 px.
    """
    factor = ceil(SMALLEST / min(picture.shape[-2:]))
    if factor == 1:
        return picture
    return interpolate(picture, scale_factor=factor, mode="bilinear", align_corners=False)


def product(masks: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return the product of `masks` (1 or B, 1, ., .), each resized to `like` (B, C, H, W): (1 or B, 1, H, W)."""
    out = like.new_ones(1, 1, *like.shape[-2:], dtype=torch.float32)
    for mask in masks:
        out = out * fitted(mask.to(out), *like.shape[-2:])
    return out


def rms(values: Tensor, where: Tensor) -> Tensor:
    """Return the root mean square of `values` (B, C, h, w), weighted by `where` (1 or B, 1, h, w): (B, 1, 1, 1)."""
    weight = where.expand_as(values)
    power = (values.square() * weight).sum((1, 2, 3), keepdim=True)
    return (power / weight.sum((1, 2, 3), keepdim=True).clamp_min(TINY)).sqrt()


def norm_ratio(gradient: Tensor, pull: Tensor, where: Tensor) -> Tensor:
    """Return the move (B, C, h, w) down `gradient` that is as long as `pull` (B, C, h, w), as rms in `where`.

    A gradient of 0 moves nothing. `where` (1 or B, 1, h, w) in [0, 1] limits the move as well.
    """
    return where * gradient * (rms(pull, where) / rms(gradient, where).clamp_min(TINY))


def rms_clip(gradient: Tensor, strength: float, where: Tensor) -> Tensor:
    """Return the move (B, C, h, w) of `strength` times `gradient`, whose rms in `where` is clipped.

    LPIPS is a mean, so its gradient is multiplied by the elements of a latent: its rms is then of order 1, whatever
    the size. `where` (1 or B, 1, h, w) in [0, 1] limits the move as well.
    """
    steep = gradient * gradient[0].numel()
    return strength * where * steep * (STEEPEST / rms(steep, where).clamp_min(TINY)).clamp_max(1)


def pull_of_text(conditional: Tensor, unconditional: Tensor | None, cfg: float, noise: Tensor) -> Tensor:
    """Return what classifier-free guidance adds to the estimate, (B, C, h, w): cfg * (c - u), float32.

    Without `unconditional` (CFG 1) it is a share of `noise`, which the estimate took out of x: x - D.
    """
    if unconditional is None:
        return PULL_OF_NOISE * noise.float()
    return cfg * (conditional.float() - unconditional.float())


def moved(denoised: Tensor, move: Tensor) -> Tensor:
    """Return `denoised` - `move` in the dtype of `denoised`; where `move` is 0 it is `denoised` to the bit."""
    precise = torch.promote_types(denoised.dtype, torch.float32)
    return (denoised.to(precise) - move.to(precise)).to(denoised.dtype)
