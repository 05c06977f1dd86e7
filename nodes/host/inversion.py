"""Runs inversions in the host: its guider asks the model, so that areas, ControlNets, LoRAs and other patches count."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.model_sampling
import comfy.samplers
import torch
from torch import Tensor

from ...guidance.inversion import BELM, DDIM, IMPLICIT, Inverted, Slope, belm, belm_sample, ddim, implicit
from ...guidance.trajectory import Trajectory
from .prompts import PROMPT_KEY
from .sampling import Report
from .trajectories import check_model, fingerprint, starting_noise

LOWEST_START = 1.0  # sigma; below it the picture shows through its noise
NOT_THE_START = 1e-3  # of sigma: by so much may the start of a sampling run differ from the trajectory's


def invert(
    model: Any,
    positive: list,
    negative: list | None,
    cfg: float,
    sigmas: Tensor,
    latent: Tensor,
    method: str,
    tolerance: float,
    most_calls: int,
    report: Report,
) -> Trajectory:
    """Return the Trajectory of `latent` (B, C, h, w), samples of a LATENT, under MODEL and its conditions.

    `tolerance` and `most_calls` are the implicit method's. Raises ValueError for what cannot be inverted.
    """
    _check(model, sigmas, latent)
    if negative is None and cfg != 1:
        raise ValueError(
            f"cfg is {cfg:g}, so there must be a negative prompt: connect negative, or set cfg to 1."
        )
    if problem := tolerance_problem(tolerance):
        raise ValueError(problem)
    methods: dict[str, Callable[..., Inverted]] = {
        DDIM: ddim,
        IMPLICIT: partial(implicit, tolerance=tolerance, most_calls=most_calls),
        BELM: belm,
    }
    run = _Upwards(methods[method])
    guider = _guider(model, positive, negative, cfg)
    latent = latent.float()  # the host would scale it in its own precision
    guider.sample(torch.zeros_like(latent), latent, run.sampler(), sigmas, callback=report, disable_pbar=True)
    return Trajectory(
        sigmas.detach().float().cpu().clone(),
        run.found.latents.cpu(),
        run.found.residuals.float().cpu(),
        method,
        float(cfg),
        run.found.calls,
        fingerprint(model),
        _text(positive),
    )


def tolerance_problem(tolerance: float | None) -> str | None:
    """Return the sentence for a tolerance that is not above 0, or None (also if a linked input is not known yet)."""
    if tolerance is None or tolerance > 0:
        return None
    return f"tolerance is {tolerance:g}, which no solver reaches. Choose more than 0, 0.0003 for example."


def round_trip(
    model: Any, positive: list, negative: list | None, trajectory: Trajectory, report: Report
) -> Tensor:
    """Sample from the start of `trajectory` with euler and return by how much each picture is missed, (B,), rms.

    In the model's latent space, where pictures have a standard deviation of about 1. One model call a step.
    """
    guider = _guider(model, positive, negative, trajectory.cfg)
    start = model.model.process_latent_out(trajectory.latents[0].float())
    euler = comfy.samplers.sampler_object("euler")
    euler.guides_its_passes = True  # asked is whether the noise is the photo's, not what a guide makes of it
    nothing, sigmas = torch.zeros_like(start), trajectory.sigmas
    back = guider.sample(nothing, start, euler, sigmas, callback=report, disable_pbar=True)
    missed = model.model.process_latent_in(back) - trajectory.latents[-1]
    return missed.square().mean((1, 2, 3)).sqrt()


class InvertedNoise:
    """The host's NOISE from which sampling follows a trajectory."""

    seed = 0

    def __init__(self, model: Any, trajectory: Trajectory) -> None:
        """Take the MODEL that the trajectory is of."""
        self._model, self._trajectory = model, trajectory

    def generate_noise(self, latent: dict[str, Any]) -> Tensor:
        """Return the noise (B, C, h, w) for LATENT; raises ValueError if that is of another size."""
        samples = latent["samples"]
        self._trajectory.check_shape(samples.shape)
        return noise_over(self._model, self._trajectory, samples)


def noise_over(model: Any, trajectory: Trajectory, samples: Tensor) -> Tensor:
    """Return the noise that a sampler of MODEL makes the trajectory's start of, over `samples` of a LATENT."""
    if torch.count_nonzero(samples) > 0:  # as the host: an empty latent is left as it is
        samples = model.model.process_latent_in(samples)
    return starting_noise(trajectory, model.get_model_object("model_sampling"), samples)


def belm_sampler(trajectory: Trajectory | None) -> Any:
    """Return the SAMPLER O-BELM, which goes on from the two latents of `trajectory` if there is one."""
    return comfy.samplers.KSAMPLER(_sample_belm, {"trajectory": trajectory})


def _sample_belm(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict | None = None,
    callback: Any = None,
    disable: Any = None,
    trajectory: Trajectory | None = None,
) -> Tensor:
    """Sample `x` (B, C, h, w) with O-BELM, in the manner of k-diffusion."""
    denoiser = _Denoiser(model, extra_args or {}, callback, len(x))
    start, second = x.cpu(), None
    if trajectory is not None:
        check_model(trajectory, model.inner_model.model_patcher)
        start, second = _two(trajectory, start, sigmas)
    return belm_sample(denoiser.slope, start, second, sigmas.cpu(), denoiser.report).to(x)


