"""Spatial masks: one prompt within, another outside (Factorized Diffusion, arXiv 2404.11615)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .component import Component


@dataclass(frozen=True, eq=False)
class Mask(Component):
    """f(x) = m x; `mask` is (1, 1, H, W) in [0, 1] and is resized to whatever it meets."""

    mask: Tensor | None

    def __post_init__(self) -> None:
        if self.mask is None:
            raise ValueError(
                "The mask of a masked component is missing. Connect one, white where it shall be."
            )
        if self.mask.ndim != 4 or self.mask.shape[1] != 1:
            raise ValueError(f"A mask must be (1, 1, height, width), but it is {tuple(self.mask.shape)}.")

    def part(self, x: Tensor) -> Tensor:
        """Return m `x` (B, C, H, W)."""
        assert self.mask is not None
        with torch.inference_mode(False):  # or gradients could not flow through it
            mask = self.mask.clone().to(x)
            if mask.shape[-2:] != x.shape[-2:]:
                mask = interpolate(mask, x.shape[-2:], mode="bilinear", antialias=True)
        return mask * x
