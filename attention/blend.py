"""Local blend: outside the objects that the edit is about, the target picture is the source's.

Prompt-to-Prompt (arXiv 2208.01626), section on local editing: mean of the words' maps so far, 3x3 maximum, threshold of
the largest value; the union of the source's and the target's mask.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, log

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from .maps import Call, Condition, Layer, folded
from .pairs import Pair
from .words import Prompt

SOURCE, TARGET, UNION = "source", "target", "union"
MASKS = (UNION, SOURCE, TARGET)
CELLS = 16  # the shorter side of the maps that the paper takes, where the scale is free


@dataclass(frozen=True)
class LocalBlend:
    """What to keep within: the words' masks, less those of `subtract`."""

    source_words: str = ""
    target_words: str = ""
    subtract: str = ""
    threshold: float = 0.3
    start: float = 0.2
    scale: int | None = None
    """Of the layers whose maps count, 1, 2, 4 or 8; None: the one with maps of about 16 x 16 positions."""
    mask: str = UNION


@dataclass(eq=False)
class Blender:
    """The editor that collects a LocalBlend's maps in one run, and its mask.

    `scales` are those of the model's layers. Raises ValueError for unknown words, and for a scale that no layer has.
    Where only one prompt has the words of `subtract`, nothing is taken away from the other's mask.
    """

    pair: Pair
    blend: LocalBlend
    scales: frozenset[int]
    _sums: dict[str, Tensor] = field(default_factory=dict, init=False)
    _scale: int = field(default=1, init=False)
    _grid: tuple[int, int] = field(default=(0, 0), init=False)

    def __post_init__(self) -> None:
        """Look the words up."""
        own = (self.pair.source, self.blend.source_words), (self.pair.target, self.blend.target_words)
        if not any(words.strip() for _, words in own):
            raise ValueError(
                "The local blend has no words, so nothing would be allowed to change. Name the words whose object is "
                "edited, in source_words, target_words or both."
            )
        if self.blend.scale not in (None, *self.scales):
            there = ", ".join(f"1/{scale}" for scale in sorted(self.scales))
            raise ValueError(
                f"The local blend reads maps of scale 1/{self.blend.scale}, but this model has cross-attention only at "
                f"{there}. Choose one of these, or auto."
            )
        self._kept = [p.find_all(words) if words.strip() else () for p, words in own]
        self._less = [_found(p, self.blend.subtract) for p, _ in own]
        if self.blend.subtract.strip() and not any(self._less):
            self.pair.target.find_all(self.blend.subtract)  # raises with the words there are

    def clear(self) -> None:
        """Forget the maps, for a new run."""
        self._sums = {}

    def reads(self, layer: Layer, condition: Condition, progress: float) -> bool:
        """Tell whether the condition is of the pair, over the whole picture, and the layer of the scale."""
        if condition.prompt != self.pair or condition.area is not None:
            return False
        return layer.scale == self.scale(condition.latent)

    def scale(self, latent: tuple[int, int]) -> int:
        """Return the scale of the layers whose maps count, for pictures of `latent` (height, width) cells."""
        return self.blend.scale or min(self.scales, key=lambda s: abs(log(min(latent) / s / CELLS)))

    def edit(self, maps: Tensor, call: Call) -> Tensor:
        """Add the words' maps up; return `maps`."""
        self._scale = call.layer.scale
        height, width = call.condition.latent
        self._grid = ceil(height / self._scale), ceil(width / self._scale)
        halves = maps.detach().chunk(2)
        prompts = self.pair.source, self.pair.target
        for name, words in (("kept", self._kept), ("less", self._less)):
            heat = torch.cat([_heat(*part) for part in zip(halves, prompts, words, strict=True)])
            heat = heat.unflatten(-1, call.grid)[:, None]
            if call.grid != self._grid:  # another pack runs the layer at a size of its own (Deep Shrink)
                heat = interpolate(heat, self._grid, mode="bilinear")
            self._sums[name] = self._sums.get(name, 0) + heat
        return maps

    def mask(self, height: int, width: int) -> Tensor | None:
        """Return where targets may differ, (B, 1, height, width) of zeros and ones; None: no map was seen yet."""
        if not self._sums:
            return None
        kept, less = (self._shaped(self._sums[name], height, width) for name in ("kept", "less"))
        source, target = (kept & ~less).chunk(2)
        chosen = {SOURCE: source, TARGET: target, UNION: source | target}[self.blend.mask]
        return chosen.float()

    def _shaped(self, heat: Tensor, height: int, width: int) -> Tensor:
        padded = [side * self._scale for side in self._grid]  # the last row and column may stand over
        large = interpolate(max_pool2d(heat, 3, 1, 1), padded, mode="bilinear")[..., :height, :width]
        most = large.amax((1, 2, 3), keepdim=True)
        return (large > self.blend.threshold * most) & (most > 0)


def blended(latents: Tensor, mask: Tensor) -> Tensor:
    """Return `latents` (2 B, C, h, w), sources first, with the targets' outside of `mask` (B, 1, h, w) the sources'."""
    source, target = latents.chunk(2)
    return torch.cat([source, torch.where(mask.to(latents) > 0, target, source)])


def _heat(maps: Tensor, prompt: Prompt, words: tuple[int, ...]) -> Tensor:
    """Return the mean map (B, N) of `words` over heads and tokens; zero without words."""
    if not words:
        return maps.new_zeros(maps.shape[0], maps.shape[2])
    return folded(maps, prompt.length)[..., list(words)].mean((1, 3))


def _found(prompt: Prompt, words: str) -> tuple[int, ...]:
    try:
        return prompt.find_all(words)
    except ValueError:
        return ()
