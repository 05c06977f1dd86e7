"""The region of an edit: where the estimates with the source's and with the edited text part (DiffEdit, 2210.11427)."""

from __future__ import annotations

import torch
from torch import Tensor

from .painting_functions import gaussian

BLURS = 12  # standard deviations of the blur that make the picture's short side
TINY = 1e-20  # keeps a threshold above 0 where the texts do not differ


class EditRegion:
    """What an edit changes, by the difference of the estimates with source and edited text (DiffEdit, 2210.11427).

    |D_edit - D_source|, mean of the channels and blurred, is summed over the steps so far: early ones, which decide the
    layout and differ most, count most. Each sample has its own region.
    """

    def __init__(self, threshold: float) -> None:
        """Take the share of the largest difference from which on a cell belongs to the edit, in (0, 1]."""
        self._threshold, self._sum = threshold, torch.zeros(())

    def untouched(self, source: Tensor, edit: Tensor) -> Tensor:
        """Add a step's estimates (B, C, h, w); return what the edit leaves alone so far: (B, 1, h, w), 0 or 1."""
        difference = (edit.float() - source.float()).abs().mean(1, keepdim=True)
        blurred = gaussian(difference, min(difference.shape[-2:]) / BLURS)
        self._sum = self._sum.to(blurred) + blurred
        largest = self._sum.amax((1, 2, 3), keepdim=True).clamp_min(TINY)
        return (self._sum < self._threshold * largest).float()
