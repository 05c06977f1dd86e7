"""How close pictures come to a reference, per picture and optionally inside a mask: PSNR, SSIM, and CLIP's cosine.

PSNR = 10 log10(1 / MSE), for pixels in [0, 1].
SSIM: Image Quality Assessment: From Error Visibility to Structural Similarity (Wang et al., IEEE TIP 2004); Gaussian
window of 11 px and sigma 1.5, k1 = 0.01, k2 = 0.03, mean over pixels and channels: the defaults of torchmetrics.
CLIPScore: A Reference-free Evaluation Metric for Image Captioning (arXiv 2104.08718), scaled as in torchmetrics:
max(100 cos(image features, text features), 0).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import kornia.metrics
import torch
from torch import Tensor

WINDOW = 11  # px


@dataclass(frozen=True)
class Pair:
    """What is compared: RGB `pictures` and `reference` (B, 3, H, W) in [0, 1], `weight` (B, 1, H, W) or None."""

    pictures: Tensor
    reference: Tensor
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def singles(self) -> Iterator[Pair]:
        """Yield a Pair of one picture each: what is measured at once takes the memory of one."""
        for i in range(len(self)):
            one = slice(i, i + 1)
            yield Pair(
                self.pictures[one], self.reference[one], None if self.weight is None else self.weight[one]
            )

    def inside(self) -> Tensor:
        """Return the pictures with everything outside of the mask taken from the reference."""
        if self.weight is None:
            return self.pictures
        mixed = self.reference + self.weight * (self.pictures - self.reference)
        return torch.where(self.weight > 0, mixed, self.reference)


def paired(images: Tensor, reference: Tensor, mask: Tensor | None = None) -> Pair:
    """Return the Pair of RGB `images` (B, 3, H, W) and `reference` (1 or B, 3, H, W), `mask` (1 or B, H, W) or None.

    Colours and mask are clamped to [0, 1], as in a saved picture; NaN stays. Raises ValueError if sizes or numbers
    differ (nothing is resized, for that would be measured too), or a mask is empty.
    """
    others = {"reference": reference}
    if mask is not None:
        others["mask"] = mask.reshape(-1, 1, *mask.shape[-2:])
    for name, value in others.items():
        _check_fits(value, images, name)
    pictures, *rest = (
        value.to(images.device, torch.float32).clamp(0, 1) for value in (images, *others.values())
    )
    if mask is not None:
        _check_not_empty(rest[1])
    return Pair(pictures, *(value.expand(len(pictures), -1, -1, -1) for value in rest))


def psnr(pair: Pair) -> Tensor:
    """Return the peak signal-to-noise ratio (B,) in dB over the mask's pixels; inf for equal pictures."""
    return -10 * _mean((pair.pictures - pair.reference).square(), pair.weight).log10()


def ssim(pair: Pair) -> Tensor:
    """Return the structural similarity (B,), at most 1; with a mask the mean of its map over the mask's pixels.

    Each value of the map sees 5 px around it, also across the mask's edge. Raises ValueError below 11 px a side.
    """
    height, width = pair.pictures.shape[-2:]
    if min(height, width) < WINDOW:
        raise ValueError(
            f"SSIM compares windows of {WINDOW} px, but the pictures are {width}x{height} px: measure larger ones, or "
            "choose PSNR."
        )
    similar = kornia.metrics.ssim(pair.pictures, pair.reference, WINDOW, max_val=1.0, eps=0.0)
    return _mean(similar, pair.weight)


def cosine_score(image: Tensor, text: Tensor) -> Tensor:
    """Return 100 cos (B,) of CLIP features `image` (B, C) and `text` (1 or B, C), in float32.

    CLIPScore is the mean of that over the pictures, or 0 if that is negative.
    """
    return 100 * torch.cosine_similarity(image.float(), text.float(), dim=-1)


def _mean(errors: Tensor, weight: Tensor | None) -> Tensor:
    """Return the mean (B,) of `errors` (B, C, H, W) over all channels and the pixels of `weight` (B, 1, H, W)."""
    if weight is None:
        return errors.mean((1, 2, 3))
    counted = torch.where(weight > 0, errors.mean(1, keepdim=True) * weight, 0)  # NaN outside does not count
    return counted.sum((1, 2, 3)) / weight.sum((1, 2, 3))


def _check_fits(value: Tensor, images: Tensor, name: str) -> None:
    (height, width), (h, w) = images.shape[-2:], value.shape[-2:]
    if (h, w) != (height, width):
        raise ValueError(
            f"{name} is {w}x{h} px but images is {width}x{height} px. A metric compares pixel with pixel and resizes "
            "nothing: put Upscale Image before one of them, or crop it."
        )
    if len(value) not in (1, len(images)):
        raise ValueError(
            f"{name} has {len(value)} pictures but images has {len(images)}; give one, or one for each."
        )


def _check_not_empty(weight: Tensor) -> None:
    empty = [i + 1 for i, one in enumerate(weight) if not bool((one > 0).any())]
    if empty:
        raise ValueError(
            f"mask {empty[0]} of {len(weight)} is empty (all black), so there is nothing to measure in it. Paint white "
            "what counts, or disconnect the mask."
        )
