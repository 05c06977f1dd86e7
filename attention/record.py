"""Attention maps kept while a picture is sampled, and what a word's map looks like.

DAAM: What the DAAM: Interpreting Stable Diffusion Using Cross Attention (arXiv 2210.04885): upsample the maps of the
layers to the latent's size, mean over heads, layers and steps; a word is the mean of its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .maps import Call, Condition, Layer
from .words import Prompt


@dataclass
class Sums:
    """One layer's maps of the words' tokens, summed over the steps: (B, N, words' tokens), mean over heads."""

    total: Tensor
    grid: tuple[int, int]
    scale: int
    steps: int = 1


@dataclass
class Recording:
    """What one run left: sums by layer, for pictures of `latent` (height, width) cells."""

    prompt: Prompt
    tokens: tuple[int, ...]
    latent: tuple[int, int] = (0, 0)
    sums: dict[Layer, Sums] = field(default_factory=dict)

    def add(self, maps: Tensor, call: Call) -> None:
        """Add the words' columns of one call's `maps` (B, heads, N, T), their mean over heads."""
        columns = torch.tensor(self.tokens, device=maps.device)
        words = maps.detach().index_select(-1, columns).mean(1)
        self.latent, scale = call.condition.latent, call.layer.scale
        grid = ceil(self.latent[0] / scale), ceil(self.latent[1] / scale)
        if call.grid != grid:  # another pack runs the layer at a size of its own (Deep Shrink)
            large = interpolate(words.mT.unflatten(-1, call.grid), grid, mode="bilinear")
            words = large.flatten(-2).mT
        sums = self.sums.get(call.layer)
        if sums is None:
            self.sums[call.layer] = Sums(words, grid, scale)
        else:
            sums.total, sums.steps = sums.total + words, sums.steps + 1

    def heat(self, words: tuple[int, ...], pictures: int | None = None) -> Tensor:
        """Return the map of `words` (token positions) as (B, 1, h, w), float32, at the latent's size.

        Of the first `pictures` only, if that is given.

        The mean probability over heads, layers and steps (not scaled). Raises ValueError if nothing was recorded.
        """
        if not self.sums:
            raise ValueError(
                "No attention maps were recorded for this prompt. Connect the conditioning of the same Prompt with "
                "Words node to the sampler's positive, for the whole picture (a condition with an area is not "
                "recorded), and choose scales that the model has (SDXL has 2 and 4)."
            )
        columns = torch.tensor([self.tokens.index(token) for token in words])
        found = []
        for sums in self.sums.values():
            total = sums.total[:pictures]
            heat = total.index_select(-1, columns.to(total.device)).mean(-1) / sums.steps
            padded = [side * sums.scale for side in sums.grid]  # the last row and column may stand over
            large = interpolate(heat.unflatten(-1, sums.grid)[:, None], padded, mode="bicubic")
            found.append(large[..., : self.latent[0], : self.latent[1]].clamp(min=0))
        return torch.stack(found).mean(0)


@dataclass
class Recorder:
    """The editor that only looks: it keeps the maps of `prompt`'s words in layers of the chosen `scales`."""

    prompt: Prompt
    scales: frozenset[int]
    current: Recording | None = None

    def begin(self) -> Recording:
        """Start an empty recording and return it."""
        self.current = Recording(self.prompt, tuple(t for word in self.prompt.words for t in word.tokens))
        return self.current

    def end(self) -> None:
        """Let go of the recording."""
        self.current = None

    def reads(self, layer: Layer, condition: Condition, progress: float) -> bool:
        """Tell whether the prompt is denoised in a layer of the chosen scales, over the whole picture."""
        if self.current is None or layer.scale not in self.scales or condition.area is not None:
            return False
        return condition.is_made_of(self.prompt)

    def edit(self, maps: Tensor, call: Call) -> Tensor:
        """Add the words' maps to the recording; return `maps`."""
        if self.current is not None:
            self.current.add(maps, call)
        return maps