def _two(trajectory: Trajectory, x: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first two latents of `trajectory` for a run that starts at `x`, (B, C, h, w) of any multiple of it."""
    trajectory.check_schedule(sigmas)
    if trajectory.method != BELM:
        raise ValueError(
            f"The trajectory was inverted with {trajectory.method}, which O-BELM does not follow. Invert with o-belm, "
            "or sample with euler."
        )
    times, rest = divmod(len(x), trajectory.pictures)
    trajectory.check_shape(x.shape if rest or not times else x[: trajectory.pictures].shape)
    first, second = (part.repeat(times, 1, 1, 1) for part in trajectory.latents[:2])
    if (x - first).abs().max() > NOT_THE_START * trajectory.sigmas[0]:
        raise ValueError(
            "The sampler does not start from the noise of the trajectory. Connect the NOISE of the inversion to the "
            "sampler, or its LATENT with add_noise switched off."
        )
    return first, second


class _Denoiser:
    """The host's k-diffusion model as a slope, with its callback."""

    def __init__(self, model: Any, extra_args: dict, callback: Any, batch: int) -> None:
        self._model, self._extra_args, self._callback = model, extra_args, callback
        self._ones = torch.ones(batch)
        self.denoised: Tensor | None = None
        self.device = model.inner_model.inner_model.device

    def slope(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return eps(x, sigma) where `x` is, float32."""
        level = (self._ones * sigma.cpu()).to(self.device)
        self.denoised = self._model(x.to(self.device), level, **self._extra_args).float()
        return (x - self.denoised.to(x)) / sigma.to(x)

    def report(self, step: int, x: Tensor) -> None:
        """Tell the host's callback; steps are counted in the order of the calls."""
        if self._callback is not None:
            self._callback({"i": step, "denoised": self.denoised, "x": x})


class _Upwards:
    """A run of the host's sampling that goes from the picture to the noise."""

    def __init__(self, method: Callable[[Slope, Tensor, Tensor, Any], Inverted]) -> None:
        self._method = method
        self.found: Inverted

    def sampler(self) -> Any:
        """Return the SAMPLER; it must be given the latent, no noise, and the schedule of sampling."""
        sampler = comfy.samplers.KSAMPLER(self._run)
        sampler.guides_its_passes = True  # this pack's guides leave it alone
        return sampler

    def _run(self, model, x, sigmas, extra_args=None, callback=None, disable=None) -> Tensor:
        denoiser, last = _Denoiser(model, extra_args or {}, callback, len(x)), len(sigmas) - 2
        self.found = self._method(
            denoiser.slope,
            x.cpu().float(),
            sigmas.cpu().float(),
            lambda step, x: denoiser.report(last - step, x),
        )
        return self.found.latents[0].to(x)


def _guider(model: Any, positive: list, negative: list | None, cfg: float) -> Any:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative or positive)
    guider.set_cfg(cfg)
    return guider


def _check(model: Any, sigmas: Tensor, latent: Tensor) -> None:
    """Raise ValueError for a model, schedule or latent that cannot be inverted."""
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, comfy.model_sampling.EPS):
        raise ValueError(
            f"The model ({type(model.model).__name__}) mixes picture and noise in another way than Stable Diffusion. "
            "Connect an SD 1.x, SD 2.x or SDXL model."
        )
    _check_schedule(sigmas)
    channels = model.get_model_object("latent_format").latent_channels
    if latent.ndim != 4 or latent.shape[1] != channels:
        raise ValueError(
            f"The latent has the shape {tuple(latent.shape)}, but the model works on (batch, {channels}, height, "
            "width). Encode the picture with the VAE of this model (VAE Encode)."
        )
    if not torch.count_nonzero(latent):
        raise ValueError(
            "The latent is empty, so there is no picture to invert. Put Load Image and VAE Encode before it."
        )


def _check_schedule(sigmas: Tensor) -> None:
    """Raise ValueError unless `sigmas` fall from pure noise to 0."""
    if len(sigmas) < 3:
        raise ValueError(
            f"The schedule has {max(len(sigmas) - 1, 0)} steps; an inversion needs 2 at least, and 20 or more to be "
            "of use. Raise steps in the scheduler."
        )
    if bool((sigmas[1:] >= sigmas[:-1]).any()):
        raise ValueError(
            "The sigmas do not fall. Connect them as sampling uses them, without Flip Sigmas: the inversion turns them "
            "around by itself."
        )
    if sigmas[-1] != 0:
        raise ValueError(
            f"The schedule ends at sigma {sigmas[-1]:.4g}, but a picture has no noise. Connect a schedule that ends at "
            "0 (the low part, if you split it)."
        )
    if sigmas[0] < LOWEST_START:
        raise ValueError(
            f"The schedule starts at sigma {sigmas[0]:.4g}, where the picture still shows through, so that nothing "
            f"could be changed. Start at {LOWEST_START:g} or higher: raise denoise in the scheduler, to 1 for example."
        )


def _text(conditions: list) -> str:
    """Return the texts of CONDITIONING that know them."""
    prompts = [settings.get(PROMPT_KEY) for _, settings in conditions]
    return " | ".join(prompt.text for prompt in prompts if prompt is not None)
