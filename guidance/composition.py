"""Composition of several prompts: AND, NOT and weights.

Compositional Visual Generation with Composable Diffusion Models (arXiv 2206.01714):
    eps = eps_u + sum_i w_i (eps_i - eps_u),   w_i < 0: NOT.
The clean estimate D is linear in eps (and in v), so the formula holds for it as well. With d_i = D_i - D_u,
    D = D_u + A - b(N),   A = sum of w_i d_i over AND,   N = sum of |w_i| d_i over NOT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Term:
    """A condition of a composition and what it counts: above 0 AND, below 0 NOT, 0 nothing."""

    conditioning: Any
    weight: float


def counting(composition: Sequence[Term]) -> tuple[Term, ...]:
    """Return the terms whose weight is not 0, AND before NOT.

    Raises ValueError if there are none, or no AND.
    """
    terms = tuple(term for term in composition if term.weight != 0)
    if not terms:
        raise ValueError(
            "The composition is empty: it has no prompt whose weight is not 0. Connect a Compose node, and give at "
            "least one a weight above 0."
        )
    if all(term.weight < 0 for term in terms):
        raise ValueError(
            "The composition has only NOT prompts (weights below 0), so nothing says what to paint. Add a Compose "
            "with a weight above 0 to the chain; 'a photo' will do."
        )
    return tuple(sorted(terms, key=lambda term: term.weight < 0))


def composed(unconditional: Tensor, estimates: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the estimate (B, C, h, w) of a composition, from that of each term and the unconditional one.

    `unconditional` and each of `estimates` are (B, C, h, w); sums are taken in float32 or better.
    """
    precise = torch.promote_types(unconditional.dtype, torch.float32)
    base = unconditional.to(precise)
    wanted, unwanted = torch.zeros_like(base), torch.zeros_like(base)
    for estimate, weight in zip(estimates, weights, strict=True):
        part = abs(weight) * (estimate.to(precise) - base)
        wanted, unwanted = (wanted, unwanted + part) if weight < 0 else (wanted + part, unwanted)
    return (base + wanted - bounded(unwanted, wanted)).to(unconditional.dtype)


def bounded(unwanted: Tensor, wanted: Tensor) -> Tensor:
    """Return the sum of the NOT terms (B, C, h, w), for each sample at most as long as that of the AND terms."""
    limit, length = (part.flatten(1).norm(dim=1) for part in (wanted, unwanted))
    share = (limit / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp(max=1)
    return share.reshape(-1, *[1] * (unwanted.ndim - 1)) * unwanted
