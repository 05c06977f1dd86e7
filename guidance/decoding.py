"""Decoders: from latents to the colours that an objective compares. A loss never knows which one it got.

The linear decoder rests on an observation about SD-class latents: averaged over a latent cell, colour is
nearly an affine function of the cell's channels. Its map is fitted by least squares to one decode of the VAE
in use.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate


class Decoder(Protocol):
    """Turns latents (B, C, h, w) of the model's space into RGB (B, 3, h * scale, w * scale), float32,
    differentiable.

    The colours are nominally in [0, 1] and never clamped. `scale` is in px per latent cell, `cost` says in a
    sentence what a decode costs, `calls` counts the decodes done.
    """

    name: str
    cost: str
    scale: int
    calls: int

    def __call__(self, latent: Tensor) -> Tensor:
        """Return RGB of `latent`."""
        ...

    def around(self, latent: Tensor, picture: Tensor | None = None) -> Decoder:
        """Return the decoder to use near `latent`, which shows `picture` if that is known.

        It is the decoder itself, unless it is an approximation.
        """
        ...


class LinearDecoder:
    """An affine map from latent channels to RGB for every cell: `rgb = latent @ weight + offset`.

    `around(latent)` corrects the offset so that the colours are exact at `latent`, and the map serves for changes from
    there (a first-order expansion): by the picture of `latent` if it is given, else by one decode of the exact decoder,
    if there is one.
    """

    name = "linear"
    cost = "Almost free: small matrix products, and one encode of the painting by the VAE; shows no details."
    scale = 1

    def __init__(self, weight: Tensor, bias: Tensor, exact: Decoder | None = None) -> None:
        """Take `weight` (C, 3), `bias` (3,) and the decoder that the map imitates."""
        self.weight, self.offset, self.exact, self.calls = weight, bias[:, None, None], exact, 0

    def __call__(self, latent: Tensor) -> Tensor:
        """Return RGB (B, 3, h, w) of `latent` (B, C, h, w)."""
        self.calls += 1
        return self._product(latent) + self.offset.to(latent.device)

    def around(self, latent: Tensor, picture: Tensor | None = None) -> LinearDecoder:
        """Return this decoder with its offset corrected at `latent` (B, C, h, w); calls count together.

        `picture` (B, 3, H, W) in [0, 1] is what `latent` shows.
        """
        with torch.inference_mode(False), torch.no_grad():
            latent = latent.clone()
            if picture is None:
                if self.exact is None:
                    return self
                picture = self.exact(latent).clamp(0, 1)
            cells = interpolate(picture.to(latent), latent.shape[-2:], mode="area")
            return _Corrected(self, cells - self._product(latent))

    def _product(self, latent: Tensor) -> Tensor:
        dtype = torch.promote_types(latent.dtype, torch.float32)
        return torch.einsum("bchw,cr->brhw", latent.to(dtype), self.weight.to(latent.device, dtype))


class _Corrected(LinearDecoder):
    """A linear decoder with an offset of its own for every cell."""

    def __init__(self, whole: LinearDecoder, offset: Tensor) -> None:
        self.whole, self.weight, self.offset, self.exact = whole, whole.weight, offset, whole.exact

    @property
    def calls(self) -> int:
        return self.whole.calls

    @calls.setter
    def calls(self, count: int) -> None:
        self.whole.calls = count


def fit_linear(latents: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the affine map from `latents` (B, C, h, w) to the cell means of `pictures` (B, 3, H, W), H = h *
    scale.

    Returns `weight` (C, 3) and `bias` (3,), float32, on the CPU, solved there in float64 (not every GPU has
    it). Raises ValueError if the sizes do not fit.
    """
    scale = pictures.shape[-1] // latents.shape[-1]
    if pictures.shape[-2:] != (latents.shape[-2] * scale, latents.shape[-1] * scale):
        raise ValueError(
            f"The VAE made a picture of {tuple(pictures.shape[-2:])} px from a latent of "
            f"{tuple(latents.shape[-2:])} cells; the linear decoder needs whole px per cell. Choose another "
            "decoder."
        )
    colours = avg_pool2d(pictures.cpu().double(), scale).movedim(1, -1).flatten(0, -2)  # (N, 3)
    cells = latents.cpu().double().movedim(1, -1).flatten(0, -2)  # (N, C)
    affine = torch.cat([cells, torch.ones_like(cells[:, :1])], dim=1)
    solution = torch.linalg.lstsq(affine, colours).solution.float()
    return solution[:-1], solution[-1]


def colour_field(side: int, scale: int) -> Tensor:
    """Return a picture (1, 3, side, side) in [0, 1] of smooth random colours, each about four latent cells
    wide.

    Encoded and decoded once, it shows a VAE's whole range of colours: what `fit_linear` wants to see.
    """
    knots = side // (4 * scale)
    colours = torch.rand(1, 3, knots, knots, generator=torch.Generator().manual_seed(0))
    return interpolate(colours, (side, side), mode="bicubic", align_corners=False).clamp(0, 1)
