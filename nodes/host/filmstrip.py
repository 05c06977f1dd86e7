"""The steps of a trajectory as pictures, side by side."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ...guidance.trajectory import Trajectory
from .decoders import check_decoder
from .trajectories import check_model


def filmstrip(trajectory: Trajectory, model: Any, vae: Any, frames: int) -> Tensor:
    """Return IMAGE (B, H, F * W, 3) on the CPU: of each picture F steps from the noise to the clean picture.

    F is `frames`, or fewer if there are fewer steps; they are evenly spaced and include the first and the last. A
    noisy latent is divided by sqrt(1 + sigma^2), which gives it the power of a clean one, so the VAE can show it.
    Raises ValueError if the trajectory was made with another MODEL, or VAE does not fit it.
    """
    check_model(trajectory, model)
    check_decoder("vae", vae, model)
    if trajectory.latents.shape[2] != vae.latent_channels:
        raise ValueError(
            f"The trajectory has latents of {trajectory.latents.shape[2]} channels, but this VAE takes "
            f"{vae.latent_channels}. Connect the model and the VAE that it was made with."
        )
    shown = torch.linspace(0, trajectory.steps, min(frames, trajectory.steps + 1)).round().long().tolist()
    progress, pictures = comfy.utils.ProgressBar(len(shown)), []
    for step in shown:
        comfy.model_management.throw_exception_if_processing_interrupted()
        latent = trajectory.latents[step] / (1 + trajectory.sigmas[step].double() ** 2).sqrt()
        pictures.append(vae.decode(model.model.process_latent_out(latent.float())).float().cpu())
        progress.update(1)
    return torch.cat(pictures, dim=2)
