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
TINY = 1e-30  # keeps a quotient finite where nothing is left to gain


class Objective(Protocol):
    """What a guide wants: latents (B, C, h, w) in the model's space -> one loss per sample (B,), differentiable."""

    def __call__(self, latent: Tensor) -> Tensor:
        """Return the losses of `latent`."""
        ...


class Adam:
    """One descent of latents (B, C, h, w): where it stands is `latent`, float32. See `descend` for its two kinds.

    Samples do not influence each other. Works under `torch.inference_mode()` and `no_grad`.
    """

    def __init__(self, start: Tensor, learning_rate: float, elementwise: bool = False) -> None:
        """Begin at `start` with steps of `learning_rate` (latent units)."""
        with torch.inference_mode(False):
            self.latent = start.detach().clone().float()
            self._mean, self._square = torch.zeros_like(self.latent), torch.zeros_like(self.latent)
        self._rate, self._elementwise, self._steps = learning_rate, elementwise, 0

    def step(self, objective: Objective) -> Tensor:
        """Take a step down `objective`; return its losses (B,) before the step."""
        with torch.inference_mode(False):
            self._steps += 1
            losses, gradient = _slope(objective, self.latent)
            power = gradient.square()
            if not self._elementwise:
                power = power.mean((1, 2, 3), keepdim=True).expand_as(gradient)
            self._mean = self._mean.lerp(gradient, 1 - BETA1)
            self._square = self._square.lerp(power, 1 - BETA2)
            scale = (self._square / (1 - BETA2**self._steps)).sqrt() + EPSILON
            self.latent = self.latent - self._rate * (self._mean / (1 - BETA1**self._steps)) / scale
            return losses


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
    descent = Adam(start, learning_rate, elementwise)
    for _ in range(steps):
        tick()
        descent.step(objective)
    return descent.latent


def conjugate(
    start: Tensor,
    objective: Objective,
    steps: int,
    reach: float,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return `start` (B, C, h, w) after `steps` steps of conjugate gradients on `objective`, float32.

    Polak-Ribiere with a secant line search (Shewchuk, An Introduction to the Conjugate Gradient Method Without the
    Agonizing Pain, 1994): two gradients a step, no learning rate, and exact for a quadratic objective. `reach` (latent
    units, root mean square) is the length of the probe along a direction and of the longest step; a step that would
    raise a sample's loss is not taken, and its reach shrinks to a quarter. Samples do not influence each other. `tick`
    runs before every step: raise there to interrupt. Works under `torch.inference_mode()`.
    """
    with torch.inference_mode(False):
        latent = start.detach().clone().float()
        loss, slope = _slope(objective, latent)
        direction, room = -slope, latent.new_full((len(latent), 1, 1, 1), reach)
        for _ in range(steps):
            tick()
            probe = direction * (room / _dot(direction, direction).sqrt().clamp_min(TINY))
            bend = _dot(probe, _slope(objective, latent + probe)[1] - slope)
            length = (-_dot(probe, slope) / bend.clamp_min(TINY)).clamp(0, 1)
            tried = latent + probe * torch.where(bend > 0, length, 1.0)
            found, slope_there = _slope(objective, tried)
            better = (found < loss)[:, None, None, None]
            keep = _dot(slope_there, slope_there - slope) / _dot(slope, slope).clamp_min(TINY)
            onward = keep.clamp_min(0) * direction - slope_there
            loss = found.minimum(loss)
            latent, slope = torch.where(better, tried, latent), torch.where(better, slope_there, slope)
            direction, room = torch.where(better, onward, -slope), torch.where(better, room, room / 4)
        return latent


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean of a * b for each sample, (B, 1, 1, 1)."""
    return (a * b).mean((1, 2, 3), keepdim=True)


def _slope(objective: Objective, latent: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = latent.detach().requires_grad_()
        losses = objective(leaf)
        return losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0]


def steered(denoised: Tensor, moved: Tensor, strength: float, region: Tensor | None = None) -> Tensor:
    """Return `denoised + strength * region * (moved - denoised)` in the dtype of `denoised`.

    All tensors (B, C, h, w); `region` broadcasts and lies in [0, 1]. Where it is 0 the result is `denoised` to the bit.
    """
    share = strength if region is None else strength * region
    precise = torch.promote_types(denoised.dtype, torch.float32)
    shift = share * (moved.to(precise) - denoised.to(precise))
    return torch.where(shift == 0, denoised, (denoised.to(precise) + shift).to(denoised.dtype))
