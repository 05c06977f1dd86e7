"""Puts a steering function behind classifier-free guidance of any sampler, as a MODEL patch.

The run's resources (a decoder, say) are opened at the first guided call and closed when the host's sampling call
ends, however it ends. Which step it is follows from sigma alone, so nothing has to be reset or guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor


@dataclass(frozen=True)
class Moment:
    """One guided call: what the sampler knows at this point. Tensors are (B, C, h, w) in the model's latent space."""

    denoised: Tensor
    current: Tensor
    sigma: float
    next_sigma: float
    step: int
    """Index of the step in the schedule, 0 at the start of this sampling call."""
    guided_step: int
    """How many steps of the schedule in the guide's range lie before this one."""
    seed: int
    model_sampling: Any

    def renoised(self, latent: Tensor) -> Tensor:
        """Return clean `latent` with fresh noise at the next sigma; the noise follows from seed and step."""
        generator = torch.Generator("cpu").manual_seed((self.seed + 0x9E3779B9 * (self.step + 1)) % 2**63)
        noise = torch.randn(latent.shape, generator=generator).to(latent)
        sigma = torch.full((latent.shape[0], 1, 1, 1), self.next_sigma, device=latent.device)
        return self.model_sampling.noise_scaling(sigma, noise, latent)

    def as_network_input(self, latent: Tensor) -> Tensor:
        """Return `latent` at the next sigma in the scale that the network sees (variance-preserving for SD)."""
        sigma = torch.full((latent.shape[0], 1, 1, 1), self.next_sigma, device=latent.device)
        return self.model_sampling.calculate_input(sigma, latent)


# what the host hands to an OUTER_SAMPLE wrapper, in order (CFGGuider.outer_sample)
OUTER_SAMPLE_ARGUMENTS = (
    "noise",
    "latent_image",
    "sampler",
    "sigmas",
    "denoise_mask",
    "callback",
    "disable_pbar",
    "seed",
    "latent_shapes",
)
Steer = Callable[[Moment], Tensor]
Begin = Callable[[], AbstractContextManager[Steer]]


class _Run:
    def __init__(self, begin: Begin, seed: int) -> None:
        self.begin, self.seed, self.resources, self.steer = begin, seed, ExitStack(), None

    def __call__(self, moment: Moment) -> Tensor:
        if self.steer is None:
            self.steer = self.resources.enter_context(self.begin())
        return self.steer(moment)


def steer_denoised(
    model: Any,
    begin: Begin,
    start_percent: float,
    end_percent: float,
    check: Callable[[torch.Size], None] = lambda shape: None,
) -> Any:
    """Return a clone of `model` (MODEL) whose `denoised` is steered between `start_percent` and `end_percent`.

    `check(shape)` sees the shape of the latent before sampling starts and raises ValueError if it cannot be served.
    `begin()` gives a context manager that yields the steering function of one run; it is entered at the first step in
    range and left at the end of the run, also after an error or an interrupt. Outside the range nothing is touched.
    """
    patched = model.clone()
    sampling = patched.get_model_object("model_sampling")
    guided = _SigmaRange(sampling.percent_to_sigma(start_percent), sampling.percent_to_sigma(end_percent))
    runs: list[_Run] = []

    def around_run(executor, *args, **kwargs):
        call = dict(zip(OUTER_SAMPLE_ARGUMENTS, args, strict=False)) | kwargs
        check(call["latent_image"].shape)
        run = _Run(begin, call.get("seed") or 0)
        runs.append(run)
        try:
            with run.resources:
                return executor(*args, **kwargs)
        finally:
            runs.remove(run)

    def after_cfg(args: dict[str, Any]) -> Tensor:
        sigma = args["sigma"].max().item()
        if sigma not in guided:
            return args["denoised"]
        moment = _moment(args, sigma, guided, runs[-1].seed if runs else 0)
        if runs:
            return runs[-1](moment)
        with begin() as steer:  # a sampler that goes round the host's own sampling call
            return steer(moment)

    patched.set_model_sampler_post_cfg_function(after_cfg)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "guided_synthesis_steering", around_run)
    return patched


class _SigmaRange:
    """The noise levels from `first` down to, not including, `last`."""

    def __init__(self, first: float, last: float) -> None:
        self.first, self.last = first, last

    def __contains__(self, sigma: float) -> bool:
        return self.last < sigma <= self.first


def _moment(args: dict[str, Any], sigma: float, guided: _SigmaRange, seed: int) -> Moment:
    schedule = args["model_options"].get("transformer_options", {}).get("sample_sigmas")
    sigmas = [sigma, 0.0] if schedule is None else schedule.tolist()
    step = max(0, sum(s >= sigma * (1 - 1e-4) for s in sigmas) - 1)
    following = sigmas[step + 1] if step + 1 < len(sigmas) else 0.0
    return Moment(
        denoised=args["denoised"],
        current=args["input"],
        sigma=sigma,
        next_sigma=following,
        step=step,
        guided_step=sum(s in guided for s in sigmas[:step]),
        seed=seed,
        model_sampling=args["model"].model_sampling,
    )


def check_interrupt() -> None:
    """Raise the host's own interrupt if the user pressed cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()
