"""Text guidance: three predictions a step, so that the words that stay and the words that change have a scale each.

Perceptual Similarity guidance and text guidance optimization for Editing Real Images using Guided Diffusion Models
(arXiv 2312.06680), with the predicted noise e of the null text, of the source (what the photo shows) and of the edit:
    n_cond = e_null + gamma (e_src - e_null)                     (1), (3)
    n_pred = n_cond + beta (e_edit - e_src)                      (2)
    n_pred = n_cond + beta (e_edit - e_null)                     (4)
Here e is the estimate x0hat, as samplers ask for it. At a step x0hat = a x + b e with the same a and b for all texts
(for velocities too), and the weights of the three add up to 1 in either formula, so a x comes out once: the formula of
estimates is the estimate of the formula.
"""

from __future__ import annotations

import torch
from torch import Tensor

EDIT_SOURCE, EDIT_NULL = "edit - source", "edit - null"
FORMULAS = EDIT_SOURCE, EDIT_NULL


def text_guided(
    null: Tensor, source: Tensor, edit: Tensor, gamma: float, beta: float, formula: str = EDIT_SOURCE
) -> Tensor:
    """Return n_pred of estimates (B, C, h, w) of the three texts, in their dtype; reckoned in float32 or better.

    `formula` is EDIT_SOURCE for (1), (2) or EDIT_NULL for (3), (4). Raises ValueError for another one.
    """
    dtype = torch.promote_types(null.dtype, torch.float32)
    precise = null.to(dtype), source.to(dtype), edit.to(dtype)
    base = precise[0] + (precise[1] - precise[0]) * gamma
    return with_edit(base, *precise, beta, formula).to(null.dtype)


def with_edit(
    base: Tensor, null: Tensor, source: Tensor, edit: Tensor, beta: float, formula: str = EDIT_SOURCE
) -> Tensor:
    """Return n_pred from n_cond `base` (B, C, h, w), in its dtype: equation (2) or (4), in float32 or better.

    For an n_cond of another kind than (1), such as another rule for classifier-free guidance. Otherwise as
    `text_guided`.
    """
    if formula not in FORMULAS:
        raise ValueError(f"There is no formula {formula!r}. Choose one of: {', '.join(FORMULAS)}.")
    dtype = torch.promote_types(base.dtype, torch.float32)
    left = source if formula == EDIT_SOURCE else null
    return (base.to(dtype) + (edit.to(dtype) - left.to(dtype)) * beta).to(base.dtype)
