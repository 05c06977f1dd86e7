"""Inversion: from a clean latent up to the noise that sampling makes it of again.

All methods work on x = x0 + sigma * noise with a slope eps(x, sigma) = (x - denoised) / sigma, guidance included, and
schedules in the order of sampling: sigmas[0] is the noisiest, the last is 0. Euler's step down, which is DDIM's, is
    x[i + 1] = x[i] + (sigmas[i + 1] - sigmas[i]) * eps(x[i], sigmas[i]).

ddim      DDIM inversion (arXiv 2010.02502; 2105.05233): eps at a guess of x[i] stands in for eps(x[i], sigmas[i]).
implicit  Solves that step for x[i] (accelerated fixed point, as AIDI, arXiv 2309.04907): exact where it converges.
o-belm    Another sampler, O-BELM (arXiv 2410.07273): each latent follows from two, exactly in both directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .fixed_point import fixed_point

Slope = Callable[[Tensor, Tensor], Tensor]
"""eps(x (B, C, h, w), sigma ()) -> (B, C, h, w)."""
Report = Callable[[int, Tensor], None]
"""Told the step (index into the schedule) that is done, and its latent."""
DDIM, IMPLICIT, BELM = "ddim", "implicit", "o-belm"


@dataclass(frozen=True)
class Inverted:
    """What an inversion of B pictures over S steps found."""

    latents: Tensor
    """(S + 1, B, C, h, w), in the order of sampling."""
    residuals: Tensor
    """(S, B): by how much the step down from `latents[i]` misses `latents[i + 1]`, rms; NaN if not measured."""
    calls: int
    """Evaluations of the slope."""


def ddim(slope: Slope, clean: Tensor, sigmas: Tensor, report: Report) -> Inverted:
    """Invert `clean` (B, C, h, w) with one call a step and an error that nobody measures."""
    latents = [clean]
    for step in _upwards(sigmas):
        x, low, high = latents[-1], sigmas[step + 1], sigmas[step]
        latents.append(x + (high - low) * slope(same_input(x, low, high), high))
        report(step, latents[-1])
    unknown = torch.full((len(sigmas) - 1, len(clean)), torch.nan)
    return Inverted(torch.stack(latents[::-1]), unknown, len(latents) - 1)


def implicit(
    slope: Slope, clean: Tensor, sigmas: Tensor, report: Report, tolerance: float, most_calls: int
) -> Inverted:
    """Invert `clean` (B, C, h, w) with at most `most_calls` calls a step, until the residual is `tolerance` (rms).

    The first guess of a step is the Euler step upwards with the slope where the step before ended, which is known.
    """
    latents, residuals, calls, known = [clean], [], 0, None
    for step in _upwards(sigmas):
        x, low, high = latents[-1], sigmas[step + 1], sigmas[step]
        guess = same_input(x, low, high) if known is None else x + (high - low) * known

        def upwards(above: Tensor, x: Tensor = x, high: Tensor = high, rise: Tensor = high - low) -> Tensor:
            return x + rise * slope(above, high)

        found = fixed_point(upwards, guess, tolerance, most_calls)
        known = (found.image - x) / (high - low)
        latents.append(found.x)
        residuals.append(found.residual)
        calls += found.calls
        report(step, found.x)
    return Inverted(torch.stack(latents[::-1]), torch.stack(residuals[::-1]), calls)


def belm(slope: Slope, clean: Tensor, sigmas: Tensor, report: Report) -> Inverted:
    """Invert `clean` (B, C, h, w) for `belm_sample`, in float64; needs two steps or more.

    The step next to the picture is DDIM's; all others follow exactly, so every residual is rounding.
    """
    sigmas, clean = sigmas.double(), clean.double()
    last = len(sigmas) - 2
    guess = same_input(clean, sigmas[-1], sigmas[last])
    latents = [clean, clean + (sigmas[last] - sigmas[-1]) * _exact(slope, guess, sigmas[last])]
    report(last, latents[-1])
    for step in range(last - 1, -1, -1):
        below, x = latents[-2:]
        up, down = sigmas[step] - sigmas[step + 1], sigmas[step + 1] - sigmas[step + 2]
        latents.append(_leap(below, x, _exact(slope, x, sigmas[step + 1]), down, up))
        report(step, latents[-1])
    return Inverted(torch.stack(latents[::-1]), torch.zeros(last + 1, len(clean)), last + 1)


def belm_sample(slope: Slope, noisy: Tensor, second: Tensor | None, sigmas: Tensor, report: Report) -> Tensor:
    """Sample from `noisy` at sigmas[0] and `second` at sigmas[1], (B, C, h, w); returns float64 at the last sigma.

    Without `second` the first step is Euler's. Steps that call the slope are reported.
    """
    sigmas, above = sigmas.double(), noisy.double()
    if second is None:
        second = above + (sigmas[1] - sigmas[0]) * _exact(slope, above, sigmas[0])
        report(0, second)
    x = second.double()
    for step in range(1, len(sigmas) - 1):
        up, down = sigmas[step - 1] - sigmas[step], sigmas[step] - sigmas[step + 1]
        above, x = x, _leap(above, x, _exact(slope, x, sigmas[step]), -up, -down)
        report(step, x)
    return x


def same_input(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the latent at sigma `high` that a network sees as it sees `x` at `low`: the variance is kept."""
    return x * ((1 + high**2) / (1 + low**2)).sqrt()


def euler_target(x: Tensor, sigma: Tensor, next_sigma: Tensor, target: Tensor) -> Tensor:
    """Return the `denoised` with which Euler's step from `x` at `sigma` leads to `target` at `next_sigma`.

    Direct inversion (arXiv 2310.01506): with it the source's branch returns to its trajectory at every step.
    """
    return x + sigma / (sigma - next_sigma) * (target - x)


def _leap(before: Tensor, x: Tensor, slope: Tensor, behind: Tensor, ahead: Tensor) -> Tensor:
    """Return the latent a distance `ahead` from `x`, of that `behind` it (O-BELM); of one sign, down or up.

    (O-BELM's step and its inverse are the same formula, with the distances taken upwards or downwards.)
    """
    ratio = ahead / behind
    return ratio**2 * before + (1 - ratio**2) * x + ahead * (1 + ratio) * slope


def _exact(slope: Slope, x: Tensor, sigma: Tensor) -> Tensor:
    """Return the slope at `x` in float64; the network gets float32."""
    return slope(x.float(), sigma.float()).double()


def _upwards(sigmas: Tensor) -> range:
    """Return the steps from the picture to the noise."""
    return range(len(sigmas) - 2, -1, -1)
