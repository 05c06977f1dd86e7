"""What a trajectory must fit in the host: the model it was made with, the sampler that follows it."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from ...guidance.trajectory import Trajectory

STEPPING = (
    "sample_euler"  # of the host's euler and ddim: one call a step, no noise, no memory of earlier steps
)
PROBED = ("out.2.weight", "input_blocks.0.0.weight", "time_embed.0.weight")  # no LoRA changes them as a rule


def fingerprint(model: Any) -> str:
    """Return 16 hexadecimal digits that tell the weights of MODEL from those of other checkpoints.

    They follow from the names and shapes of all weights and the values of a few, as they are without patches: a LoRA
    does not change them.
    """
    found = hashlib.sha256()
    for name, weight in model.model.diffusion_model.state_dict().items():
        found.update(f"{name}{tuple(weight.shape)}".encode())
        if name in PROBED:
            kept = model.backup.get(f"diffusion_model.{name}")
            values = weight if kept is None else kept.weight
            found.update(values.detach().cpu().half().clone().numpy().tobytes())
    return found.hexdigest()[:16]


def check_model(trajectory: Trajectory, model: Any) -> None:
    """Raise ValueError if `trajectory` was made with another MODEL."""
    if trajectory.model and trajectory.model != fingerprint(model):
        raise ValueError(
            "The trajectory was made with another model, so its noise means something else to this one. Connect the "
            "model that the picture was inverted with, or invert it again with this one."
        )


def check_sampler(sampler: Any) -> None:
    """Raise ValueError unless SAMPLER takes Euler's steps without fresh noise, as the inversion does."""
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", type(sampler).__name__)
    churn = getattr(sampler, "extra_options", {}).get("s_churn", 0.0)
    if name == STEPPING and not churn:
        return
    name = name.removeprefix("sample_") + (f" with s_churn {churn:g}" if churn else "")
    raise ValueError(
        f"The sampler {name} does not take the steps that were inverted, so the picture would be lost. Choose euler "
        "or ddim; samplers with fresh noise (ancestral, SDE) or with a memory of steps do not fit."
    )


def starting_noise(trajectory: Trajectory, sampling: Any, latent: Tensor) -> Tensor:
    """Return the noise (B, C, h, w) that a sampler makes the trajectory's start of, on top of `latent`.

    `latent` (B, C, h, w) is in the model's space, zeros for an empty one; `sampling` is the model's `model_sampling`.
    """
    sigma = trajectory.sigmas[:1]
    top = float(sigma) > float(sampling.sigma_max) * (1 - 1e-5)
    gain = sampling.noise_scaling(sigma, torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), top)
    return ((trajectory.latents[0] - latent.to(trajectory.latents[0])) / gain).float()
