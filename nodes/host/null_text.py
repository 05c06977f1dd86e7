"""Null-text optimisation in the host's sampling: a SAMPLER that fits the negative's text at each step of a trajectory.

It runs in the host's guider like any other sampler, so LoRAs, ControlNets, masks, SDXL's size conditions and patches
act as they will when the found texts are used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.conds
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...guidance.null_text import Descent, Found, Target, optimise
from ...guidance.trajectory import Trajectory
from .gradients import calc_conds, checkpointed, control_networks, differentiable, memory_advice
from .prompts import PROMPT_KEY
from .restarts import check_interrupt

OUT_OF_MEMORY = (
    "Null-Text Optimisation had no room for its gradients: invert a smaller picture, or fewer at once."
)
TIMES = ("start_percent", "end_percent")
SHARED = {"control": "control_apply_to_uncond", "gligen": ""}  # of a positive that says so, or in any case
HALVINGS = 60  # of an interval: more than the digits of a float64


class NullTextSampler(comfy.samplers.Sampler):
    """Follows a trajectory with a text of its own at each step; what it finds stays in `texts` and `residuals`."""

    guides_its_passes = True  # a guide that moves the estimate would take it off the trajectory

    def __init__(self, trajectory: Trajectory, descent: Descent) -> None:
        """Take the TRAJECTORY to follow and how to search."""
        self.trajectory, self.descent = trajectory, descent
        self.texts: list[Tensor] = []
        self.residuals: list[Tensor] = []

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Return where the trajectory's start leads with the texts found; the host's noise and latent are not used."""
        self.texts, self.residuals = [], []  # some patches of the model sample more than once
        pivots = self.trajectory.latents.to(noise.device, torch.float32)
        x, text = pivots[0], None
        for index in tqdm(range(len(sigmas) - 1), disable=disable_pbar):
            target = Target(x, sigmas[index], sigmas[index + 1], pivots[index + 1])
            step = _Step(model_wrap, extra_args["model_options"], target)
            text = step.text() if text is None else text
            with memory_advice(OUT_OF_MEMORY):
                found = optimise(text, step.estimate, target, self.descent, index, check_interrupt)
            self._keep(found, target)
            x, text = target.step(found.denoised), found.text
            if callback is not None:
                callback(index, found.denoised, x, len(sigmas) - 1)
        return model_wrap.inner_model.model_sampling.inverse_noise_scaling(sigmas[-1], x)

    def _keep(self, found: Found, target: Target) -> None:
        self.texts.append(found.text.cpu())
        self.residuals.append(target.residuals(found.denoised).cpu())


class _Step:
    """The model at one step of a guider's run."""

    def __init__(self, guider: Any, model_options: dict[str, Any], target: Target) -> None:
        self.guider, self.model, self.options = guider, guider.inner_model, model_options
        self.x, self.sigma = target.x, target.sigma.expand(len(target.x))
        self.positive, (self.negative,) = guider.conds["positive"], guider.conds["negative"]
        self.networks = self.model.diffusion_model, *control_networks([self.negative])
        with torch.no_grad():
            self.conditional = calc_conds(
                self.model, [self.positive, None], self.x, self.sigma, self.options
            )[0]

    def text(self) -> Tensor:
        """Return the negative's own text (B, T, D), float32."""
        own = self.negative["model_conds"]["c_crossattn"].cond
        return comfy.utils.repeat_to_batch_size(own.to(self.x), len(self.x))

    def estimate(self, text: Tensor) -> Tensor:
        """Return x0hat (B, C, h, w) after guidance if the negative says `text` (B, T, D); differentiable in it."""
        model_conds = self.negative["model_conds"] | {"c_crossattn": comfy.conds.CONDCrossAttn(text)}
        negative = [self.negative | {"model_conds": model_conds}]
        with differentiable(), checkpointed(*self.networks):
            x, conditional = self.x.clone(), self.conditional.clone()
            unconditional = calc_conds(self.model, [None, negative], x, self.sigma, self.options)[1]
            return self.guided([conditional, unconditional], negative, x).float()

    def guided(self, estimates: list[Tensor], negative: list[dict], x: Tensor) -> Tensor:
        """Return the estimate after guidance of the conditional and the unconditional one, as the host's sampler."""
        about = {"cond_scale": self.guider.cfg, "timestep": self.sigma, "model_options": self.options}
        both = {"conds": [self.positive, negative], "input": x, "sigma": self.sigma, "model": self.model}
        for change in self.options.get("sampler_pre_cfg_function", []):
            estimates = change(about | both | {"conds_out": estimates})
        arguments = (*estimates, self.guider.cfg, x, self.sigma, self.options)
        return comfy.samplers.cfg_function(self.model, *arguments, cond=self.positive, uncond=negative)


