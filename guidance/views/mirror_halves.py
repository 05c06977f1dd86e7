"""Mirror halves: the left and the right half of the picture, each flipped in its place, like two doors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .moving import Moving, turned_over


@dataclass(frozen=True)
class MirrorHalves(Moving):
    """Each half of the picture mirrored about its own axis; of an odd width, the column in the middle stays."""

    def in_latents(self, height: int, width: int) -> bool:
        """Tell whether the halves hold whole cells."""
        return width % 2 == 0

    def view(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, H, W), each half mirrored."""
        left, middle, right = _halves(x)
        return torch.cat([left.flip(-1), middle, right.flip(-1)], -1)

    def inverse(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, H, W), each half mirrored back."""
        return self.view(x)

    def between(self, image: Tensor, t: float) -> Tensor:
        """Return `image` (B, 3, H, W) with both halves turning over like cards."""
        left, middle, right = _halves(image)
        return torch.cat([turned_over(left, t, False), middle, turned_over(right, t, False)], -1)


def _halves(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    half, odd = divmod(x.shape[-1], 2)
    left, middle, right = x.split([half, odd, half], -1)
    return left, middle, right
