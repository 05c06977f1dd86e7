"""Visual anagrams: one picture that every view of it shows as something else.

Visual Anagrams (arXiv 2311.17919): at each step every view's estimate is led back and reduced to one,
    D = sum_i s_i v_i^-1( D_i(v_i(x)) ),   s_i the shares of a reduction.
Views are linear, so the formula, which is published for eps, holds for the clean estimate D as well.
Factorized Diffusion (arXiv 2404.11615): components f_i take the place of v_i^-1, v_i is the identity and s_i is 1. A
component may be fixed by a real picture r: f_i(r) then takes the place of f_i(D_i).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .views.protocol import Reading, View, Views

MEAN, WEIGHTED, ALTERNATE, SUM = "mean", "weighted", "alternate", "sum"
REDUCTIONS = (MEAN, WEIGHTED, ALTERNATE, SUM)
SUMS_UP = 1e-3  # of the picture's spread: components that miss more do not make up a picture


def counting(readings: Sequence[Reading], reduction: str) -> Views:
    """Return the readings that count in a reduction: with WEIGHTED those whose weight is not 0.

    Raises ValueError if there are none, if one says nothing, and if views and reduction do not belong together.
    """
    found = tuple(reading for reading in readings if reduction != WEIGHTED or reading.weight != 0)
    if not found:
        raise ValueError(
            "There are no views (with reduction weighted, none whose weight is not 0). Connect a chain of View nodes."
        )
    for number, reading in enumerate(found, 1):
        if reading.positive is None and reading.reference is None:
            raise ValueError(
                f"{_named(reading, number)} has no prompt, so nothing says what shall be seen there. Connect a "
                "conditioning to its View node."
            )
    if all(reading.positive is None for reading in found):
        raise ValueError(
            "All components are fixed by pictures, so there is nothing to sample. Add a View node with a component "
            "and a prompt to the chain."
        )
    _check_kinds(found, reduction)
    return found


def check_size(readings: Views, height: int, width: int, in_latents: bool) -> None:
    """Raise ValueError unless all views fit tensors of this size, and the latents of it if they are looked at there.

    Components must sum to the whole.
    """
    for number, reading in enumerate(readings, 1):
        reading.view.check(height, width)
        if in_latents and not reading.view.in_latents(height, width):
            raise ValueError(
                f"{_named(reading, number)} cannot be seen in latents of {width}x{height} cells: it does not move "
                "whole cells, changes colours, or blurs by less than a cell. Choose the domain pixel; of patches, rows "
                "and columns that divide the cells will do, of blurs a larger sigma or picture."
            )
    if readings[0].view.component:
        _check_sum(readings, height, width)


def shares(readings: Views, reduction: str, step: int) -> tuple[float, ...]:
    """Return what each reading counts at a step of sampling (0 the first): its s_i of the formula above."""
    count = len(readings)
    if reduction == SUM:
        return (1.0,) * count
    if reduction == ALTERNATE:
        return tuple(float(number == step % count) for number in range(count))
    weights = [reading.weight if reduction == WEIGHTED else 1.0 for reading in readings]
    return tuple(weight / sum(weights) for weight in weights)


def reduced(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the sum (B, C, h, w) of `parts` times `weights`, in float32 or better; those of 0 are left out."""
    precise = torch.promote_types(parts[0].dtype, torch.float32)
    terms = [part.to(precise) * weight for part, weight in zip(parts, weights, strict=True) if weight]
    return torch.stack(terms).sum(0).to(parts[0].dtype)


def step_of(sigma: float, sigmas: Sequence[float]) -> int:
    """Return the number of the step of a schedule, from one of `sigmas` to the next, that `sigma` lies in."""
    return sum(level > sigma * (1 + 1e-4) for level in sigmas[:-1])


def leaves_alone(view: View, height: int, width: int) -> bool:
    """Tell whether `view` shows tensors of this size as they are."""
    probe = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    return fits(view, height, width) and torch.equal(view.view(probe), probe)


def noise_as_seen(view: View, noise: Tensor, seed: int) -> Tensor:
    """Return `noise` (B, C, h, w) as `view` shows it, if it then is N(0, I) still; else shuffled by `seed`.

    A view that does not fit the latent's cells still ties the noises as well as they can be.
    """
    size = noise.shape[-2:]
    if leaves_alone(view, *size):
        return noise
    if view.orthogonal and view.exact and fits(view, *size):
        return view.view(noise)
    order = torch.randperm(noise[0].numel(), generator=torch.Generator().manual_seed(seed))
    return noise.flatten(1)[:, order.to(noise.device)].reshape(noise.shape)


def fits(view: View, height: int, width: int) -> bool:
    """Tell whether tensors of this size can be seen through `view`."""
    try:
        view.check(height, width)
    except ValueError:
        return False
    return True


def _check_kinds(readings: Views, reduction: str) -> None:
    """Raise ValueError if not all readings are components where they are summed, or one is where they are not."""
    for number, reading in enumerate(readings, 1):
        if reading.view.component != (reduction == SUM):
            raise ValueError(
                f"{_named(reading, number)} is a component, a part of a sum; choose the reduction sum, and only "
                "components in the chain."
                if reading.view.component
                else f"{_named(reading, number)} is a view of the whole picture, not a component, so it cannot be "
                "summed. Choose the reduction mean, or only components (such as low pass and high pass)."
            )


def _check_sum(readings: Views, height: int, width: int) -> None:
    probe = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    total = reduced([reading.view.inverse(probe) for reading in readings], (1.0,) * len(readings))
    miss = (total - probe).abs().max().item()
    if miss > SUMS_UP * probe.std().item():
        names = ", ".join(reading.title or type(reading.view).__name__ for reading in readings)
        raise ValueError(
            f"The components of the chain ({names}) do not add up to a whole picture: they miss it by {miss:.2g}. "
            "Take a pair that belongs together, such as low pass and high pass of the same sigma, each once."
        )


def _named(reading: Reading, number: int) -> str:
    return f"View {number} ({reading.title or type(reading.view).__name__})"
