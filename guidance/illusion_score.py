"""How well an illusion works, from how well each of its readings fits each of the prompts.

Visual Anagrams (arXiv 2311.17919), section 4: S[i][j] is the cosine of the CLIP features of the picture seen through
view i and of prompt j.
    alignment    A = min_i S[i][i]: how well the worst reading fits its own prompt.
    concealment  C = 1/N tr softmax(S / tau), over the prompts of a view and over the views of a prompt, the mean of
    both: how surely CLIP tells from a reading which of the prompts it shows. 1 is certain, 1/N is a guess.
Ours: with a classifier, S[i][j] is the logarithm of the probability of label j in view i, and tau is 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

TEMPERATURE = 0.07  # tau, with which CLIP's training begins


def alignment(scores: Tensor) -> Tensor:
    """Return A (...) of cosines `scores` (..., N views, N prompts)."""
    return _diagonal(scores).amin(-1)


def certainty(scores: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return the share (..., N) in (0, 1] of each view in the concealment of cosines `scores` (..., N, N)."""
    logits = scores / temperature
    return (_diagonal(logits.softmax(-1)) + _diagonal(logits.softmax(-2))) / 2


def concealment(scores: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return C (...) in (0, 1] of cosines `scores` (..., N views, N prompts)."""
    return certainty(scores, temperature).mean(-1)


def best(scores: Tensor, temperature: float = TEMPERATURE) -> int:
    """Return which of B pictures with `scores` (B, N, N) has the highest A; of equal ones the highest C.

    A picture whose scores are not numbers is never the best, unless all are such.
    """
    ranks = (
        torch.stack([alignment(scores), concealment(scores, temperature)], 1).nan_to_num(-torch.inf).tolist()
    )
    return max(range(len(ranks)), key=lambda i: ranks[i])


def _diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1)
