"""What a guider's model sees in noise alone: its first estimate of the picture, which shows what a prompt paints.

At the highest noise level sigma there is no picture in x = sigma n yet, so the estimate x0hat(x, sigma) is the mean of
what the prompt stands for, as far as this noise n speaks of it; the mean over several n is the prompt's own.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...guidance.seeds import derived_seed
from . import checks
from .restarts import unit_noise

PLAIN = 2  # which of the seeds that follow from the user's


def check_guider(guider: Any, channels: int) -> None:
    """Raise ValueError unless GUIDER samples pictures in latents of `channels` channels."""
    model = guider.model_patcher
    checks.image_latent(model)
    own = model.get_model_object("latent_format").latent_channels
    if own != channels:
        raise ValueError(
            f"The guider samples latents of {own} channels, but the VAE makes latents of {channels}: they are of "
            "different families. Connect the guider of the model that the noise is for."
        )


def first_estimate(guider: Any, shape: tuple[int, int, int, int], seed: int, count: int = 4) -> Tensor:
    """Return the mean of the estimates x0hat that GUIDER makes of `count` plain noises, (1, C, h, w) float32.

    `shape` is (1, C, h, w). All in one call, at the model's highest noise level: an Euler step from there to 0 leads
    to the estimate. It is in the model's own latent space, on the CPU. The guider is not changed, and nothing of the
    call stays. Raises ValueError if the estimate is not a number.
    """
    model, own = guider.model_patcher, derived_seed(seed, PLAIN)
    empty = torch.zeros(count, *shape[1:])
    sigmas = torch.tensor([float(model.get_model_object("model_sampling").sigma_max), 0.0])
    euler = comfy.samplers.sampler_object("euler")
    # a copy: what the host notes on a guider goes with it, also after a failure
    found = copy(guider).sample(unit_noise(empty, own), empty, euler, sigmas, disable_pbar=True, seed=own)
    estimate = model.model.process_latent_in(found.float().cpu()).mean(0, keepdim=True)
    if not bool(estimate.isfinite().all()):
        raise ValueError(
            "The guider's first estimate is not a number (black pictures), so it has no contrast. See whether it "
            "samples pictures without Saliency Noise; some models need float32."
        )
    return estimate
