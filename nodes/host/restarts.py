"""Takes the sampler's estimate out at chosen steps, lets a technique move it, and starts the sampler again from there.

This is the loop of GradOP+ (arXiv 2211.17084) and of every method that edits the clean estimate and adds fresh noise:
sample to a step, move x0hat, noise it to the next level, sample on. It wraps the host's SAMPLER from outside, so each
stretch between two restarts is an ordinary run of the user's own sampler over a part of the user's own schedule.
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
from tqdm.auto import tqdm


@dataclass(frozen=True)
class Moment:
    """A chosen step of a run. Tensors are (B, C, h, w) in the model's latent space."""

    denoised: Tensor
    """The estimate x0hat that the sampler used at this step, after classifier-free guidance."""
    following: Tensor
    """Where the sampler's step led: the noisy latent at `next_sigma`."""
    next_sigma: Tensor
    model_sampling: Any

    def as_network_input(self, latent: Tensor) -> Tensor:
        """Return `latent` at `next_sigma` in the scale that the network sees (variance-preserving for SD)."""
        return self.model_sampling.calculate_input(self.next_sigma.reshape(1), latent)


Move = Callable[[Moment], Tensor]
Begin = Callable[[], AbstractContextManager[Move]]


def restart_sampling(
    model: Any,
    begin: Begin,
    start_percent: float,
    end_percent: float,
    iterations: int,
    check: Callable[[torch.Size], None] = lambda shape: None,
) -> Any:
    """Return a clone of `model` (MODEL) whose estimate is moved at `iterations` steps, each followed by fresh noise.

    The steps are the first `iterations` (0: all) of the schedule between `start_percent` and `end_percent`.
    `check(shape)` sees the shape of the latent before sampling starts and raises ValueError if it cannot be served.
    `begin()` gives a context manager that yields the moving function of one run; it is entered at the first chosen
    step and left at the end of the run, also after an error or an interrupt. A run without a chosen step is the
    host's own, to the bit.
    """
    patched = model.clone()
    sampling = patched.get_model_object("model_sampling")
    first, last = sampling.percent_to_sigma(start_percent), sampling.percent_to_sigma(end_percent)

    def around_sampler(
        executor,
        guider,
        sigmas,
        extra_args,
        callback,
        noise,
        latent_image=None,
        denoise_mask=None,
        disable_pbar=False,
    ):
        check(noise.shape)
        schedule = extra_args["model_options"].get("transformer_options", {}).get("sample_sigmas", sigmas)
        chosen = [sigma for sigma in schedule[:-1].tolist() if last < sigma <= first]
        chosen = chosen[:iterations] if iterations else chosen
        steps = [i for i, sigma in enumerate(sigmas[:-1].tolist()) if chosen and _between(sigma, chosen)]
        if not steps:
            return executor(
                guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
            )
        with ExitStack() as resources, tqdm(total=len(sigmas) - 1, disable=disable_pbar) as bar:
            run = _Run(executor, guider, sigmas, extra_args, callback, denoise_mask, bar)
            return run(noise, latent_image, steps, resources, begin)

    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "guided_synthesis", around_sampler)
    return patched


def _between(sigma: float, chosen: list[float]) -> bool:
    """Tell whether `sigma` lies within the chosen levels, up to rounding (another guide may hand on a part of them)."""
    return chosen[-1] * (1 - 1e-4) <= sigma <= chosen[0] * (1 + 1e-4)


class _Run:
    """One sampling call, cut into stretches."""

    def __init__(self, executor, guider, sigmas, extra_args, callback, mask, bar) -> None:
        self.executor, self.guider, self.sigmas, self.extra_args = executor, guider, sigmas, extra_args
        self.callback, self.mask, self.bar = callback, mask, bar
        self.sampling = guider.inner_model.model_sampling
        self.denoised: Tensor | None = None

    def __call__(
        self, noise: Tensor, latent: Tensor, steps: list[int], resources: ExitStack, begin: Begin
    ) -> Tensor:
        original, position, move = latent, 0, None
        for step in steps:
            following = self.stretch(position, step + 1, noise, latent, withhold=step)
            check_interrupt()
            if self.denoised is None:
                raise ValueError(
                    f"The sampler {type(self.executor.class_obj).__name__} does not report its estimate, so it cannot "
                    "be guided. Choose another sampler, euler for example."
                )
            move = move or resources.enter_context(begin())
            latent = move(Moment(self.denoised, following, self.sigmas[step + 1], self.sampling)).to(
                following
            )
            if self.mask is not None:
                latent = latent * self.mask + original * (1 - self.mask)
            self.report(step, latent, following)
            noise, position = self.fresh_noise(latent, step), step + 1
        if position + 1 < len(self.sigmas):
            return self.stretch(position, len(self.sigmas) - 1, noise, latent)
        noisy = self.sampling.noise_scaling(self.sigmas[-1:], noise, latent)
        return self.sampling.inverse_noise_scaling(self.sigmas[-1], noisy)

    def stretch(self, first: int, last: int, noise: Tensor, latent: Tensor, withhold: int = -1) -> Tensor:
        """Let the user's sampler run from schedule step `first` to `last`; keep its latest estimate.

        Step `withhold` is not reported yet: previews and a guide further out shall see its estimate as moved.
        """

        def callback(step: int, denoised: Tensor, x: Tensor, *_: Any) -> None:
            self.denoised = denoised
            if first + step != withhold:
                self.report(first + step, denoised, x)

        sigmas = self.sigmas[first : last + 1]
        return self.executor(self.guider, sigmas, self.extra_args, callback, noise, latent, self.mask, True)

    def report(self, step: int, denoised: Tensor, x: Tensor) -> None:
        """Tell the progress bars and the preview about a step."""
        self.bar.update(step + 1 - self.bar.n)
        if self.callback is not None:
            self.callback(step, denoised, x, len(self.sigmas) - 1)

    def fresh_noise(self, latent: Tensor, step: int) -> Tensor:
        """Noise that follows from the run's seed and the step, made on the CPU as the host makes its own."""
        seed = self.extra_args.get("seed") or 0
        generator = torch.Generator("cpu").manual_seed((seed + 0x9E3779B9 * (step + 1)) % 2**63)
        return torch.randn(latent.shape, generator=generator).to(latent)


def check_interrupt() -> None:
    """Raise the host's own interrupt if the user pressed cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()
