"""The GUIDER of text guidance: null text, source and edit in one batch, then the host's own CFG.

The order of the predictions is the host's: [edit, null, ...], as positive and negative, so that patches which act on
one of these (0 and 1 of `cond_or_uncond`, the first two of a pre-cfg function) find it; the source is the third.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.samplers
from torch import Tensor

from ...guidance.text_guidance import EDIT_SOURCE, text_guided, with_edit
from .predictions import telling

Conditioning = list  # the host's: [[tensor, settings], ...]
CFG_FUNCTION, PRE, POST = "sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function"
BATCH_FUNCTION = "sampler_calc_cond_batch_function"  # of others, for all predictions of a step


@dataclass(frozen=True)
class TextGuidance:
    """The widgets: scales, formula, and the part of the schedule (0 to 1) in which three predictions are made."""

    gamma: float
    beta: float
    formula: str = EDIT_SOURCE
    start_percent: float = 0.0
    end_percent: float = 1.0


class TextGuider(comfy.samplers.CFGGuider):
    """Samples the edit: text guidance within the range, the host's CFG of edit and null outside, to the bit."""

    def __init__(
        self, model: Any, source: Conditioning, edit: Conditioning, null: Conditioning, guidance: TextGuidance
    ) -> None:
        """Take the MODEL, the three CONDITIONINGs and the widgets."""
        super().__init__(model)
        self.inner_set_conds({"positive": edit, "negative": null, "source": source})
        self.guidance = guidance
        self._pair: dict[str, list] = {}
        sampling = model.get_model_object("model_sampling")
        ends = guidance.start_percent, guidance.end_percent
        self._first, self._last = (float(sampling.percent_to_sigma(end)) for end in ends)

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
        """Sample as the host; edit and null are also prepared without the source, whose areas the host gives them."""
        pair = {kind: self.conds[kind] for kind in ("positive", "negative")}
        latent = latent_image
        if latent is not None and latent.count_nonzero() > 0:
            latent = self.inner_model.process_latent_in(latent)
        self._pair = comfy.samplers.process_conds(
            self.inner_model, noise, pair, device, latent, denoise_mask, seed, **shapes
        )
        try:
            rest = denoise_mask, callback, disable_pbar, seed
            return super().inner_sample(noise, latent_image, device, sampler, sigmas, *rest, **shapes)
        finally:
            self._pair = {}

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed: Any = None):
        """Return the guided estimate (B, C, h, w)."""
        options = model_options or {}
        if self._last < timestep.flatten()[0].item() <= self._first:
            return self._guided(x, timestep, options)
        pair = self._pair["negative"], self._pair["positive"]
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, *pair, self.cfg, model_options=options, seed=seed
        )

    def _guided(self, x: Tensor, timestep: Tensor, options: dict[str, Any]) -> Tensor:
        """Return the estimate of text guidance, with the functions of others as in the host's sampling function."""
        kinds = [self.conds[kind] for kind in ("positive", "negative", "source")]
        about = {"input": x, "sigma": timestep, "model": self.inner_model, "model_options": options}
        scale = max(
            self.guidance.gamma, self.guidance.beta
        )  # how far the texts pull, for functions of others
        out = self._predictions(kinds, about)
        for change in options.get(PRE, []):
            asked = {"conds": kinds, "conds_out": out, "cond_scale": scale, "timestep": timestep}
            out = [*change(about | asked), *out[2:]][:3]  # some return only the first two
        edit, null, source = out
        estimate = self._combined(null, source, edit, about)
        told = about | {"model_options": telling(options, source, edit), "cond_scale": scale}
        told |= {"cond": kinds[0], "uncond": kinds[1], "cond_denoised": edit, "uncond_denoised": null}
        for change in options.get(POST, []):
            estimate = change(told | {"denoised": estimate})
        return estimate

    def _predictions(self, kinds: list, about: dict[str, Any]) -> list[Tensor]:
        """Return the estimates of `kinds`: one batch, where memory and their shapes allow."""
        if BATCH_FUNCTION in about["model_options"]:
            return about["model_options"][BATCH_FUNCTION](about | {"conds": kinds})
        return comfy.samplers.calc_cond_batch(
            self.inner_model, kinds, about["input"], about["sigma"], about["model_options"]
        )

    def _combined(self, null: Tensor, source: Tensor, edit: Tensor, about: dict[str, Any]) -> Tensor:
        """Return n_pred; (1) is classifier-free guidance, so a rule of others for that takes its place."""
        g, options = self.guidance, about["model_options"]
        if CFG_FUNCTION not in options:
            return text_guided(null, source, edit, g.gamma, g.beta, g.formula)
        conds = {"cond": self.conds["source"], "uncond": self.conds["negative"]}
        alone = {key: value for key, value in options.items() if key != POST}
        args = source, null, g.gamma, about["input"], about["sigma"]
        base = comfy.samplers.cfg_function(self.inner_model, *args, model_options=alone, **conds)
        return with_edit(base, null, source, edit, g.beta, g.formula)
