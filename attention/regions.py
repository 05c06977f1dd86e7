"""Words tied to regions: the attention of a word is pulled to where the user painted it.

GradOP (arXiv 2211.17084), section on semantic control: A~ = w * ((1 - kappa) * A + kappa * B / ||B|| * ||A||), A the
word's column of an attention map (over positions, per head), B its region at the layer's resolution.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from .maps import Call, Condition, Layer, on_grid
from .words import Prompt


@dataclass(frozen=True, eq=False)
class Region:
    """Tokens of a prompt, where they belong, and how loud they are."""

    prompt: Prompt
    tokens: tuple[int, ...]
    mask: Tensor
    """(B, 1, H, W) in [0, 1], of any size: it covers the whole picture. B is 1 or the number of pictures."""
    weight: float = 1.0
    _grids: dict = field(default_factory=dict, init=False, repr=False)

    def on_grid(self, call: Call, like: Tensor) -> Tensor:
        """Return the mask on the grid of `call` (B, N), with dtype and device of `like` (B, ...).

        Raises ValueError if there are several masks, but not one for each picture.
        """
        if self.mask.shape[0] not in (1, like.shape[0]):
            raise ValueError(
                f"The mask of a region has {self.mask.shape[0]} pictures, but {like.shape[0]} are sampled. Give one "
                "mask for all, or exactly one for each."
            )
        condition = call.condition
        key = (condition.latent, condition.area, call.layer.scale, call.grid, like.dtype, like.device)
        if key not in self._grids:
            grid = on_grid(self.mask, condition.latent, call.layer.scale, condition.area)
            if grid.shape[-2:] != call.grid:  # another pack runs the layer at a size of its own (Deep Shrink)
                grid = adaptive_avg_pool2d(grid, call.grid)
            self._grids[key] = grid.flatten(1).to(like)
        return self._grids[key]


@dataclass(frozen=True)
class Kappa:
    """How strongly attention is pulled, over the schedule.

    From `first` at `start` to `last` at `end` (progress, 0 to 1). `curve` bends it: above 1 it falls early, below 1
    late.
    """

    first: float = 1.0
    last: float = 1.0
    curve: float = 1.0
    start: float = 0.0
    end: float = 0.35

    def at(self, progress: float) -> float:
        """Return kappa at `progress`, or 0 outside the range."""
        if not self.start <= progress <= self.end:
            return 0.0
        position = (progress - self.start) / max(self.end - self.start, 1e-9)
        return self.last + (self.first - self.last) * (1 - position) ** self.curve

    def covers(self, progress: float) -> bool:
        """Tell whether `progress` lies within the range."""
        return self.start <= progress <= self.end


@dataclass(frozen=True, eq=False)
class Injection:
    """The editor: every region's words are pulled to it, one region after the other."""

    regions: tuple[Region, ...]
    kappa: Kappa
    scales: frozenset[int]
    stages: frozenset[str]

    def reads(self, layer: Layer, condition: Condition, progress: float) -> bool:
        """Tell whether a region's prompt is denoised in a chosen layer, within the range."""
        if (
            layer.scale not in self.scales
            or layer.stage not in self.stages
            or not self.kappa.covers(progress)
        ):
            return False
        return any(condition.is_made_of(region.prompt) for region in self.regions)

    def edit(self, maps: Tensor, call: Call) -> Tensor:
        """Return `maps` (B, heads, N, T) with the regions' columns pulled."""
        kappa = self.kappa.at(call.progress)
        for region in self.regions:
            if call.condition.is_made_of(region.prompt):
                maps = pulled(maps, region.tokens, region.on_grid(call, maps), kappa, region.weight)
        return maps


def pulled(maps: Tensor, tokens: tuple[int, ...], mask: Tensor, kappa: float, weight: float) -> Tensor:
    """Return `maps` (B, heads, N, T) with the columns of `tokens` pulled to `mask` (B or 1, N) (formula above).

    Norms are per picture, head and token. Where a mask is empty the maps stay as they are; if all are, the same object.
    """
    length = mask.norm(dim=-1)[:, None, None, None]
    if (kappa == 0 and weight == 1) or not bool((length > 0).any()):
        return maps
    index = torch.tensor(tokens, device=maps.device)
    columns = maps.index_select(-1, index)
    shape = mask[:, None, :, None] / length.clamp(min=torch.finfo(mask.dtype).tiny)
    strength = columns.norm(dim=-2, keepdim=True)
    changed = weight * ((1 - kappa) * columns + kappa * shape * strength)
    return maps.index_copy(-1, index, torch.where(length > 0, changed, columns))
