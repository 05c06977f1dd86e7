"""A trajectory: the noisy latents of a picture from the first sampling step to the last, as an inversion finds them.

The latents are in the variance-exploding scale, x = x0 + sigma * noise, which is the host's for SD models: there the
sampling ODE is dx/dsigma = eps(x, sigma) and a step of Euler (DDIM) is x' = x + (sigma' - sigma) * eps(x, sigma).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SAME_LEVEL = 1e-4  # relative; schedules that were saved, cut or moved between devices differ by less


@dataclass(frozen=True)
class Trajectory:
    """Where an inversion passed, in the order of sampling: index 0 is the noise, the last the clean picture."""

    sigmas: Tensor
    """(S + 1,) float32, CPU: falling noise levels, as sampling uses them; the last is 0."""
    latents: Tensor
    """(S + 1, B, C, h, w) float32 or float64, CPU, in the model's latent space: `latents[i]` is at `sigmas[i]`."""
    residuals: Tensor
    """(S, B) float32: by how much the sampler's step from `latents[i]` misses `latents[i + 1]`, root mean square.
    NaN where it was not measured."""
    method: str
    cfg: float
    """Guidance scale of the inversion; with null-texts the one that they are for."""
    calls: int
    """Model calls that it took."""
    model: str = ""
    """Fingerprint of the model; empty if unknown."""
    prompt: str = ""
    """Text of the positive prompt; empty if unknown."""
    null_text: Tensor | None = None
    """(S, B, T, D): the unconditional text of each step, if null-text optimisation has run."""

    @property
    def steps(self) -> int:
        """Number of sampling steps, S."""
        return len(self.sigmas) - 1

    @property
    def pictures(self) -> int:
        """Number of pictures, B."""
        return self.latents.shape[1]

    def step_at(self, sigma: float) -> int | None:
        """Return the step that begins at noise level `sigma`, or None if there is none."""
        near = torch.isclose(self.sigmas[:-1], torch.tensor(float(sigma)), rtol=SAME_LEVEL, atol=0.0)
        return int(near.nonzero()[0]) if near.any() else None

    def check_schedule(self, sigmas: Tensor) -> None:
        """Raise ValueError unless `sigmas` (S + 1,) are those of the inversion."""
        given = sigmas.detach().float().cpu()
        if given.shape == self.sigmas.shape and torch.allclose(
            given, self.sigmas, rtol=SAME_LEVEL, atol=1e-6
        ):
            return
        raise ValueError(
            f"The sampler runs {_described(given)}, but the trajectory was made for {_described(self.sigmas)}. Connect "
            "the same SIGMAS to the inversion and to the sampler (same scheduler, steps and denoise)."
        )

    def check_shape(self, shape: torch.Size) -> None:
        """Raise ValueError unless latents of `shape` (B, C, h, w) are as many and as large as the trajectory's."""
        own = self.latents.shape[1:]
        if tuple(shape) == tuple(own):
            return
        raise ValueError(
            f"The latent is {_sized(shape)}, but the trajectory is of {_sized(own)}. Connect the latent that was "
            "inverted, or an empty latent of its size and batch."
        )


def _described(sigmas: Tensor) -> str:
    """Return a schedule in words."""
    return f"{len(sigmas) - 1} steps from sigma {sigmas[0]:.4g} to {sigmas[-1]:.4g}"


def _sized(shape: torch.Size) -> str:
    """Return the size of latents (B, C, h, w) in words, or their shape if it is another."""
    if len(shape) != 4:
        return f"of the shape {tuple(shape)}"
    count, channels, height, width = shape
    return f"{count} x {width}x{height} cells of {channels} channels"
