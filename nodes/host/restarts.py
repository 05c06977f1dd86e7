"""Takes the sampler's estimate out at chosen steps, lets a technique move it, and starts the sampler again from there.

This is the loop of GradOP+ (arXiv 2211.17084) and of every method that edits the clean estimate and adds fresh noise:
sample to a step, move x0hat, noise it to the next level, sample on. It wraps the host's SAMPLER from outside, so each
stretch between two restarts is an ordinary run of the user's own sampler over a part of the user's own schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_wrappers_with_key
from torch import Tensor
from tqdm.auto import tqdm

from ...guidance.seeds import derived_seed

KEY = "guided_synthesis"


@dataclass(frozen=True)
class Moment:
    """A chosen step of a run. Tensors are (B, C, h, w) in the model's latent space."""

    denoised: Tensor
    """The estimate x0hat that the sampler used at this step, after classifier-free guidance."""
    following: Tensor
    """Where the sampler's step led: the noisy latent at `next_sigma`."""
    sigma: Tensor
    next_sigma: Tensor
    fresh_noise: Tensor
    """Unit noise of this run's seed and this step."""
    model_sampling: Any

    def noise(self) -> Tensor:
        """Return the unit noise of `following` beside `denoised`: the noise that the sampler would go on with."""
        clean = self._noised(torch.zeros_like(self.denoised), self.denoised)
        gain = self._noised(torch.ones_like(self.denoised), torch.zeros_like(self.denoised))
        return torch.where(gain == 0, 0.0, (self.following - clean) / gain)

    def uncertainty(self) -> float:
        """Return the variance of the estimate, in (0, 1), if clean latents had variance 1 and were not correlated.

        noise^2 / (signal^2 + noise^2) of the noisy latent at `sigma`; sigma^2 / (1 + sigma^2) for SD.
        """
        one, zero = torch.ones_like(self.sigma).reshape(1), torch.zeros_like(self.sigma).reshape(1)
        scaling = partial(self.model_sampling.noise_scaling, self.sigma.reshape(1))
        noise, signal = (scaling(*pair).square().item() for pair in ((one, zero), (zero, one)))
        return noise / (signal + noise)

    def _noised(self, noise: Tensor, latent: Tensor) -> Tensor:
        return self.model_sampling.noise_scaling(self.next_sigma.reshape(1), noise, latent)

    def as_network_input(self, latent: Tensor) -> Tensor:
        """Return `latent` at `next_sigma` in the scale that the network sees (variance-preserving for SD)."""
        return self.model_sampling.calculate_input(self.next_sigma.reshape(1), latent)


@dataclass(frozen=True)
class Restart:
    """Where a run goes on from, (B, C, h, w) in the model's latent space: at `latent` + sigma * `noise`."""

    latent: Tensor
    noise: Tensor | None = None
    """Unit noise; None: the moment's fresh noise. It is put on by the model's own rule (flow models mix instead)."""


Move = Callable[[Moment], Restart]
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
        if getattr(executor.class_obj, "guides_its_passes", False):
            return executor(
                guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
            )
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

    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, around_sampler)
    return patched


def sample_guided(sampler: Any, guider: Any, sigmas: Tensor, extra_args: dict, *rest: Any) -> Tensor:
    """Run one pass of `sampler` as its `sample` does, with this pack's guides of the model around it.

    For samplers that make several passes; they carry `guides_its_passes = True`, so that a guide does not cut their
    schedule as if it were one pass.
    """
    options = extra_args["model_options"]
    guides = get_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, options, is_model_options=True)
    executor = WrapperExecutor.new_class_executor(sampler.sample, sampler, guides)
    return executor.execute(guider, sigmas, extra_args, *rest)


def _between(sigma: float, chosen: list[float]) -> bool:
    """Tell whether `sigma` lies within the chosen levels, up to rounding (another guide may hand on a part of them)."""
    return chosen[-1] * (1 - 1e-4) <= sigma <= chosen[0] * (1 + 1e-4)


@dataclass
class SeveralPasses(comfy.samplers.Sampler):
    """A SAMPLER that runs `sampler` several times within one run."""

    sampler: Any

    guides_its_passes = True  # a guide belongs into each pass, not around them all

    def max_denoise(self, model_wrap: Any, sigmas: Tensor) -> bool:
        """Answer as the wrapped sampler does."""
        return self.sampler.max_denoise(model_wrap, sigmas)


def pass_reporter(bar: tqdm, callback: Callable | None, begun: int, steps: int) -> Callable[..., None]:
    """Return the callback of a pass of `steps` steps after `begun` others; `bar` and `callback` count all of them."""

    def report(step: int, denoised: Tensor, x: Tensor, *_: Any) -> None:
        step = begun + min(step, steps - 1)  # adaptive samplers report more steps than they were given
        bar.update(step + 1 - bar.n)
        if callback is not None:
            callback(step, denoised, x, bar.total)

    return report


