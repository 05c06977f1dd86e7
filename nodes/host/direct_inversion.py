"""Direct inversion (PnP Inversion, arXiv 2310.01506) as a MODEL patch: a picture's branch stays on its trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...guidance.edit_region import EditRegion
from ...guidance.inversion import euler_target
from ...guidance.perceptual import product
from ...guidance.trajectory import Trajectory
from . import checks, predictions
from .trajectories import check_model, check_sampler

KEY = "guided_synthesis_direct_inversion"
POST = "sampler_post_cfg_function"
NO_SOURCE = (
    "auto_mask of Direct Inversion compares what the source's and the edited prompt make of the photo, and this guider "
    "does not tell. Sample with the Text Guidance Guider, paint a mask, or switch auto_mask off."
)


@dataclass(frozen=True)
class Kept:
    """Where the pictures of a trajectory stay on it; by default everywhere."""

    mask: Tensor | None = None
    """(1 or B, 1, H, W) in [0, 1]: 1 stays."""
    threshold: float | None = None
    """Of the automatic mask, see EditRegion; None: no such mask."""


def keep_source(model: Any, trajectory: Trajectory, kept: Kept | None = None) -> Any:
    """Return a clone of MODEL that samples the pictures of `trajectory` in the first places of a batch, exactly.

    Their estimates are replaced by those with which Euler's step leads to the trajectory's next latent, where `kept`
    says so; the rest is the host's. Raises ValueError for another model, and when sampling begins for another sampler,
    schedule or size.
    """
    check_model(trajectory, model)
    kept, count = kept or Kept(), trajectory.pictures
    regions: list[EditRegion] = []  # of the runs that last

    def after_cfg(args: dict[str, Any]) -> Tensor:
        denoised, x, sigma = args["denoised"], args["input"], args["sigma"].flatten()[0]
        step = trajectory.step_at(sigma)
        target = trajectory.latents[step + 1].to(x)
        back = euler_target(x[:count], sigma, trajectory.sigmas[step + 1].to(x), target)
        masks = [] if kept.mask is None else [kept.mask]
        masks += [region.untouched(*_first(args, count)) for region in regions[-1:]]
        first = _between(denoised[:count], back, masks)
        return torch.cat([first.to(denoised), denoised[count:]])

    def around_sampler(executor, guider, sigmas, extra_args, callback, noise, *rest, **named):
        check_sampler(executor.class_obj)
        extra_args = _with_last(extra_args, after_cfg)
        trajectory.check_schedule(extra_args["model_options"]["transformer_options"]["sample_sigmas"])
        trajectory.check_shape(noise[:count].shape)
        if kept.mask is not None:
            checks.batch(kept.mask.shape[0], count, "mask")
        if kept.threshold is None:
            return executor(guider, sigmas, extra_args, callback, noise, *rest, **named)
        regions.append(EditRegion(kept.threshold))
        try:
            return executor(guider, sigmas, extra_args, callback, noise, *rest, **named)
        finally:
            regions.pop()

    patched = model.clone()
    patched.set_model_sampler_post_cfg_function(after_cfg)
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, around_sampler)
    return patched


def _with_last(extra_args: dict[str, Any], function: Any) -> dict[str, Any]:
    """Return `extra_args` of a run in which `function` comes after the post-cfg functions of all other nodes.

    One that is further down the chain, such as that of Perturbed-Attention Guidance, would lead off the trajectory.
    """
    options = extra_args["model_options"]
    others = [other for other in options[POST] if other is not function]
    return {**extra_args, "model_options": {**options, POST: [*others, function]}}


def _first(args: dict[str, Any], count: int) -> list[Tensor]:
    """Return the first `count` estimates with the source's and with the edited text; raise ValueError without them."""
    told = predictions.told(args)
    if told is None:
        raise ValueError(NO_SOURCE)
    return [estimate[:count] for estimate in told]


def _between(free: Tensor, back: Tensor, masks: list[Tensor]) -> Tensor:
    """Return `back` (B, C, h, w) where all `masks` are 1 and `free` where one is 0; without masks `back`."""
    return torch.lerp(free.to(back), back, product(masks, back).to(back)) if masks else back
