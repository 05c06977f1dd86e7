"""The GUIDER of visual anagrams in latents: all views in one call of the host, its CFG on each, one estimate of all.

One call: the views of x lie on top of each other in one tall latent, and the conditions of each have its part of it as
their area. So the host cuts every view out, batches as many as memory allows and puts the estimates back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import comfy.conds
import comfy.samplers
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP, get_all_wrappers
from torch import Tensor

from ...guidance.anagram import check_size, reduced, shares, step_of
from ...guidance.views.protocol import Reading, Views
from . import checks
from .encoders import Encoder

KINDS = ("positive", "negative")
CALCULATE, PRE = "sampler_calc_cond_batch_function", "sampler_pre_cfg_function"
POST = "sampler_post_cfg_function"
COUNTED = ("strength", "mask_strength", "default", "mask", "area")  # of a condition: all in `mult`, below
Conditions = list[dict]


class AnagramGuider(comfy.samplers.CFGGuider):
    """Samples a picture, each view of which follows its own prompt; one identity view is the host's CFG, to the bit."""

    def __init__(self, model: Any, readings: Views, negative: list, reduction: str, vae: Any = None) -> None:
        """Take the MODEL, readings as `counting` gives them, the common negative, and the VAE for real pictures."""
        super().__init__(model)
        self.readings, self.reduction = readings, reduction
        self.asked = tuple(reading for reading in readings if reading.reference is None)
        self.given = tuple(reading for reading in readings if reading.reference is not None)
        self._vae = vae
        self._views: list[list[Conditions]] = []  # of each that is asked: positive and negative, prepared
        self._fixed: list[Tensor] = []  # the shares of real pictures
        for number, reading in enumerate(self.asked):
            texts = reading.positive, negative if reading.negative is None else reading.negative
            self.inner_set_conds({_key(kind, number): text for kind, text in zip(KINDS, texts, strict=True)})

    def sample(self, noise: Tensor, latent_image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Check the size, then sample as the host: (B, C, h, w)."""
        self.check(*latent_image.shape[-2:])
        return super().sample(noise, latent_image, *args, **kwargs)

    def check(self, height: int, width: int) -> None:
        """Raise ValueError unless latents of this size can be seen through all views."""
        check_size(self.readings, height, width, in_latents=True)

    def inner_sample(
        self,
        noise: Tensor,
        latent_image: Tensor | None,
        device: Any,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None,
        callback: Any,
        disable_pbar: bool,
        seed: int | None,
        **shapes: Any,
    ) -> Tensor:
        """Sample as the host, with the conditions of each view prepared for what is seen there."""
        conds = self.conds
        latent = latent_image
        if latent is not None and latent.count_nonzero() > 0:
            latent = self.inner_model.process_latent_in(latent)
        seen = zip(*(self.seen(part) for part in (noise, latent, denoise_mask)), strict=True)
        try:
            self._views = [
                self._prepared(conds, number, *parts, device, seed, shapes)
                for number, parts in enumerate(seen)
            ]
            self._fixed = self.fixed(noise)
            self.conds = {kind: conds[kind] for kind in KINDS}
            rest = denoise_mask, callback, disable_pbar, seed
            return super().inner_sample(noise, latent_image, device, sampler, sigmas, *rest, **shapes)
        finally:
            self.conds, self._views, self._fixed = conds, [], []

    def seen(self, x: Tensor | None) -> list[Any]:
        """Return what every view that is asked shows of `x` (B, C, h, w)."""
        return [None if x is None else reading.view.view(x) for reading in self.asked]

    def fixed(self, noise: Tensor) -> list[Tensor]:
        """Return the shares of the real pictures in latents like `noise`."""
        if not self.given:
            return []
        encode = Encoder(self._vae, self.model_patcher)
        size = [side * encode.pixels_per_cell for side in noise.shape[-2:]]
        pictures = (fitted(reading, noise.shape[0], *size).to(noise.device) for reading in self.given)
        return [
            reading.view.inverse(encode(picture)).to(noise)
            for reading, picture in zip(self.given, pictures, strict=True)
        ]

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed: Any = None):
        """Return the one estimate (B, C, h, w) of all views."""
        options = model_options or {}
        weights = self.shares_at(timestep, options)
        wanted = [number for number, weight in enumerate(weights) if weight]
        seen = self.seen(x)
        found = self.estimates(wanted, [seen[number] for number in wanted], timestep, options)

        def one(parts: tuple[Tensor, ...]) -> Tensor:
            views = (self.asked[number].view for number in wanted)
            back = [view.inverse(part) for view, part in zip(views, parts, strict=True)]
            return self.reduced(back, [weights[number] for number in wanted])

        guided, *predicted = (one(parts) for parts in zip(*found, strict=True))
        return self.after_cfg(guided, predicted, x, timestep, options)

    def shares_at(self, timestep: Tensor, options: dict[str, Any]) -> tuple[float, ...]:
        """Return the shares of the views that are asked."""
        sigmas = options["transformer_options"]["sample_sigmas"].tolist()
        step = step_of(timestep.flatten()[0].item(), sigmas)
        return shares(self.asked, self.reduction, step)

    def reduced(self, parts: list[Tensor], weights: list[float]) -> Tensor:
        """Return the sum of what the views make of the picture, and of what real pictures do."""
        return reduced([*parts, *self._fixed], [*weights, *[1.0] * len(self._fixed)])

    def estimates(
        self, numbers: list[int], seen: list[Tensor], sigma: Tensor, options: dict[str, Any]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return the host's CFG, and what it is of, for the views of these numbers, which see `seen`.

        Positive and negative prediction; (B, C, h, w) all.
        """
        unguided = math.isclose(self.cfg, 1.0) and not options.get("disable_cfg1_optimization", False)
        conds = [self._views[number] for number in numbers]
        asked = [[positive, None if unguided else negative] for positive, negative in conds]
        found = predictions(self.inner_model, asked, seen, sigma, options)
        return [
            self._guided(kinds, out, x, sigma, options)
            for kinds, out, x in zip(asked, found, seen, strict=True)
        ]

    def _guided(
        self, kinds: list[Conditions | None], out: list[Tensor], x: Tensor, sigma: Tensor, options: dict
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the host's CFG of the predictions `out` of one view, with the functions of others around it."""
        options = {**options, POST: [change for change in options.get(POST, []) if change in self._patches()]}
        about = {"conds": kinds, "cond_scale": self.cfg, "timestep": sigma, "sigma": sigma, "input": x}
        about |= {"model": self.inner_model, "model_options": options}
        for change in options.get(PRE, []):
            out = change(about | {"conds_out": out})
        named = {"model_options": options, "cond": kinds[0], "uncond": kinds[1]}
        guided = comfy.samplers.cfg_function(self.inner_model, out[0], out[1], self.cfg, x, sigma, **named)
        return guided, out[0], out[1]

    def after_cfg(
        self, guided: Tensor, predicted: list[Tensor], x: Tensor, sigma: Tensor, options: dict[str, Any]
    ) -> Tensor:
        """Return what the sampler's own functions after CFG make of it: they look at the picture, not at its views."""
        about = {"cond_denoised": predicted[0], "uncond_denoised": predicted[1], "cond_scale": self.cfg}
        about |= {"input": x, "sigma": sigma, "model": self.inner_model, "model_options": options}
        about |= dict(zip(("cond", "uncond"), self._views[0], strict=True))
        for change in options.get(POST, []):
            if change not in self._patches():
                guided = change(about | {"denoised": guided})
        return guided

    def _patches(self) -> list[Any]:
        """Return the functions after CFG of the model's patches."""
        return self.model_options.get(POST, [])

    def _prepared(
        self,
        conds: dict[str, Conditions],
        number: int,
        noise: Tensor,
        latent: Tensor | None,
        mask: Tensor | None,
        device: Any,
        seed: int | None,
        shapes: dict[str, Any],
    ) -> list[Conditions]:
        """Return positive and negative of a view as the host prepares them for what is seen there."""
        own = {kind: conds[_key(kind, number)] for kind in KINDS}
        shapes = {name: [noise.shape] for name in shapes}
        found = comfy.samplers.process_conds(
            self.inner_model, noise, own, device, latent, mask, seed, **shapes
        )
        return [found[kind] for kind in KINDS]


def predictions(
    model: Any,
    conds: list[list[Conditions | None]],
    seen: list[Tensor],
    sigma: Tensor,
    options: dict[str, Any],
) -> list[list[Tensor]]:
    """Return the estimates of the host, for each view as many as it has kinds of conditions: (B, C, h, w) each.

    All views are one call, except where another pack handles the calls: it then gets one for each view, as ever.
    """
    if CALCULATE in options:
        about = {"sigma": sigma, "model": model, "model_options": options}
        return [
            options[CALCULATE](about | {"conds": kinds, "input": x})
            for kinds, x in zip(conds, seen, strict=True)
        ]
    wrapped = get_all_wrappers(WrappersMP.CALC_COND_BATCH, options, is_model_options=True)
    if len(seen) == 1 or wrapped or options.get("context_handler") is not None:
        return [
            comfy.samplers.calc_cond_batch(model, kinds, x, sigma, options)
            for kinds, x in zip(conds, seen, strict=True)
        ]
    tall, count = torch.cat(seen, dim=2), len(seen)
    together = [_stacked(kinds, seen, sigma) for kinds in zip(*conds, strict=True)]
    found = comfy.samplers.calc_cond_batch(model, together, tall, sigma, options)
    parts = ([part.contiguous() for part in kind.chunk(count, dim=2)] for kind in found)
    return [list(of_view) for of_view in zip(*parts, strict=True)]


def fitted(reading: Reading, count: int, height: int, width: int) -> Tensor:
    """Return the real picture of a reading for `count` pictures of this size, cropped to its shape: (B, 3, H, W)."""
    checks.batch(reading.reference.shape[0], count, "reference")
    picture = comfy.utils.common_upscale(reading.reference, width, height, "bicubic", "center").clamp(0, 1)
    return picture.expand(count, -1, -1, -1)


def _key(kind: str, number: int) -> str:
    """Return what the host calls the conditions of a view: the first's as ever, for patches that look at them."""
    return f"{kind} {number}" if number else kind


def _stacked(kinds: tuple[Conditions | None, ...], seen: list[Tensor], sigma: Tensor) -> Conditions | None:
    """Return the conditions of one kind of all views, for the tall latent."""
    if kinds[0] is None:
        return None
    return [
        _placed(part, place, len(seen), *x.shape[-2:])
        for place, (entries, x) in enumerate(zip(kinds, seen, strict=True))
        for part in _parts(entries, x, sigma)
    ]


@dataclass(frozen=True)
class _Part:
    """A prepared condition and where it counts within its view, as the host says: `mult` there, else nothing."""

    entry: dict
    rows: slice
    columns: slice
    mult: Tensor  # (B, C, rows, columns)
    cut: dict[str, Any]  # its inputs of the model, cut to its area


def _parts(entries: Conditions, x: Tensor, sigma: Tensor) -> list[_Part]:
    """Return the conditions that count at `sigma` in a view that sees `x` (B, C, h, w).

    Those marked as default get what the others leave.
    """
    found, left = [], torch.ones_like(x)
    for entry in sorted(entries, key=lambda entry: "default" in entry):
        host = comfy.samplers.get_area_and_mult(entry, x, sigma)
        if host is None:
            continue
        high, wide, top, start = host.area or (*x.shape[-2:], 0, 0)
        rows, columns = slice(top, top + high), slice(start, start + wide)
        mult = left[..., rows, columns].relu() if "default" in entry else host.mult
        found.append(_Part(entry, rows, columns, mult, host.conditioning))
        if "default" not in entry:
            left[..., rows, columns] -= mult
    return found


def _placed(part: _Part, place: int, count: int, height: int, width: int) -> dict:
    """Return the condition for the view's place in a tall latent of `count` views: what counts is a mask there."""
    rows = slice(place * height + part.rows.start, place * height + part.rows.stop)

    def in_place(inner: Tensor) -> Tensor:
        tall = inner.new_zeros(*inner.shape[:-2], count * height, width)
        tall[..., rows, part.columns] = inner
        return tall

    inputs = part.entry["model_conds"]
    shaped = {name for name, cond in inputs.items() if isinstance(cond, comfy.conds.CONDNoiseShape)}
    moved = {name: type(inputs[name])(in_place(part.cut[name].cond)) for name in shaped}
    columns = part.columns
    return {key: value for key, value in part.entry.items() if key not in COUNTED} | {
        "area": (rows.stop - rows.start, columns.stop - columns.start, rows.start, columns.start),
        "mask": in_place(part.mult[:, 0]),
        "model_conds": inputs | moved,
    }
