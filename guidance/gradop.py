"""GradOP: the constrained problem x* = argmin_x L(f(x), y), x a picture of the text, relaxed and solved by Adam.

High-Fidelity Guided Image Synthesis with Latent Diffusion Models (arXiv 2211.17084, CVPR 2023):
    x_tilde = argmin_x L(f(x), y) + gamma * d(x, x_tau),    x = decoder(latent), x_tau: a sample from the text alone.
Noising x_tilde and denoising it with the text (see nodes/host/sampling.py) then gives x*.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from .decoding import Decoder
from .painting import PaintingObjective, gaussian
from .steering import Adam, Objective

REFRESH = 10  # steps: so often an approximate decoder is corrected where the descent stands
WINDOW, FLAT = (
    20,
    0.01,
)  # the descent stops when the mean of WINDOW losses is less than 1 % below the WINDOW before
COARSER = 4.0  # the low-pass distance blurs with so many times the painting function's sigma


class Relaxed:
    """The relaxed problem L(f(decoder(z)), y) + gamma * d(z): latents (B, C, h, w) -> losses (B,), differentiable."""

    def __init__(self, painting: PaintingObjective, distance: Objective, gamma: float | Tensor) -> None:
        """Take the painting's loss L, the distance d to x_tau and the weight of d, one or (B,).

        With the number 0 the distance is not even computed.
        """
        self.painting, self.distance, self.gamma = painting, distance, gamma

    def around(self, latent: Tensor) -> Relaxed:
        """Return this objective with the painting's decoder as exact as it can be near `latent`."""
        near = copy(self)
        near.painting = self.painting.around(latent)
        return near

    def __call__(self, latent: Tensor) -> Tensor:
        """Return one loss per sample of `latent`."""
        loss = self.painting(latent)
        if isinstance(self.gamma, Tensor) or self.gamma:
            return loss + self.gamma * self.distance(latent)
        return loss


def latent_distance(anchor: Tensor) -> Objective:
    """Return d(z) = mean squared difference of z and `anchor` (B, C, h, w): everything that x_tau shows counts."""
    return lambda latent: (latent - anchor).square().mean((1, 2, 3))


def low_pass_distance(anchor: Tensor, sigma: float) -> Objective:
    """Return d(z) = mean squared difference of z and `anchor`, both blurred by `sigma` latent cells.

    Only the large masses of x_tau count (its light, its sky and ground); what is finer is free to follow the painting.
    """
    coarse = gaussian(anchor, sigma)
    return lambda latent: (gaussian(latent, sigma) - coarse).square().mean((1, 2, 3))


def perceptual_distance(
    anchor: Tensor, decoder: Decoder, compare: Callable[[Tensor, Tensor], Tensor]
) -> Objective:
    """Return d(z) = compare(decoder(z), decoder(anchor)), e.g. LPIPS: how alike the pictures look counts."""
    with torch.inference_mode(False), torch.no_grad():
        picture = decoder(anchor.clone())
    return lambda latent: compare(decoder(latent), picture)


class DecodedOnce:
    """A decoder that keeps its last picture, so that L and d of one step share one decode."""

    def __init__(self, decoder: Decoder) -> None:
        """Take the decoder whose work is to be shared."""
        self.name, self.cost, self.scale, self._decoder = decoder.name, decoder.cost, decoder.scale, decoder
        self._last: tuple[Tensor, Tensor] | None = None

    @property
    def calls(self) -> int:
        """Return the decodes done."""
        return self._decoder.calls

    def around(self, latent: Tensor, picture: Tensor | None = None) -> DecodedOnce:
        """Return itself around an exact decoder; L and d must hold the same one, so no other is taken."""
        return self

    def __call__(self, latent: Tensor) -> Tensor:
        """Return RGB of `latent`, anew only for another tensor than last time."""
        if self._last is None or self._last[0] is not latent:
            self._last = latent, self._decoder(latent)
        return self._last[1]


@dataclass(frozen=True)
class Optimum:
    """What `relax` found."""

    latent: Tensor
    """(B, C, h, w), float32."""
    losses: Tensor
    """(steps done, B): the losses before each step; NaN where a sample had settled."""


def relax(
    start: Tensor,
    objective: Relaxed,
    iterations: int,
    learning_rate: float,
    tick: Callable[[int, Tensor], None] = lambda step, latent: None,
) -> Optimum:
    """Go down `objective` from `start` (B, C, h, w) by up to `iterations` Adam steps at `learning_rate`.

    A sample settles when its loss is flat: the mean of its last 20 losses is less than 1 % below that of the 20
    before. Each settles for itself, so a batch finds what its samples find alone; the descent ends when all have.
    An approximate decoder is corrected every 10 steps. `tick(step, latent)` runs before every step: raise there to
    interrupt.
    """
    descent, losses = Adam(start, learning_rate), []
    found, settled = descent.latent, torch.zeros(len(start), dtype=torch.bool, device=start.device)
    for step in range(iterations):
        tick(step, descent.latent)
        if step % REFRESH == 0:
            near = objective.around(descent.latent)
        losses.append(descent.step(near).masked_fill(settled, torch.nan))
        found = torch.where(settled[:, None, None, None], found, descent.latent)
        settled = settled | _is_flat(losses)
        if settled.all():
            break
    return Optimum(found, torch.stack(losses) if losses else start.new_zeros(0, len(start)))


def _is_flat(losses: list[Tensor]) -> Tensor:
    """Tell for each sample whether its loss has stopped to fall."""
    if len(losses) < 2 * WINDOW:
        return torch.zeros_like(losses[-1], dtype=torch.bool)
    earlier = torch.stack(losses[-2 * WINDOW : -WINDOW]).mean(0)
    return earlier - torch.stack(losses[-WINDOW:]).mean(0) <= FLAT * earlier
