"""Fixed points of a map, for a batch of independent problems: Anderson acceleration.

Anderson, Iterative Procedures for Nonlinear Integral Equations (1965), in the form of Walker and Ni, SIAM J. Numer.
Anal. 49 (2011), "type II": of the last iterates, take the combination whose residuals cancel best, and step from there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DEPTH = 4  # differences of iterates that are remembered; more did not need fewer calls
RIDGE = 1e-8  # of the mean square of the remembered differences


@dataclass(frozen=True)
class Solution:
    """What the solver found for each of B problems."""

    x: Tensor
    """(B, ...): of all points that were tried, that with the smallest residual."""
    image: Tensor
    """(B, ...): what the map makes of `x`."""
    residual: Tensor
    """(B,): root mean square of image - x."""
    calls: int
    """Evaluations of the map."""


def fixed_point(
    function: Callable[[Tensor], Tensor], guess: Tensor, tolerance: float, most_calls: int
) -> Solution:
    """Return x with function(x) = x, from `guess` (B, ...), each of the B problems on its own.

    Stops when all residuals are at most `tolerance`, or after `most_calls` evaluations. A problem that is solved
    stays where it is while others go on.
    """
    x, image = guess, function(guess)
    best = Solution(x, image, _rms(image - x), 1)
    steps: deque[tuple[Tensor, Tensor]] = deque(maxlen=DEPTH)
    while bool((best.residual > tolerance).any()) and best.calls < most_calls:
        following = torch.where(_like(best.residual <= tolerance, x), best.x, x + _step(image - x, steps))
        moved = function(following)
        steps.append((following - x, (moved - following) - (image - x)))
        x, image = following, moved
        best = _better(best, Solution(x, image, _rms(image - x), best.calls + 1))
    return best


def _step(residual: Tensor, steps: deque[tuple[Tensor, Tensor]]) -> Tensor:
    """Return where to go from a point with `residual` (B, ...): the plain step, if nothing is remembered."""
    if not steps:
        return residual
    dx, dr = (_exact(torch.stack([pair[part] for pair in steps], -1)).flatten(1, -2) for part in (0, 1))
    r = _exact(residual).flatten(1).unsqueeze(-1)  # (B, N, 1); dx and dr: (B, N, depth)
    gram = dr.mT @ dr
    ridge = (
        RIDGE * gram.diagonal(dim1=-2, dim2=-1).mean(-1) + 1e-30
    )  # a solved problem moves no more: gram is 0
    gram = gram + ridge[:, None, None] * torch.eye(gram.shape[-1], dtype=gram.dtype)
    weights = torch.linalg.solve(gram, dr.mT @ r)
    return (r - (dx + dr) @ weights).squeeze(-1).to(residual).view_as(residual)


def _better(old: Solution, new: Solution) -> Solution:
    """Return for each problem the point with the smaller residual."""
    is_new = new.residual < old.residual
    x, image = (torch.where(_like(is_new, a), b, a) for a, b in ((old.x, new.x), (old.image, new.image)))
    return Solution(x, image, torch.where(is_new, new.residual, old.residual), new.calls)


def _rms(difference: Tensor) -> Tensor:
    return difference.flatten(1).square().mean(1).sqrt()


def _exact(x: Tensor) -> Tensor:
    """Return `x` in float64, on the CPU, since not every device has it; next to a model call it costs nothing."""
    return x.cpu().double()


def _like(chosen: Tensor, x: Tensor) -> Tensor:
    """Return `chosen` (B,) with as many axes as `x` (B, ...)."""
    return chosen.view(-1, *[1] * (x.ndim - 1))
