"""A SAMPLER that runs another one in descents, and jumps back to a higher noise level between them: RePaint.

RePaint: Inpainting using Denoising Diffusion Probabilistic Models (arXiv 2201.09865). Keeping known pixels at their
noise level is the host's own work (`KSamplerX0Inpaint`, wherever the latent has a noise mask). What is added here is
the resampling, and other noise on the known pixels in each descent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...guidance.repaint import Level, descents, jump_back, resampled, steps_between
from ...guidance.seeds import derived_seed
from .restarts import (
    SeveralPasses,
    check_interrupt,
    completed,
    pass_reporter,
    sample_guided,
    unit_noise,
)

NO_MASK = "the latent has no noise mask, so no pixel is known. Put Set Latent Noise Mask before the sampler"
NO_EDGE = (
    "the noise mask is the same everywhere, so there is no border between known and new. Paint a part of it"
)
NO_NOISE = "this model puts no noise on its latents, so there is no way back"
NO_STEP = "no step of the schedule lies between start_percent and end_percent that could be done again"


@dataclass
class RePaint(SeveralPasses):
    """`sampler`, with the steps from `start_percent` to `end_percent` done `resamplings` times."""

    jump_length: int
    resamplings: int
    start_percent: float
    end_percent: float

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
        """Sample as the host's samplers do; without anything to resample, exactly as the wrapped one."""
        plan = self._plan(model_wrap.inner_model.model_sampling, sigmas, denoise_mask)
        if len(plan) == 1:
            rest = (callback, noise, latent_image, denoise_mask, disable_pbar)
            return sample_guided(self.sampler, model_wrap, sigmas, extra_args, *rest)
        with tqdm(total=sum(map(len, plan)), disable=disable_pbar) as bar:
            run = _Run(
                self.sampler, model_wrap, sigmas, extra_args, callback, latent_image, denoise_mask, bar
            )
            return run(plan, noise)

    def _plan(self, sampling: Any, sigmas: Tensor, mask: Tensor | None) -> list[range]:
        """Return the descents of a run; the log says why, if there is only one."""
        levels = sigmas.tolist()
        first, last = map(sampling.percent_to_sigma, (self.start_percent, self.end_percent))
        again = resampled(levels, steps_between(levels, float(first), float(last)))
        if problem := _nothing_to_resample(mask, again, _level(sampling, sigmas[0])):
            logging.warning("Guided Synthesis: the RePaint Sampler samples without going back: %s.", problem)
            again = range(0)
        return descents(len(levels) - 1, again, self.jump_length, self.resamplings)


def _nothing_to_resample(mask: Tensor | None, again: range, top: Level) -> str | None:
    if mask is None:
        return NO_MASK
    if mask.min() >= 1 or mask.max() <= 0:
        return NO_EDGE
    if top.noise == 0:
        return NO_NOISE
    return None if again else NO_STEP


class _Run:
    """One sampling call. Latents are (B, C, h, w) in the model's latent space."""

    def __init__(self, sampler, guider, sigmas, extra_args, callback, known, mask, bar) -> None:
        self.sampler, self.guider, self.sigmas = sampler, guider, sigmas
        self.callback, self.known, self.mask, self.bar = callback, known, mask, bar
        self.sampling = guider.inner_model.model_sampling
        self.extra_args = _with_whole_schedule(extra_args, sigmas)
        self.done = 0  # steps of the descents that have begun
        self.seen: tuple[Tensor, Tensor] | None = None  # the latest estimate, and what the model was asked

    def __call__(self, plan: list[range], noise: Tensor) -> Tensor:
        """Return what the last descent leads to; the first begins with `noise`, each other where the last one ended."""
        clean = self.descend(plan[0], noise, self.extra_args)
        for index, (before, steps) in enumerate(zip(plan, plan[1:], strict=False), start=1):
            seed = derived_seed(self.extra_args.get("seed") or 0, index)
            noise = self.back(clean, before.stop, steps, seed)
            # with the same seed in each descent, an ancestral sampler would add the same noise in each of them
            clean = self.descend(steps, noise, {**self.extra_args, "seed": seed})
        # some samplers of the host leave a little noise on what is known
        return torch.where(self.mask > 0, clean, self.known) if self.sigmas[-1] == 0 else clean

    def descend(self, steps: range, noise: Tensor, extra_args: dict[str, Any]) -> Tensor:
        """Let the wrapped sampler do `steps`; return the noisy latent that they lead to, over its signal."""
        check_interrupt()
        # a copy: uni_pc overwrites the last level of what it gets
        sigmas, report = self.sigmas[steps.start : steps.stop + 1].clone(), self.reporter(len(steps))
        rest = (report, noise, self.known, self.mask, True)
        found = sample_guided(self.sampler, self.guider, sigmas, dict(extra_args), *rest)
        sigmas = self.sigmas[steps.start : steps.stop + 1]
        return completed(found, self.sampler, self.guider, sigmas, noise, self.known, self.seen)

    def back(self, clean: Tensor, position: int, steps: range, seed: int) -> Tensor:
        """Return the noise with which the host's samplers begin `steps` at `clean` of level `position`, noised further.

        Known pixels begin with new noise alone: it is what the host puts on them throughout the descent.
        """
        sigmas = self.sigmas[steps.start : steps.stop + 1]
        fresh = unit_noise(clean, seed)
        here, there = _level(self.sampling, self.sigmas[position]), _level(self.sampling, sigmas[0])
        begun = _level(self.sampling, sigmas[0], self.sampler.max_denoise(self.guider, sigmas))
        noise = (jump_back(clean, fresh, here, there) - begun.signal * self.known) / begun.noise
        return torch.where(self.mask_at(sigmas[:1]) > 0, noise, fresh)

    def mask_at(self, sigma: Tensor) -> Tensor:
        """Return the noise mask at `sigma`; Differential Diffusion's depends on it."""
        changed = self.extra_args["model_options"].get("denoise_mask_function")
        if changed is None:
            return self.mask
        return changed(sigma, self.mask, extra_options={"model": self.guider})

    def reporter(self, steps: int) -> Callable[..., None]:
        """Return what tells the progress bar and the preview about the next `steps` steps."""
        tell, self.done = pass_reporter(self.bar, self.callback, self.done, steps), self.done + steps

        def report(step: int, denoised: Tensor, x: Tensor, *_: Any) -> None:
            self.seen = denoised, x
            tell(step, denoised, x)

        return report


def _level(sampling: Any, sigma: Tensor, top: bool = False) -> Level:
    """Return how the model itself mixes latent and noise at `sigma` (`top`: where a run begins with noise alone)."""
    one, zero = torch.ones_like(sigma).reshape(1), torch.zeros_like(sigma).reshape(1)
    mixed = partial(sampling.noise_scaling, sigma.reshape(1), max_denoise=top)
    return Level(mixed(zero, one), mixed(one, zero))


def _with_whole_schedule(extra_args: dict[str, Any], sigmas: Tensor) -> dict[str, Any]:
    """Return `extra_args` in which a mask that changes over the run sees all of it, not one descent."""
    options = extra_args["model_options"]
    if "denoise_mask_function" not in options:
        return extra_args
    given = options["denoise_mask_function"]

    def changed(sigma: Tensor, mask: Tensor, extra_options: dict[str, Any]) -> Tensor:
        return given(sigma, mask, extra_options={**extra_options, "sigmas": sigmas})

    return {**extra_args, "model_options": {**options, "denoise_mask_function": changed}}
