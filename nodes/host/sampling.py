"""Runs the host's own sampler from a node, as its KSampler does: from the text, from a picture, and backwards.

Forward diffusion and denoising is the host's img2img (SDEdit, arXiv 2108.01073). DDIM inversion (arXiv 2010.02502)
is the host's Euler sampler on the reversed schedule, at CFG 1: it follows the sampling ODE from the picture to noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

NEARLY_ZERO = 1e-4  # the noise level at which an inversion starts; at 0 the ODE has no slope
SAMPLERS, SCHEDULERS = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS
Report = Callable[[int, Tensor, Any, int], None]


class Progress:
    """One progress bar with previews over several phases of known length."""

    def __init__(self, model: Any, total: int) -> None:
        """Show `total` steps; previews are of the latents of `model` (MODEL)."""
        self._show, self._total, self._begun = latent_preview.prepare_callback(model, total), total, 0

    def phase(self, steps: int) -> Report:
        """Return the callback (step, latent, _, _) of the next `steps` steps; samplers may report more of them."""
        first = self._begun
        self._begun += steps

        def report(step: int, latent: Tensor, x: Any = None, total: int = 0) -> None:
            self._show(first + min(step, steps - 1), latent, x, self._total)

        return report


@dataclass(frozen=True)
class HostSampler:
    """The widgets of a KSampler. Latents in and out are samples of a LATENT, (B, C, h, w)."""

    model: Any
    positive: Any
    negative: Any
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str

    def from_text(self, batch: int, height: int, width: int, seed: int, report: Report) -> Tensor:
        """Sample from an empty latent of `height` x `width` cells: the KSampler's picture to the bit."""
        channels = self.model.get_model_object("latent_format").latent_channels
        empty = torch.zeros(batch, channels, height, width)
        latent = comfy.sample.fix_empty_latent_channels(self.model, empty)
        return self._sample(latent, comfy.sample.prepare_noise(latent, seed), 1.0, seed, report)

    def from_picture(self, latent: Tensor, denoise: float, seed: int, report: Report) -> Tensor:
        """Noise `latent` to the level of `denoise` and sample: img2img."""
        return self._sample(latent, comfy.sample.prepare_noise(latent, seed), denoise, seed, report)

    def from_noisy(self, latent: Tensor, denoise: float, seed: int, report: Report) -> Tensor:
        """Sample from `latent` as it is, which has the noise of the level of `denoise`."""
        return self._sample(latent, _no_noise(latent), denoise, seed, report)

    def inverted(self, latent: Tensor, denoise: float, report: Report) -> Tensor:
        """Follow the ODE of the positive prompt (CFG 1) from `latent` up to the noise level of `denoise`."""
        sigmas = self._schedule(denoise).sigmas.flip(0)
        sigmas[0] = NEARLY_ZERO
        return comfy.sample.sample_custom(
            self.model,
            _no_noise(latent),
            1.0,
            comfy.samplers.sampler_object("euler"),
            sigmas,
            self.positive,
            self.negative,
            latent,
            callback=report,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        )

    def _schedule(self, denoise: float) -> comfy.samplers.KSampler:
        names = {"sampler": self.sampler_name, "scheduler": self.scheduler}
        return comfy.samplers.KSampler(
            self.model, steps=self.steps, device=self.model.load_device, denoise=denoise, **names
        )

    def _sample(self, latent: Tensor, noise: Tensor, denoise: float, seed: int, report: Report) -> Tensor:
        return comfy.sample.sample(
            self.model,
            noise,
            self.steps,
            self.cfg,
            self.sampler_name,
            self.scheduler,
            self.positive,
            self.negative,
            latent,
            denoise=denoise,
            callback=report,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )


def _no_noise(latent: Tensor) -> Tensor:
    return torch.zeros_like(latent, device="cpu")
