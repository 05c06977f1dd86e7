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

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Adam's own defaults


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
    elementwise: bool = False,
) -> Tensor:
    """Return `start` (B, C, h, w) after `steps` Adam steps at `learning_rate` (latent units) on `objective`, float32.

    Adam's second moment is one number for each sample, so a step keeps the direction of the gradient and the move is
    as smooth as the objective. With `elementwise` it is one for each element, as in the original: tiny gradients then
    count as much as large ones, which shows as grain. Samples do not influence each other. `tick` runs before every
    step: raise there to interrupt. Works under `torch.inference_mode()` and `no_grad`.
    """
    with torch.inference_mode(False):
        latent = start.detach().clone().float()
        mean, square = torch.zeros_like(latent), torch.zeros_like(latent)
        for step in range(1, steps + 1):
            tick()
            gradient = _gradient(objective, latent)
            power = gradient.square() if elementwise else gradient.square().mean((1, 2, 3), keepdim=True)
            mean, square = mean.lerp(gradient, 1 - BETA1), square.lerp(power.expand_as(square), 1 - BETA2)
            scale = (square / (1 - BETA2**step)).sqrt() + EPSILON
            latent = latent - learning_rate * (mean / (1 - BETA1**step)) / scale
        return latent


def _gradient(objective: Objective, latent: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = latent.detach().requires_grad_()
        return torch.autograd.grad(objective(leaf).sum(), leaf)[0]


def steered(denoised: Tensor, moved: Tensor, strength: float, region: Tensor | None = None) -> Tensor:
    """Return `denoised + strength * region * (moved - denoised)` in the dtype of `denoised`.

    All tensors (B, C, h, w); `region` broadcasts and lies in [0, 1]. Where it is 0 the result is `denoised` to the bit.
    """
    share = strength if region is None else strength * region
    precise = torch.promote_types(denoised.dtype, torch.float32)
    shift = share * (moved.to(precise) - denoised.to(precise))
    return torch.where(shift == 0, denoised, (denoised.to(precise) + shift).to(denoised.dtype))
