"""What an editor of attention maps is told, and how maps of repeated text conditions are folded.

Attention maps are probabilities (B, heads, N, T): for each picture, head and position of a layer's grid (N = height *
width, row by row), the share that each of T tokens gets. Editors return new ones; they never write into those given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

from .words import Prompt

STAGES = ("down", "mid", "up")
SCALES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Layer:
    """A cross-attention layer of a UNet."""

    key: Any
    """What tells it from the others."""
    stage: str
    """`down`, `mid` or `up`."""
    scale: int
    """Latent cells along the side of a token: 1, 2, 4 or 8."""


@dataclass(frozen=True)
class Condition:
    """A text condition that is being denoised."""

    kind: int
    """0 positive, 1 negative; guiders of three conditions have an order of their own."""
    tokens: int
    """Its own length in tokens."""
    prompt: Prompt | None
    """Its words, if a node of this pack made it."""
    latent: tuple[int, int]
    """Height and width of the whole latent."""
    area: tuple[int, int, int, int] | None = None
    """Height, width, y and x of the part that it denoises, in latent cells; None: all."""
    noted: bool = False
    """Whether any condition that is denoised with it has its words: then one without them is of others."""

    def is_made_of(self, prompt: Prompt) -> bool:
        """Tell whether it stands for `prompt`, of whatever kind it is.

        Where no condition has its words (some nodes drop them), a positive of the same length does.
        """
        if self.prompt is None:
            return not self.noted and self.kind == 0 and self.tokens == prompt.length
        return self.prompt == prompt


@dataclass(frozen=True)
class Call:
    """One layer's maps of one condition at one step."""

    layer: Layer
    grid: tuple[int, int]
    """Height and width of the layer's positions."""
    condition: Condition
    progress: float
    """0 at the first, 1 at the last noise level of the model's training schedule."""


class Editor(Protocol):
    """Reads or changes attention maps between softmax and values."""

    def reads(self, layer: Layer, condition: Condition, progress: float) -> bool:
        """Tell whether `edit` wants this call; if nobody does, the maps are never made."""
        ...

    def edit(self, maps: Tensor, call: Call) -> Tensor:
        """Return the maps (B, heads, N, T), float32; the same object if nothing changes."""
        ...


class Sharer(Protocol):
    """Lets pictures of a condition attend to themselves with the queries and keys of others: their maps are theirs."""

    def sources(
        self, layer: Layer, grid: tuple[int, int], condition: Condition, progress: float, pictures: int
    ) -> list[int] | None:
        """Return for each of the `pictures` of the condition whose queries and keys it uses; None: its own, all."""
        ...


def on_grid(
    mask: Tensor, latent: tuple[int, int], scale: int, area: tuple[int, int, int, int] | None = None
) -> Tensor:
    """Return `mask` (B, 1, H, W) of a whole picture on a layer's grid: (B, 1, ceil(h/scale), ceil(w/scale)).

    First it is averaged to the latent's size (h, w), of which `area` (height, width, y, x) cuts a part out. Positions
    are means of the cells that they cover; at the lower and right edges those are fewer where `scale` does not divide
    the side.
    """
    mask = adaptive_avg_pool2d(mask, latent)
    if area is not None:
        height, width, y, x = area
        mask = mask[..., y : y + height, x : x + width]
    return mask if scale == 1 else avg_pool2d(mask, scale, ceil_mode=True, count_include_pad=False)


def folded(maps: Tensor, tokens: int) -> Tensor:
    """Return `maps` (..., n * tokens), of a condition that was repeated n times, as those of one: (..., tokens)."""
    return maps if maps.shape[-1] == tokens else maps.unflatten(-1, (-1, tokens)).sum(-2)
