"""Patch permutation: a grid of patches that change places (Visual Anagrams, arXiv 2311.17919)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .mosaic import Layout, Mosaic
from .permutation import seeded, shuffled


@dataclass(frozen=True)
class PatchPermutation(Mosaic):
    """The picture cut into `rows` x `columns` patches, put back in an order that `seed` decides."""

    rows: int = 4
    columns: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 1 or self.rows * self.columns < 2:
            raise ValueError(
                f"Patches in {self.rows} rows and {self.columns} columns cannot change places. Choose at least two."
            )

    def check(self, height: int, width: int) -> None:
        """Raise ValueError if the patches would not be of one size; says which numbers fit."""
        for parts, side, what, way in (
            (self.rows, height, "rows", "high"),
            (self.columns, width, "columns", "wide"),
        ):
            if side % parts:
                fitting = ", ".join(str(n) for n in range(2, min(side, 64) + 1) if side % n == 0) or "1"
                raise ValueError(
                    f"Patches in {parts} {what} do not fit a picture {side} {way}: choose {what} that divide it "
                    f"({fitting})."
                )

    def in_latents(self, height: int, width: int) -> bool:
        """Tell whether patches hold whole cells."""
        return height % self.rows == 0 and width % self.columns == 0

    def layout(self, height: int, width: int) -> Layout:
        """Return the patches of a picture of this size."""
        high, wide = height // self.rows, width // self.columns
        row, column = torch.arange(height) // high, torch.arange(width) // wide
        corners = torch.cartesian_prod(torch.arange(self.rows) * high, torch.arange(self.columns) * wide)
        middles = 2 * corners + torch.tensor([high - 1, wide - 1])
        places: Tensor = shuffled(self.rows * self.columns, seeded(self.seed))
        return Layout(
            row[:, None] * self.columns + column, middles, middles[places], torch.zeros_like(places)
        )
