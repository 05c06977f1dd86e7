"""Views that fail, kept to teach why a view must be orthogonal (Visual Anagrams, arXiv 2311.17919)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .moving import Moving, on_grey, precisely
from .passes import Pass, blurred
from .rotate import Rotation

WARMTH = 0.5
"""How far the gains of a white balance are from 1, at most."""


@dataclass(frozen=True)
class Rotation135(Rotation):
    """The picture turned by 135 degrees."""

    experimental: ClassVar[str] = (
        "Between pixels it must interpolate, which makes neighbouring noise alike: the model takes the noise for "
        "blur, and the readings come out smooth and poor in detail."
    )

    degrees: float = 135.0


@dataclass(frozen=True)
class Blur(Moving):
    """The picture blurred; `sigma` is a share of the short side. The inverse sharpens: 2 x - G x."""

    orthogonal: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    experimental: ClassVar[str] = (
        "A blur takes the fine part of the noise away, so the model sees noise it was never trained on, and what is "
        "lost cannot be brought back: the readings dissolve. For something to be seen from afar use low and high pass."
    )

    sigma: float = 1 / 32

    def __post_init__(self) -> None:
        Pass(self.sigma)

    def in_latents(self, height: int, width: int) -> bool:
        """Tell that noise in a latent would be lost too."""
        return False

    def view(self, x: Tensor) -> Tensor:
        """Return G `x` (B, C, H, W)."""
        return blurred(precisely(x), self.sigma).to(x.dtype)

    def inverse(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, H, W), sharpened."""
        precise = precisely(x)
        return (2 * precise - blurred(precise, self.sigma)).to(x.dtype)

    def between(self, image: Tensor, t: float) -> Tensor:
        """Return RGB `image` (B, 3, H, W), more and more blurred."""
        return blurred(image, t * self.sigma)


@dataclass(frozen=True)
class WhiteBalance(Moving):
    """The first channels stronger and the last ones weaker, centred at 0: gains 1.5, 1 and 0.5 for RGB."""

    orthogonal: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    experimental: ClassVar[str] = (
        "It makes the noise stronger in one channel and weaker in another, so the model takes it for the noise of "
        "another step: the readings get false colours and stains."
    )

    def in_latents(self, height: int, width: int) -> bool:
        """Tell that the channels of a latent are no colours."""
        return False

    def view(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, H, W), channel by channel stronger or weaker."""
        return (precisely(x) * _gains(x)).to(x.dtype)

    def inverse(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, H, W) as it was, but for rounding."""
        return (precisely(x) / _gains(x)).to(x.dtype)

    def reading(self, image: Tensor) -> Tensor:
        """Return RGB `image` (B, 3, H, W) with the gains, clipped to [0, 1]."""
        return on_grey(self.view, image)


def _gains(x: Tensor) -> Tensor:
    gains = torch.linspace(1 + WARMTH, 1 - WARMTH, x.shape[1], device=x.device, dtype=precisely(x).dtype)
    return gains[:, None, None]
