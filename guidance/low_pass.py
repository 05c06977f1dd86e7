"""ILVR: the coarse structure of every sampling step comes from a reference picture, the rest from the model.

ILVR: Conditioning Method for Denoising Diffusion Probabilistic Models (arXiv 2108.02938), after each step:
    x_{t-1} <- x_{t-1} - A x_{t-1} + A q(y, t-1),   A = reduce by N, then enlarge by N,   q(y, t) = y, noised to t.
Here x is split as the host's samplers see it, x = clean part + sigma * unit noise. A is linear, so the formula
holds for each part by itself: the clean part takes the low frequencies of y, the noise those of fresh noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def low_pass(x: Tensor, factor: float) -> Tensor:
    """Return A x: `x` (B, C, h, w) reduced by `factor` (cells, 1 or more), then enlarged to its size again.

    Both by bicubic interpolation without aliasing (the paper's resizer). Where `factor` does not divide a side, the
    nearest whole number of cells is taken, at least one. Exactly linear; keeps a flat picture; factor 1 is `x` itself.
    """
    size = x.shape[-2:]
    small = [max(1, round(side / factor)) for side in size]
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    return _resized(_resized(precise, small), size).to(x.dtype)


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return interpolate(x, size, mode="bicubic", align_corners=False, antialias=True)


def clean_part(latent: Tensor, reference: Tensor, factor: float, strength: float = 1.0) -> Tensor:
    """Return `latent` (B, C, h, w) with `strength` (0 to 1) of its low frequencies from `reference` (1 or B, ...)."""
    return latent + strength * low_pass(reference - latent, factor)


def noise_part(noise: Tensor, fresh: Tensor, factor: float, strength: float = 1.0) -> Tensor:
    """Return unit `noise` (B, C, h, w) with its low frequencies from `fresh`; at strength 1 as in the paper.

    Below 1 the two are mixed as sqrt(1 - strength^2) : strength, so that the noise keeps its power.
    """
    kept = (1 - strength**2) ** 0.5
    return noise + low_pass(kept * noise - noise + strength * fresh, factor)


def clean_part_in_pixels(
    latent: Tensor,
    reference: Tensor,
    factor: float,
    decode: Callable[[Tensor], Tensor],
    encode: Callable[[Tensor], Tensor],
    strength: float = 1.0,
) -> Tensor:
    """Return `latent` (B, C, h, w) with the low frequencies of the picture it decodes to from `reference`.

    `reference` (1 or B, 3, H, W) and `factor` are in px; `decode` turns latents into pictures of its size, `encode`
    turns them back. What the autoencoder loses on the way there and back is added again, as LookingGlass does
    (arXiv 2504.08902): z' = E(x') + z - E(D(z)). Where nothing is changed, `latent` comes back to the bit.
    """
    picture = decode(latent)
    changed = clean_part(picture, reference, factor, strength)
    return latent + (encode(changed) - encode(picture))
