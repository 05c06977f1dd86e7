"""The GUIDER of visual anagrams in pixels: a latent for each view, which agree on one picture at every step.

After LookingGlass (arXiv 2504.08902). With z_i the clean estimate of the latent of view i, D and E the VAE:
    p = blend_i v_i^-1( D(z_i) ),   z_i <- E(v_i(p)) + z_i - E(D(z_i)).
The last two terms are what the autoencoder loses. So views need not make sense in latents, as negatives do not.
"""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from ...guidance.anagram import ALTERNATE, MEAN, check_size, leaves_alone, noise_as_seen, shares
from ...guidance.pyramid import blended
from ...guidance.views.protocol import View, Views
from . import gradients
from .anagram import AnagramGuider, fitted
from .decoders import check_decoder
from .encoders import Encoder


class PixelAnagramGuider(AnagramGuider):
    """Samples for each picture one latent for each view, in one batch: the first view's of all pictures first."""

    def __init__(
        self,
        model: Any,
        readings: Views,
        negative: list,
        reduction: str,
        vae: Any,
        start_percent: float,
        end_percent: float,
    ) -> None:
        """Take what the guider in latents takes, and the part of the schedule (0 to 1) in which the views agree."""
        super().__init__(model, readings, negative, reduction, vae)
        self.pixels = Pixels(vae, model)
        sampling = model.get_model_object("model_sampling")
        self._first, self._last = (
            float(sampling.percent_to_sigma(end)) for end in (start_percent, end_percent)
        )
        self._home: int | None = None  # the view that shows the picture as it is

    def check(self, height: int, width: int) -> None:
        """Raise ValueError unless the pictures of latents of this size can be seen through all views."""
        scale = self.pixels.scale
        check_size(self.readings, height * scale, width * scale, in_latents=False)

    def sample(
        self,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        callback: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Sample every picture as each view shows it, and return the pictures (B, C, h, w)."""
        self.check(*latent_image.shape[-2:])
        self._home = self._find_home(*latent_image.shape[-2:])
        noises = [noise_as_seen(view, noise, number) for number, view in enumerate(self.views)]
        if denoise_mask is not None:
            mask = comfy.sampler_helpers.prepare_mask(denoise_mask, latent_image.shape, latent_image.device)
            denoise_mask = torch.cat([self._mask_seen(view, mask[:, :1]) for view in self.views])
        return comfy.samplers.CFGGuider.sample(  # the size is checked
            self,
            torch.cat(noises),
            torch.cat(self._latents_seen(latent_image)),
            sampler,
            sigmas,
            denoise_mask,
            self._reporting(callback),
            *args,
            **kwargs,
        )

    def inner_sample(self, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Sample all views, and return the pictures: of a view that leaves them as they are, or what all agree on."""
        samples = super().inner_sample(noise, *args, **kwargs)
        if self._home is not None:
            return self._rows(samples)[self._home]
        rows = self._rows(self.inner_model.process_latent_in(samples))
        reduction = MEAN if self.reduction == ALTERNATE else self.reduction
        picture = self._common([self.pixels.decode(row) for row in rows], shares(self.asked, reduction, 0))
        return self.inner_model.process_latent_out(self.pixels.encode(picture).to(samples))

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed: Any = None):
        """Return the estimate (n B, C, h, w) of each view, which within the range agree."""
        options = model_options or {}
        own = timestep.chunk(len(self.asked))[0]
        found = self.estimates(list(range(len(self.asked))), self.seen(x), own, options)
        guided, *predicted = (list(parts) for parts in zip(*found, strict=True))
        several = len(self.readings) > 1
        if several and self._last < timestep.flatten()[0].item() <= self._first:
            guided = self._agreed(guided, self.shares_at(timestep, options))
        return self.after_cfg(
            torch.cat(guided), [torch.cat(rows) for rows in predicted], x, timestep, options
        )

    def seen(self, x: Tensor | None) -> list[Any]:
        """Return the rows of each view: what is sampled is as it sees it already."""
        return [None] * len(self.asked) if x is None else self._rows(x)

    def fixed(self, noise: Tensor) -> list[Tensor]:
        """Return the shares of the real pictures, in pixels."""
        size = [side * self.pixels.scale for side in noise.shape[-2:]]
        count = noise.shape[0] // len(self.asked)
        return [
            reading.view.inverse(fitted(reading, count, *size).to(noise.device) * 2 - 1)
            for reading in self.given
        ]

    @property
    def views(self) -> list[View]:
        """Return the views that are asked."""
        return [reading.view for reading in self.asked]

    def _agreed(self, rows: list[Tensor], weights: tuple[float, ...]) -> list[Tensor]:
        """Return estimates (B, C, h, w) of all views that show one picture, each with its own residual of the VAE."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        pictures = [self.pixels.decode(row) for row in rows]
        common = self._common(pictures, weights)
        return [
            row + (self.pixels.encode(view.view(common)) - self.pixels.encode(picture)).to(row)
            for row, view, picture in zip(rows, self.views, pictures, strict=True)
        ]

    def _common(self, pictures: list[Tensor], weights: tuple[float, ...]) -> Tensor:
        """Return the one picture (B, 3, H, W) behind the pictures that the views show."""
        if not self.views[0].component:
            return blended(pictures, self.views, weights).clamp(-1, 1)
        parts = [view.inverse(picture) for view, picture in zip(self.views, pictures, strict=True)]
        return self.reduced(parts, list(weights)).clamp(-1, 1)

    def _rows(self, x: Tensor) -> list[Tensor]:
        return list(x.chunk(len(self.asked)))

    def _find_home(self, height: int, width: int) -> int | None:
        scale = self.pixels.scale
        alone = (leaves_alone(view, height * scale, width * scale) for view in self.views)
        return next((number for number, found in enumerate(alone) if found), None)

    def _latents_seen(self, latent: Tensor) -> list[Tensor]:
        """Return what each view shows of the picture of `latent` (as in a LATENT), as latents."""
        base = self.model_patcher.model
        if not latent.count_nonzero():
            return [latent] * len(self.asked)
        picture = self.pixels.decode(base.process_latent_in(latent))
        return [
            latent
            if number == self._home
            else base.process_latent_out(self.pixels.encode(view.view(picture)).to(latent))
            for number, view in enumerate(self.views)
        ]

    def _mask_seen(self, view: View, mask: Tensor) -> Tensor:
        """Return `mask` (B, 1, h, w) as `view` shows it; views may change signs."""
        scale = self.pixels.scale
        return avg_pool2d(view.view(interpolate(mask, scale_factor=scale)).abs(), scale)

    def _reporting(self, callback: Any) -> Any:
        """Return `callback` for the rows of one view: the picture as it is, or else as the first view shows it."""
        if callback is None:
            return None
        shown = self._home or 0
        return lambda step, denoised, x, total: callback(
            step, self._rows(denoised)[shown], self._rows(x)[shown], total
        )


class Pixels:
    """The VAE as two maps between latents (B, C, h, w) of the model's space and RGB (B, 3, H, W) in [-1, 1].

    Picture by picture, so that memory is needed for one.
    """

    def __init__(self, vae: Any, model: Any) -> None:
        """Take VAE and MODEL; raise ValueError if they do not belong together."""
        self.scale = check_decoder("vae", vae, model)
        self._vae, self._encoder, self._from_model = vae, Encoder(vae, model), model.model.process_latent_out

    def decode(self, latents: Tensor) -> Tensor:
        """Return the pictures, clamped as the host does."""
        vae = self._vae
        memory = vae.memory_used_decode(latents[:1].shape, vae.vae_dtype)
        gradients.load([vae.patcher], memory, getattr(vae, "disable_offload", False))
        with torch.no_grad():
            found = [gradients.decode(vae, self._from_model(latent)) for latent in latents.split(1)]
        return torch.cat(found).to(latents.device).clamp(0, 1) * 2 - 1

    def encode(self, pictures: Tensor) -> Tensor:
        """Return the latents of the pictures, float32."""
        return torch.cat([self._encoder((picture + 1) / 2) for picture in pictures.split(1)])
