"""The time travel of RePaint: which noise levels a run visits again, and how a noisy latent goes back to a higher one.

RePaint: Inpainting using Denoising Diffusion Probabilistic Models (arXiv 2201.09865), algorithm 1 and appendix B.
At a level that it has reached, a run goes back up by forward noise and denoises again, so that what is new and what is
known can come to fit: x' = x + sqrt(sigma'^2 - sigma^2) z where x = x0 + sigma n (equation 1, in steps of any size).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Level(NamedTuple):
    """How a model mixes a noisy latent, x = signal * x0 + noise * n; SD has signal 1 and noise sigma."""

    signal: Tensor
    noise: Tensor


def steps_between(sigmas: Sequence[float], first: float, last: float) -> range:
    """Return the steps of a schedule that begin at a level in (`last`, `first`]; step i leads to `sigmas[i + 1]`."""
    chosen = [step for step, sigma in enumerate(sigmas[:-1]) if last < sigma <= first]
    return range(chosen[0], chosen[-1] + 1) if chosen else range(0)


def resampled(sigmas: Sequence[float], steps: range) -> range:
    """Return those of `steps` that can be done again: all but one that leads to level 0; no way leads back from there.

    The paper's own schedule does not jump from its last level either.
    """
    return range(steps.start, steps.stop - 1) if steps and sigmas[steps.stop] == 0 else steps


def descents(steps: int, again: range, jump_length: int, resamplings: int) -> list[range]:
    """Return the steps of a run in the order in which they are done, parted where it jumps back.

    `steps` is the length of the schedule. The steps `again` are done `resamplings` times, `jump_length` at a time,
    counted from their end as in the paper (`get_schedule_jump`: jump length j, jump_n_sample r). Where that does not
    come out even, the first jumps are shorter, which the paper leaves out. Model calls of a first-order sampler:
    `steps` + (`resamplings` - 1) * len(`again`). Without anything to resample there is one descent.
    """
    lows = reversed(range(again.stop, again.start, -jump_length))
    jumps = [(low, max(again.start, low - jump_length)) for low in lows for _ in range(resamplings - 1)]
    starts = [0, *(back for _, back in jumps)]
    stops = [*(low for low, _ in jumps), steps]
    return [range(start, stop) for start, stop in zip(starts, stops, strict=True)]


def jump_back(clean: Tensor, fresh: Tensor, here: Level, there: Level) -> Tensor:
    """Return a noisy latent at the level `there`, forward-noised from the lower level `here`.

    `clean` (B, C, h, w) is the noisy latent divided by the signal of `here`: what the host's samplers return; `fresh`
    is unit noise of the same shape. The signal falls by c = there.signal / here.signal, so the noise that is there
    already becomes c * here.noise, and as much is added as makes it there.noise.
    """
    left = there.signal / here.signal * here.noise
    return there.signal * clean + (there.noise**2 - left**2).clamp(min=0).sqrt() * fresh
