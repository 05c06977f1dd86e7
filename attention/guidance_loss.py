"""Cross-attention guidance: the attention of an edited picture is pulled to that of the picture before the edit.

Zero-shot Image-to-Image Translation (pix2pix-zero, arXiv 2302.03027): one step of gradient descent on
    L(x) = sum over layers, positions and tokens of (A - A_source)^2
at each sampling step; A_source was recorded at the same noise level, while the source was sampled from the same noise.
Ours: A is the mean over heads (published: each head on its own), an eighth to a twentieth of the memory; on the demo
model both pull alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .maps import Call, Condition, Layer
from .words import Prompt

STORED = torch.float16  # probabilities: the rounding is a two-thousandth of each


def map_distance(maps: Tensor, source: Tensor) -> Tensor:
    """Return the loss of one layer, a scalar: `maps` are (B, heads, N, T), `source` (B, N, T); pictures are summed.

    Each picture's part depends on that picture only, so the gradient of a batch is that of its pictures alone.
    """
    return (maps.mean(1) - source.to(maps)).square().sum()


@dataclass(eq=False)
class MapGuidance:
    """The editor: it records the maps of the source, later it compares those of others with them. It changes none.

    Between `recording` and `comparing` blocks it reads nothing, so the maps of other model calls are never made.
    """

    source: Prompt
    """What the condition of the source carries: this very object tells it from all others."""
    tokens: int
    """The length of that condition."""
    scales: frozenset[int]
    _levels: dict[float, dict[Layer, Tensor]] = field(default_factory=dict)
    _maps: dict[Layer, Tensor] = field(default_factory=dict)  # of the open block's noise level
    _records: bool = False
    _compares: bool = False
    _losses: list[Tensor] | None = None  # of the open block; None: they are not collected

    @property
    def stored_bytes(self) -> int:
        """The memory that the recorded maps take."""
        return sum(m.nbytes for maps in self._levels.values() for m in maps.values())

    def forget(self) -> None:
        """Let go of all maps."""
        self._levels.clear()

    @contextmanager
    def recording(self, level: float) -> Iterator[None]:
        """Keep the source's maps of the model call in the block, at noise level `level` > 0; the last call counts."""
        self._maps = self._levels[level] = {}
        self._records = True
        try:
            yield
        finally:
            self._maps, self._records = {}, False

    @contextmanager
    def comparing(self, level: float) -> Iterator[None]:
        """Compare the maps of the model call in the block with those recorded nearest to noise level `level` > 0."""
        nearest = min(self._levels, key=lambda known: abs(math.log(known / level)), default=None)
        self._maps = {} if nearest is None else self._levels[nearest]
        self._compares, self._losses = True, []
        try:
            yield
        finally:
            self._maps, self._compares, self._losses = {}, False, None

    def loss(self) -> Tensor | None:
        """Return the sum over the layers compared in this block, or None if there were none; collect no more.

        A backward pass under checkpoints makes the maps again: they must not count twice.
        """
        losses, self._losses = self._losses, None
        return torch.stack(losses).sum() if losses else None

    def reads(self, layer: Layer, condition: Condition, progress: float) -> bool:
        """Tell whether a block is open and this condition, over the whole picture, is to be recorded or compared."""
        if layer.scale not in self.scales or condition.area is not None:
            return False
        if self._records:
            return condition.prompt is self.source
        return self._compares and condition.tokens == self.tokens and layer in self._maps

    def edit(self, maps: Tensor, call: Call) -> Tensor:
        """Record or compare `maps` (B, heads, N, T); return them."""
        if self._records:
            self._maps[call.layer] = maps.detach().mean(1).to("cpu", STORED)
            return maps
        loss = map_distance(maps, self._maps[call.layer])
        if self._losses is not None:
            self._losses.append(loss)
        return maps