def optimise_null_text(
    model: Any, positive: list, negative: list, cfg: float, trajectory: Trajectory, descent: Descent
) -> tuple[Tensor, Tensor]:
    """Return the unconditional texts (S, B, T, D) of `trajectory` and what they miss it by (S, B), float32, CPU.

    `positive` is CONDITIONING, `negative` that of `prepared`. The second is the root mean square miss at each step.
    """
    start = model.model.process_latent_out(trajectory.latents[0].float())
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    sampler = NullTextSampler(trajectory, descent)
    report = latent_preview.prepare_callback(model, trajectory.steps)
    quiet = not comfy.utils.PROGRESS_BAR_ENABLED
    noise = torch.zeros_like(start)
    guider.sample(noise, start, sampler, trajectory.sigmas, callback=report, disable_pbar=quiet, seed=0)
    return torch.stack(sampler.texts), torch.stack(sampler.residuals)


def prepared(negative: list, positive: list) -> list:
    """Return the one entry of `negative` (CONDITIONING) as it is to be fitted.

    It is active at all steps, without the words that its text will no longer say, and with the ControlNet (or GLIGEN)
    of `positive` that the host would give to the first of several negatives only. Raises ValueError for several.
    """
    if len(negative) != 1:
        raise ValueError(
            f"negative has {len(negative)} conditions, but one text is fitted to each step. Connect a single CLIP Text "
            "Encode, without Conditioning Combine."
        )
    ((text, settings),) = negative
    settings = {key: value for key, value in settings.items() if key not in (*TIMES, PROMPT_KEY)}
    for name, shared in SHARED.items():
        given = [
            own[name] for _, own in positive if own.get(name) is not None and (not shared or own.get(shared))
        ]
        if given and settings.get(name) is None:
            settings[name] = given[-1]
    return [[text, settings]]


def scheduled(negative: list, texts: Tensor, ranges: list[tuple[float, float]]) -> list:
    """Return CONDITIONING of which each entry has one of `texts` (S, B, T, D) and is active in one of `ranges`.

    The other settings are those of the one entry of `negative`.
    """
    ((_, settings),) = negative
    return [
        [text, settings | dict(zip(TIMES, between, strict=True))]
        for text, between in zip(texts, ranges, strict=True)
    ]


def step_ranges(sigmas: Tensor, sampling: Any) -> list[tuple[float, float]]:
    """Return start and end percent of each step of `sigmas` (S + 1,): at `sigmas[i]` the host is in the i-th alone.

    They end at the geometric mean of two levels. `sampling` is the model's `model_sampling`. Raises ValueError for
    levels that percents cannot tell apart.
    """
    levels = sigmas[:-1].tolist()
    ends = []
    for above, below in zip(levels, levels[1:], strict=False):
        ends.append(_percent(sampling, (above * below) ** 0.5))
        if not below < sampling.percent_to_sigma(ends[-1]) < above:
            raise ValueError(
                f"The trajectory has the noise levels {above:.4g} and {below:.4g}, which start and end percent cannot "
                f"tell apart: the model's own go from {float(sampling.sigma_max):.4g} to "
                f"{float(sampling.sigma_min):.4g}. Invert with another scheduler, normal for example."
            )
    return list(zip([0.0, *ends], [*ends, 1.0], strict=True))


def _percent(sampling: Any, sigma: float) -> float:
    """Return the percent of noise level `sigma`, by bisection: levels fall as percents rise."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = sampling.percent_to_sigma(middle) > sigma
        low, high = (middle, high) if above else (low, middle)
    return (low + high) / 2
