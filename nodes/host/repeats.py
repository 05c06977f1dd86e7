"""A SAMPLER that runs another one again and again on its own result: repeated SDEdit, "loopback".

SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations (arXiv 2108.01073): noise a picture
to a level t0, denoise it. Each repeat is what the host's img2img does with the last part of the same schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...guidance.seeds import derived_seed
from .restarts import SeveralPasses, check_interrupt, pass_reporter, sample_guided, unit_noise


@dataclass
class Repeated(SeveralPasses):
    """`sampler` over the given schedule, then `repeats` - 1 times more from the level of `denoise`."""

    repeats: int
    denoise: float
    denoise_change: float
    seed: int

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable | None,
        noise: Tensor,
        latent_image: Tensor,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Sample as the host's samplers do; raise ValueError before the first pass if a repeat has no step."""
        passes = self._passes(model_wrap.inner_model.model_sampling, sigmas)
        latent, total = latent_image, sum(len(part) - 1 for part in passes)
        with tqdm(total=total, disable=disable_pbar) as bar:
            for index, part in enumerate(passes):
                check_interrupt()
                if index:
                    noise, extra_args = self._afresh(index, part, latent, extra_args)
                report = pass_reporter(bar, callback, sum(len(p) - 1 for p in passes[:index]), len(part) - 1)
                rest = (report, noise, latent, denoise_mask, True)
                result = sample_guided(self.sampler, model_wrap, part, dict(extra_args), *rest)
                latent = _kept(result, latent_image, denoise_mask)
        return result

    def _passes(self, sampling: Any, sigmas: Tensor) -> list[Tensor]:
        """Return the noise levels of each pass: all, then those from the level of each repeat's denoise on."""
        if sigmas[-1] > 0:
            raise ValueError(
                f"The Loopback Sampler got a schedule that ends at sigma {float(sigmas[-1]):.3g}, where the picture "
                "is not finished, so it cannot be repeated. Connect the whole schedule or its last part (low_sigmas)."
            )
        firsts = [0] + [self._first(sampling, sigmas, index) for index in range(1, self.repeats)]
        return [
            sigmas[first:].clone() for first in firsts
        ]  # uni_pc overwrites the last level of what it gets

    def _first(self, sampling: Any, sigmas: Tensor, index: int) -> int:
        """Return the step at which repeat `index` begins: the first one at or below its level."""
        denoise = min(1.0, self.denoise * self.denoise_change ** (index - 1))
        level = float(sampling.percent_to_sigma(1 - denoise))
        steps = sigmas[:-1].tolist()
        for step, sigma in enumerate(steps):
            if sigma <= level:
                return step
        raise ValueError(
            f"Repeat {index} of the Loopback Sampler has denoise {denoise:g} (sigma {level:.3g}), but the last of the "
            f"{len(steps)} steps begins at sigma {steps[-1] if steps else 0:.3g}, above it, so no step is left. Raise "
            "denoise or denoise_change, or the number of steps."
        )

    def _afresh(
        self, index: int, part: Tensor, latent: Tensor, extra_args: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the unit noise of repeat `index`, made as the host makes its own, and the sampler's arguments."""
        # with neighbouring seeds an ancestral sampler's noise on the CPU would be the next repeat's
        seed = derived_seed(self.seed, index)
        options = extra_args["model_options"]
        transformer = {**options.get("transformer_options", {}), "sample_sigmas": part}
        return unit_noise(latent, seed), {
            **extra_args,
            "seed": seed,
            "model_options": {**options, "transformer_options": transformer},
        }


def _kept(latent: Tensor, original: Tensor, mask: Tensor | None) -> Tensor:
    """Return `latent` with what lies outside an inpainting mask as it was."""
    return latent if mask is None else torch.where(mask > 0, latent, original)
