"""Jigsaw: a puzzle with two solutions (Visual Anagrams, arXiv 2311.17919), the pieces drawn here.

Every inner edge is the same line: a tab to one side and, half a turn about the middle of the edge away, a blank.
So all corner pieces are congruent, all edge pieces and all inner pieces: any may lie in any place of its kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .mosaic import Layout, Mosaic
from .permutation import seeded, shuffled

PIECES = 4
"""Pieces along a side."""
TAB = (9, 25)
"""Middle of a tab, in hundredths of a piece: (beyond the edge, along it)."""
RADIUS = 14
"""Of a tab, in hundredths of a piece."""

# Places of a kind, in the order in which a quarter turn clockwise of the puzzle leads from one to the next.
CORNERS = ((0, 0), (0, 3), (3, 3), (3, 0))
EDGES = ((0, 1), (1, 3), (3, 2), (2, 0)), ((0, 2), (2, 3), (3, 1), (1, 0))
INNER = ((1, 1), (1, 2), (2, 2), (2, 1))


@dataclass(frozen=True)
class Jigsaw(Mosaic):
    """4 x 4 pieces of the largest square in the middle, laid anew as `seed` decides; what is left over stays.

    Pieces can be turned, so they are square: of a picture that is not, the ends of the long side stay, and of a
    square that 4 does not divide, up to three rows and columns at its border.
    """

    seed: int = 0

    def check(self, height: int, width: int) -> None:
        """Raise ValueError if there are fewer than 4 px to a side."""
        if min(height, width) < PIECES:
            raise ValueError(
                f"A jigsaw of 4 x 4 pieces does not fit a picture {width} wide and {height} high: both must be 4 px "
                "or more."
            )

    def in_latents(self, height: int, width: int) -> bool:
        """Tell that tabs cut cells."""
        return False

    def layout(self, height: int, width: int) -> Layout:
        """Return the pieces of a picture of this size."""
        side = min(height, width) // PIECES
        top, left = (height - PIECES * side) // 2, (width - PIECES * side) // 2
        labels = torch.full((height, width), -1)
        labels[top : top + PIECES * side, left : left + PIECES * side] = _pieces(side)
        row_column = torch.cartesian_prod(torch.arange(PIECES), torch.arange(PIECES))
        middles = 2 * (row_column * side + torch.tensor([top, left])) + side - 1
        places, turns = _second_solution(self.seed)
        return Layout(labels, middles, middles[places], turns)


def _pieces(side: int) -> Tensor:
    """Return (4 side, 4 side), int64: the piece of each pixel, counted row by row; pieces are `side` px."""
    row = torch.arange(PIECES).repeat_interleave(side)[:, None].expand(-1, PIECES * side)
    labels = row * PIECES + row.T
    from_above = _tab(side)
    for quarter, (down, right) in enumerate([(-1, 0), (0, -1), (1, 0), (0, 1)]):  # counter-clockwise
        tab = torch.rot90(from_above, quarter).repeat(PIECES, PIECES)
        neighbour_row, neighbour_column = row + down, row.T + right
        exists = (neighbour_row.clamp(0, PIECES - 1) == neighbour_row) & (
            neighbour_column.clamp(0, PIECES - 1) == neighbour_column
        )
        labels = torch.where(tab & exists, neighbour_row * PIECES + neighbour_column, labels)
    return labels


def _tab(side: int) -> Tensor:
    """Return (side, side), bool: which pixels of a piece belong to the tab of the one above; in whole numbers."""
    middles = 50 * (2 * torch.arange(side) + 1)  # in hundredths of a pixel
    y, x = (middles - side * place for place in TAB)
    return y[:, None] ** 2 + x**2 <= (side * RADIUS) ** 2


def _second_solution(seed: int) -> tuple[Tensor, Tensor]:
    """Return the place (16,) and the quarter turns clockwise (16,), -1 to 2, of each piece."""
    generator = seeded(seed)
    places, turns = torch.empty(PIECES**2, dtype=torch.long), torch.zeros(PIECES**2, dtype=torch.long)
    for kind in (CORNERS, EDGES[0] + EDGES[1], INNER):
        order = shuffled(len(kind), generator).tolist()
        for here, there in enumerate(order):
            piece = kind[here][0] * PIECES + kind[here][1]
            places[piece] = kind[there][0] * PIECES + kind[there][1]
            turns[piece] = (there - here + 1) % 4 - 1
    return places, turns
