"""Views that move rigid pieces of the picture, turned by quarter turns at most; in frames the pieces fly."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, pi, sin

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from .moving import GREY
from .permutation import Permutation

ARC = 0.15
"""How far a flight bends to the side, of its length."""
SHRINK = 0.15
"""How much smaller a piece is in the middle of its flight."""


@dataclass(frozen=True)
class Layout:
    """Which pixel belongs to which piece, and where the pieces go."""

    labels: Tensor
    """(H, W), int64: the piece of each pixel; -1 stays in place."""
    origins: Tensor
    """(P, 2), int64: twice (y, x) of the middle of each piece."""
    targets: Tensor
    """(P, 2), int64: twice (y, x) of where its middle goes."""
    turns: Tensor
    """(P,), int64: its quarter turns clockwise, -1 to 2."""


@dataclass(frozen=True)
class Mosaic(Permutation):
    """A permutation by rigid pieces."""

    def layout(self, height: int, width: int) -> Layout:
        """Return the pieces of a picture of this size."""
        raise NotImplementedError

    def size(self, t: float) -> float:
        """Return how large flying pieces are at `t`, of their true size."""
        return 1 - SHRINK * sin(pi * t)

    def sources(self, height: int, width: int) -> Tensor:
        """Return (height, width), int64: where each pixel of the view comes from, as y * width + x."""
        layout = self.layout(height, width)
        y, x = (layout.labels >= 0).nonzero(as_tuple=True)
        piece = layout.labels[y, x]
        place = _quarter_turned(2 * torch.stack([y, x], 1) - layout.origins[piece], layout.turns[piece])
        to_y, to_x = ((place + layout.targets[piece]) // 2).unbind(1)
        sources = torch.arange(height * width).reshape(height, width)
        sources[to_y, to_x] = y * width + x
        return sources

    def between(self, image: Tensor, t: float) -> Tensor:
        """Return `image` (B, 3, H, W) with its pieces in the air; those that fly farther pass above."""
        layout = self.layout(*image.shape[-2:])
        origins, targets = layout.origins / 2, layout.targets / 2
        flight = targets - origins
        middles = origins + t * flight + ARC * sin(pi * t) * flight.flip(1) * torch.tensor([1, -1])
        moves = (flight != 0).any(1) | (layout.turns != 0)
        away = torch.cat([moves, torch.tensor([False])])[layout.labels].to(image.device)
        canvas = torch.where(away, torch.full_like(image, GREY), image)
        for piece in flight.norm(dim=1).argsort(stable=True).tolist():
            if moves[piece]:
                degrees = 90.0 * t * layout.turns[piece].item()
                mask = layout.labels == piece
                _lay(canvas, image, mask, origins[piece], middles[piece], degrees, self.size(t))
        return canvas


def _quarter_turned(offsets: Tensor, turns: Tensor) -> Tensor:
    """Return `offsets` (N, 2) from the middle of a piece, (y, x), after `turns` (N,) clockwise quarter turns."""
    for count in (1, 2, 3):
        y, x = offsets.unbind(1)
        offsets = torch.where((turns % 4 >= count)[:, None], torch.stack([x, -y], 1), offsets)
    return offsets


def _lay(
    canvas: Tensor, image: Tensor, mask: Tensor, origin: Tensor, middle: Tensor, degrees: float, size: float
) -> None:
    """Lay the piece of `image` (B, 3, H, W) under `mask` (H, W), bool, upon `canvas`, which is changed.

    Its middle moves from `origin` to `middle`, (y, x); it is turned clockwise by `degrees` and is `size` as large.
    """
    inside = mask.nonzero() - origin
    reach = ceil(inside.norm(dim=1).max().item()) + 2
    height, width = mask.shape
    top, left = (round(place) - reach for place in middle.tolist())
    rows = range(max(top, 0), min(top + 2 * reach + 1, height))
    columns = range(max(left, 0), min(left + 2 * reach + 1, width))
    if not rows or not columns:
        return
    spot = torch.stack(torch.meshgrid(torch.tensor(rows), torch.tensor(columns), indexing="ij"), -1) - middle
    angle = torch.deg2rad(torch.tensor(degrees))
    y, x = spot.unbind(-1)
    from_y = (y * angle.cos() - x * angle.sin()) / size + origin[0]
    from_x = (y * angle.sin() + x * angle.cos()) / size + origin[1]
    grid = torch.stack([2 * from_x / max(width - 1, 1) - 1, 2 * from_y / max(height - 1, 1) - 1], -1).to(
        image
    )
    grid = grid.expand(len(image), -1, -1, -1)
    colours = grid_sample(image, grid, padding_mode="border", align_corners=True)
    alpha = grid_sample(mask.to(image).expand(len(image), 1, -1, -1), grid, align_corners=True)
    window = canvas[..., rows.start : rows.stop, columns.start : columns.stop]
    window += alpha * (colours - window)
