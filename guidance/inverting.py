"""Inverting gradients: go down from noise to a picture that teaches a classifier what a reference teaches it.

Inverting Gradients - How easy is it to break privacy in federated learning? (arXiv 2003.14053), section 4:
    argmin_x objective(x) + alpha * TV(x),
by Adam (arXiv 1412.6980) on the sign of the gradient, with a learning rate that falls to a tenth after 3/8, 5/8 and
7/8 of the steps. Ours: x = render(z), e.g. decoder(z) of a latent diffusion model, and the descent is on z; and, since
it gets as low in a sixth of the steps, by default the gradient itself and a learning rate that falls along half a
cosine (SGDR, arXiv 1608.03983, Eq. 5, without restarts).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .gradient_matching import total_variation

DROPS = (3 / 8, 5 / 8, 7 / 8)  # of the steps: where the learning rate falls to a tenth


@dataclass(frozen=True)
class Descent:
    """How the picture is searched. Inverting Gradients' own settings: 0.1, signed, in drops."""

    steps: int = 800
    """For the schedule of the learning rate; `Inverter` does as many as it is asked."""
    learning_rate: float = 0.1
    """Of Adam, at the first step."""
    signed: bool = False
    """Adam sees only the gradient's sign."""
    total_variation: float = 1e-4
    """Weight alpha of the total variation of the picture."""
    cosine: bool = True
    """The learning rate falls along half a cosine, to 0 after `steps`, instead of in three drops."""

    def rate(self, done: int) -> float:
        """Return the learning rate after `done` steps."""
        if self.cosine:
            return self.learning_rate * (1 + math.cos(math.pi * min(done / self.steps, 1))) / 2
        return self.learning_rate * 0.1 ** sum(done >= drop * self.steps for drop in DROPS)


@dataclass(frozen=True)
class State:
    """All that a descent needs to go on to the bit; tensors (1, C, h, w) on the CPU."""

    latent: Tensor
    best: Tensor
    lowest: float
    done: int
    first: Tensor
    """Adam's mean of the gradients."""
    second: Tensor
    """Adam's mean of their squares."""


class Inverter:
    """A descent, one step at a time. Call it inside `torch.inference_mode(False)` and `enable_grad`."""

    def __init__(
        self,
        start: Tensor,
        render: Callable[[Tensor], Tensor],
        objective: Callable[[Tensor], Tensor],
        descent: Descent,
        state: State | None = None,
    ) -> None:
        """Start at the latent `start` (1, C, h, w), or go on from `state` on its device.

        `render`: latent -> RGB (1, 3, H, W); `objective`: RGB -> (1,), e.g. `GradientMatching`; both differentiable.
        """
        self._render, self._objective, self._descent = render, objective, descent
        latent = start if state is None else state.latent.to(start.device)
        self._leaf = latent.detach().clone().requires_grad_()
        self._adam = torch.optim.Adam([self._leaf], lr=descent.learning_rate)
        self.done, self.lowest, self.best = 0, math.inf, self.latent
        if state is not None:
            self.done, self.lowest, self.best = state.done, state.lowest, state.best.to(start.device).clone()
            self._load_moments(state)

    @property
    def latent(self) -> Tensor:
        """Return where the descent stands, (1, C, h, w), a copy."""
        return self._leaf.detach().clone()

    def step(self) -> float:
        """Do one step; return the objective before it, without the total variation.

        `best` is the latent with the lowest loss so far, total variation included, and `lowest` that loss. Raises
        ValueError, and stays where it was, if the loss or its gradient is not a number.
        """
        objective, loss, gradient = self._loss()
        if loss < self.lowest:
            self.lowest, self.best = loss, self.latent
        self._leaf.grad = gradient.sign() if self._descent.signed else gradient
        self._adam.param_groups[0]["lr"] = self._descent.rate(self.done)
        self._adam.step()
        self._leaf.grad = None
        self.done += 1
        return objective

    def state(self) -> State:
        """Return what is needed to go on later, bit for bit, with the same functions and settings."""
        moments = self._adam.state[self._leaf] if self.done else {}
        first, second = (moments.get(key, torch.zeros_like(self._leaf)) for key in ("exp_avg", "exp_avg_sq"))
        latent, best, first, second = (
            t.detach().cpu().clone() for t in (self._leaf, self.best, first, second)
        )
        return State(latent, best, self.lowest, self.done, first, second)

    def _loss(self) -> tuple[float, float, Tensor]:
        """Return the objective, the loss and its gradient where the descent stands."""
        picture = self._render(self._leaf)
        objective = self._objective(picture).sum()
        loss = objective + self._descent.total_variation * total_variation(picture).sum()
        (gradient,) = torch.autograd.grad(loss, self._leaf)
        if not (loss.isfinite() and gradient.isfinite().all()):
            raise ValueError(
                f"After {self.done} steps the loss or its gradient is not a number any more: lower the learning rate, "
                "or choose another reference or classifier."
            )
        return objective.item(), loss.item(), gradient

    def _load_moments(self, state: State) -> None:
        device = self._leaf.device
        self._adam.state[self._leaf] = {
            "step": torch.tensor(float(state.done)),
            "exp_avg": state.first.to(device).clone(),
            "exp_avg_sq": state.second.to(device).clone(),
        }
