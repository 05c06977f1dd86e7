"""Null-text optimisation: the unconditional text with which one sampling step lands on a given latent.

Null-text Inversion for Editing Real Images using Guided Diffusion Models (arXiv 2211.09794), algorithm 1:
    u_i = argmin_u || x_{i+1}(x_i, u) - z_{i+1} ||^2,    x_{i+1} = the sampler's step from x_i with CFG and u,
by a few steps of Adam (Kingma and Ba, arXiv 1412.6980) from u_{i-1}; z is the picture's trajectory, x_0 = z_0.
Ours: the best text that was tried is kept, so a learning rate that is too large cannot lead away from the trajectory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DECAY = 0.01  # of the first learning rate, less at each sampling step; the original runs 50
FLOOR = 0.5  # of the first learning rate: where the original's ends
BETA2 = 0.999  # Adam's own default
GROWTH = 2e-5  # of the threshold, at each sampling step

Estimate = Callable[[Tensor], Tensor]
"""Unconditional text (B, T, D) float32 -> the model's estimate x0hat (B, C, h, w) after classifier-free guidance."""


@dataclass(frozen=True)
class Target:
    """A step of Euler (DDIM) and the latent where it should lead. Latents are (B, C, h, w), x0 + sigma * noise."""

    x: Tensor
    sigma: Tensor
    next_sigma: Tensor
    pivot: Tensor
    """The latent at `next_sigma`."""

    def step(self, denoised: Tensor) -> Tensor:
        """Return where the sampler goes if `denoised` (B, C, h, w) is its estimate."""
        return self.x + (self.x - denoised) / self.sigma * (self.next_sigma - self.sigma)

    def losses(self, denoised: Tensor) -> Tensor:
        """Return the mean squared miss (B,) on the variance-preserving scale x / sqrt(1 + sigma^2), the original's."""
        miss = self.step(denoised) - self.pivot
        return miss.square().mean((1, 2, 3)) / (1 + self.next_sigma**2)

    def plain(self) -> Target:
        """Return a copy that autograd may save, whatever mode its tensors were made in; call it outside of that."""
        return Target(*(part.clone() for part in (self.x, self.sigma, self.next_sigma, self.pivot)))

    def residuals(self, denoised: Tensor) -> Tensor:
        """Return the root mean square miss (B,) on the scale of the latents."""
        return (self.step(denoised) - self.pivot).square().mean((1, 2, 3)).sqrt()


@dataclass(frozen=True)
class Descent:
    """How the text of each step is searched."""

    inner_steps: int
    """Adam steps at each sampling step, at most."""
    learning_rate: float
    """Of Adam, at the first sampling step."""
    momentum: float
    """Of Adam, its beta 1, in [0, 1)."""
    stop: float
    """A picture is done once its loss is below this, at the first sampling step; 0: never."""

    def rate(self, index: int) -> float:
        """Return the learning rate of sampling step `index`: the original's up to its 50 steps, then no less."""
        return self.learning_rate * max(1 - DECAY * index, FLOOR)

    def threshold(self, index: int) -> float:
        """Return the loss below which a picture is done at sampling step `index`."""
        return self.stop + GROWTH * index if self.stop > 0 else 0.0


@dataclass(frozen=True)
class Found:
    """Texts, one for each picture, and where they lead."""

    text: Tensor
    """(B, T, D)."""
    denoised: Tensor
    """(B, C, h, w): the estimate with it."""
    losses: Tensor
    """(B,)."""

    def or_better(self, other: Found) -> Found:
        """Return for each picture what has the lower loss."""
        better = other.losses < self.losses
        pairs = (
            (other.text, self.text),
            (other.denoised, self.denoised),
            (other.losses, self.losses),
        )
        return Found(*(_chosen(better, *pair) for pair in pairs))


def optimise(
    text: Tensor,
    estimate: Estimate,
    target: Target,
    descent: Descent,
    index: int,
    tick: Callable[[], None] = lambda: None,
) -> Found:
    """Return the best unconditional text found from `text` (B, T, D) for the sampling step of that `index`.

    Pictures do not influence each other; one that is done keeps its text to the bit. `estimate` is called at most
    `inner_steps` + 1 times, the last time without gradients; `tick` runs before each: raise there to interrupt. Works
    under `torch.inference_mode()` and `no_grad`.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf, target = text.detach().float().clone().requires_grad_(), target.plain()
        adam = torch.optim.Adam([leaf], lr=descent.rate(index), betas=(descent.momentum, BETA2))
        found, left = None, descent.inner_steps
        while True:
            tick()
            denoised = estimate(leaf if left > 0 else leaf.detach())
            losses = target.losses(denoised)
            now = Found(leaf.detach().clone(), denoised.detach(), losses.detach())
            found = found.or_better(now) if found else now
            active = ~(found.losses < descent.threshold(index))
            if left <= 0 or not active.any():
                return found
            leaf.grad = _gradient(losses, leaf, denoised[0].numel())
            adam.step()
            leaf.data = _chosen(active, leaf.data, found.text)
            left -= 1


def _gradient(losses: Tensor, leaf: Tensor, numbers: int) -> Tensor:
    """Return the gradient of the `losses` (B,), each a mean over `numbers`.

    It is that of sums until it is float32 again: half precision would round a mean's to zero on the way.
    """
    (gradient,) = torch.autograd.grad(losses.sum() * numbers, leaf)
    return gradient / numbers


def _chosen(which: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return the pictures `which` (B,) of `a` and the others of `b`, both (B, ...)."""
    return torch.where(which.reshape(-1, *[1] * (a.ndim - 1)), a, b)
