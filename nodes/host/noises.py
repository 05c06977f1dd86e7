"""The pack's own NOISE objects: what samplers of the host ask for the noise of a latent."""

from __future__ import annotations

from typing import Any

import comfy.sample
import torch
from torch import Tensor

from ...guidance.noise_statistics import blended
from ...guidance.noise_transforms import Fresh, Movement, spherical_mix, turned
from ...guidance.seeds import derived_seed


class StructuredNoise:
    """The host's NOISE that has a structure in it, and fresh noise of a seed for each picture of a batch."""

    def __init__(self, structure: Tensor, seed: int, share: float) -> None:
        """Take the structure (1 or B, C, h, w), standardised, on the CPU, and the share of fresh noise in [0, 1]."""
        self.seed, self._structure, self._share = seed, structure, share

    def generate_noise(self, latent: dict[str, Any]) -> Tensor:
        """Return the noise (B, C, h, w) for LATENT; at share 1 that of the host's RandomNoise, to the bit.

        Raises ValueError for a LATENT of another size than the structure's.
        """
        samples = latent["samples"]
        self._check(_plain(samples).shape)
        fresh = comfy.sample.prepare_noise(samples, self.seed, latent.get("batch_index"))
        return blended(self._structure, fresh, self._share)

    def _check(self, asked: torch.Size) -> None:
        own = self._structure.shape
        if len(asked) != 4 or asked[1:] != own[1:]:
            raise ValueError(
                f"The noise is for latents of {_sized(own)}, but the latent has {_sized(asked)}. Connect an empty "
                "latent of the noise's size, or make the noise for this latent."
            )
        if own[0] not in (1, asked[0]):
            raise ValueError(
                f"The noise is for {own[0]} pictures, but the latent has {asked[0]}. Set batch_size of the latent to "
                f"{own[0]}, or make the noise from one picture, which serves any number."
            )


class TransformedNoise:
    """The host's NOISE, moved. What must be filled comes from its seed, for each picture of a batch by itself."""

    def __init__(self, noise: Any, change: Movement) -> None:
        """Take the NOISE and what is done to it."""
        self.seed, self._noise, self._change = noise.seed, noise, change
        self.depth = 1 + getattr(noise, "depth", 0)  # two changes in a row must not fill in the same noise

    def generate_noise(self, latent: dict[str, Any]) -> Tensor:
        """Return the noise (B, C, ..., h, w) for LATENT.

        The inner NOISE is asked for `latent` turned back, so that what comes out is of its size after quarter turns.
        """
        samples = _plain(latent["samples"])
        before = {**latent, "samples": turned(samples, -self._change.quarters)}
        noise = self._noise.generate_noise(before).cpu()
        return self._change(noise, self._fresh(noise.shape[:-2], latent.get("batch_index")))

    def _fresh(self, leading: torch.Size, batch_index: list[int] | None) -> Fresh:
        """Return what makes white noise (*`leading`, h, w), of which each picture has its own and keeps it."""
        seed = derived_seed(self.seed, -self.depth)
        generators = [
            torch.Generator().manual_seed(derived_seed(seed, int(index)))
            for index in (range(leading[0]) if batch_index is None else batch_index)
        ]

        def fresh(height: int, width: int) -> Tensor:
            size = (*leading[1:], height, width)
            return torch.stack([torch.randn(size, generator=generator) for generator in generators])

        return fresh


class MixedNoise:
    """The host's NOISE between two others, on the arc from the first to the second; the seed is the first's."""

    def __init__(self, first: Any, second: Any, mix: float) -> None:
        """Take both NOISE and how far it is from the first (0) to the second (1)."""
        self.seed, self._noises, self._mix = first.seed, (first, second), mix
        self.depth = max(getattr(noise, "depth", 0) for noise in self._noises)

    def generate_noise(self, latent: dict[str, Any]) -> Tensor:
        """Return the noise (B, C, ..., h, w) for LATENT; raises ValueError if the two cannot be mixed."""
        first, second = (noise.generate_noise(latent).cpu() for noise in self._noises)
        return spherical_mix(first, second, self._mix)


def _plain(samples: Any) -> Tensor:
    """Return `samples` if they are of pictures (B, C, ..., h, w); raise ValueError if not."""
    if getattr(samples, "is_nested", False) or samples.ndim < 4:
        raise ValueError(
            "The latent is not one of pictures (batch, channels, height, width), so this noise does not fit it. "
            "Connect Empty Latent Image or VAE Encode, and plain Random Noise for sound or several latents at once."
        )
    return samples


def _sized(shape: torch.Size) -> str:
    """Return the size of latents (B, C, h, w) in words, or their shape if it is another."""
    if len(shape) != 4:
        return f"the shape {tuple(shape)}"
    _, channels, height, width = shape
    return f"{channels} channels, {width}x{height} cells ({8 * width}x{8 * height} px at 8 px a cell)"
