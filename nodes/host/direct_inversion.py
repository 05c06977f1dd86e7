"""Direct inversion (PnP Inversion, arXiv 2310.01506) as a MODEL patch: a picture's branch stays on its trajectory."""

from __future__ import annotations

from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...guidance.inversion import euler_target
from ...guidance.trajectory import Trajectory
from .trajectories import check_model, check_sampler

KEY = "guided_synthesis_direct_inversion"


def keep_source(model: Any, trajectory: Trajectory) -> Any:
    """Return a clone of MODEL that samples the pictures of `trajectory` in the first places of a batch, exactly.

    Their estimates are replaced by those with which Euler's step leads to the trajectory's next latent; the rest of
    the batch is the host's. Raises ValueError for another model, and when sampling begins for another sampler,
    schedule or size.
    """
    check_model(trajectory, model)
    count = trajectory.pictures

    def after_cfg(args: dict[str, Any]) -> Tensor:
        denoised, x, sigma = args["denoised"], args["input"], args["sigma"].flatten()[0]
        step = trajectory.step_at(sigma)
        target = trajectory.latents[step + 1].to(x)
        kept = euler_target(x[:count], sigma, trajectory.sigmas[step + 1].to(x), target)
        return torch.cat([kept.to(denoised), denoised[count:]])

    def around_sampler(executor, guider, sigmas, extra_args, callback, noise, *rest, **named):
        check_sampler(executor.class_obj)
        trajectory.check_schedule(extra_args["model_options"]["transformer_options"]["sample_sigmas"])
        trajectory.check_shape(noise[:count].shape)
        return executor(guider, sigmas, extra_args, callback, noise, *rest, **named)

    patched = model.clone()
    patched.set_model_sampler_post_cfg_function(after_cfg)
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, around_sampler)
    return patched
