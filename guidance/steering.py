"""Steering: move the model's estimate of the clean picture down an objective, and hand it back to the sampler.

Every sampler asks the model for `denoised` = x0hat. A guide moves x0hat to z with
    z = argmin_z L(z), started at x0hat, a few Adam steps (Kingma and Ba, arXiv 1412.6980),
and sampling goes on from x0hat + strength * (z - x0hat).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Objective(Protocol):
    """What a guide wants: latents (B, C, h, w) in the model's space -> one loss per sample (B,), differentiable."""

    def __call__(self, latent: Tensor) -> Tensor:
        """Return the losses of `latent`."""
        ...


def descend(
    start: Tensor,
    objective: Objective,
    steps: int,
    learning_rate: float,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return `start` (B, C, h, w) after `steps` Adam steps at `learning_rate` (latent units) on `objective`, float32.

    Samples do not influence each other. `tick` runs before every step: raise there to interrupt. Works under
    `torch.inference_mode()` and `no_grad`. The optimiser starts afresh with every call, as in GradOP+.
    """
    with torch.inference_mode(False), torch.enable_grad():
        latent = start.detach().clone().float().requires_grad_()
        optimizer = torch.optim.Adam([latent], lr=learning_rate)
        for _ in range(steps):
            tick()
            (latent.grad,) = torch.autograd.grad(objective(latent).sum(), latent)
            optimizer.step()
        return latent.detach()


def steered(denoised: Tensor, moved: Tensor, strength: float, region: Tensor | None = None) -> Tensor:
    """Return `denoised + strength * region * (moved - denoised)` in the dtype of `denoised`.

    All tensors (B, C, h, w); `region` broadcasts and lies in [0, 1]. Where it is 0 the result is `denoised` to the bit.
    """
    share = strength if region is None else strength * region
    precise = torch.promote_types(denoised.dtype, torch.float32)
    shift = share * (moved.to(precise) - denoised.to(precise))
    return torch.where(shift == 0, denoised, (denoised.to(precise) + shift).to(denoised.dtype))