def unit_noise(latent: Tensor, seed: int) -> Tensor:
    """Return noise of the shape and dtype of `latent`, made on the CPU as the host makes its own."""
    return torch.randn(latent.shape, generator=torch.Generator("cpu").manual_seed(seed % 2**63)).to(latent)


def completed(
    found: Tensor, sampler: Any, guider: Any, sigmas: Tensor, noise: Tensor, latent: Tensor, seen: tuple
) -> Tensor:
    """Return `found`, to which `sampler` came over `sigmas` from `noise` on `latent`, with the last step done.

    A step that the host's sampler does not take is done by Euler's method, from the latest that it reported: `seen`,
    its estimate and what the model was asked.
    """
    if not _lacks_last_step(sampler, sigmas):
        return found
    (denoised, x), sampling = seen, guider.inner_model.model_sampling
    if len(sigmas) == 2:
        x = sampling.noise_scaling(sigmas[:1], noise, latent, sampler.max_denoise(guider, sigmas))
    stepped = denoised + sigmas[-1] / sigmas[-2] * (x - denoised)
    return sampling.inverse_noise_scaling(sigmas[-1], stepped)


def _lacks_last_step(sampler: Any, sigmas: Tensor) -> bool:
    """Tell whether the host's sampler returns the state before its last step; without it the noise level is wrong.

    Its uni_pc takes no step where the schedule has only one; its sa_solver (0.3.75; mended since) withholds the last
    one unless it leads to level 0.
    """
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    return ("unipc" in name and len(sigmas) == 2) or ("sa_solver" in name and bool(sigmas[-1] > 0))


class _Run:
    """One sampling call, cut into stretches."""

    def __init__(self, executor, guider, sigmas, extra_args, callback, mask, bar) -> None:
        self.executor, self.guider, self.sigmas, self.extra_args = executor, guider, sigmas, extra_args
        self.callback, self.mask, self.bar = callback, mask, bar
        self.sampling = guider.inner_model.model_sampling
        self.denoised: Tensor | None = None
        self.x: Tensor | None = None  # what the model was asked to denoise

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
            moment = self.moment(step, following)
            restart = move(moment)
            latent = restart.latent.to(following)
            if self.mask is not None:
                latent = latent * self.mask + original * (1 - self.mask)
            self.report(step, latent, self.x)
            noise = moment.fresh_noise if restart.noise is None else restart.noise.to(following)
            position = step + 1
        if position + 1 < len(self.sigmas):
            return self.stretch(position, len(self.sigmas) - 1, noise, latent)
        noisy = self.sampling.noise_scaling(self.sigmas[-1:], noise, latent)
        return self.sampling.inverse_noise_scaling(self.sigmas[-1], noisy)

    def stretch(self, first: int, last: int, noise: Tensor, latent: Tensor, withhold: int = -1) -> Tensor:
        """Let the user's sampler run from schedule step `first` to `last`; keep its latest estimate.

        Step `withhold` is not reported yet: previews and a guide further out shall see its estimate as moved.
        """

        def callback(step: int, denoised: Tensor, x: Tensor, *_: Any) -> None:
            self.denoised, self.x = denoised, x
            if first + step != withhold:
                self.report(first + step, denoised, x)

        sigmas = self.sigmas[first : last + 1]
        # with the same seed for each stretch, an ancestral sampler would add the same noise at each of them
        extra_args = {**self.extra_args, "seed": self.seed(first)}
        found = self.executor(self.guider, sigmas, extra_args, callback, noise, latent, self.mask, True)
        sampler, seen = self.executor.class_obj, (self.denoised, self.x)
        return completed(found, sampler, self.guider, sigmas, noise, latent, seen)

    def moment(self, step: int, following: Tensor) -> Moment:
        """Return what a technique sees after schedule step `step`, which led to `following`."""
        sigma = self.sigmas[step + 1]
        # the host takes the scale of flow models out of what a sampler returns; put it back
        noisy = self.sampling.noise_scaling(sigma.reshape(1), torch.zeros_like(following), following)
        fresh = unit_noise(following, self.seed(step + 1) or 0)
        return Moment(self.denoised, noisy, self.sigmas[step], sigma, fresh, self.sampling)

    def report(self, step: int, denoised: Tensor, x: Tensor) -> None:
        """Tell the progress bars and the preview about a step."""
        self.bar.update(step + 1 - self.bar.n)
        if self.callback is not None:
            self.callback(step, denoised, x, len(self.sigmas) - 1)

    def seed(self, position: int) -> int | None:
        """Return the seed of the stretch that begins at schedule step `position`; the first has the run's own."""
        seed = self.extra_args.get("seed")
        return seed if position == 0 else derived_seed(seed or 0, position)


def check_interrupt() -> None:
    """Raise the host's own interrupt if the user pressed cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()
