"""Permutations of pixels: each is an orthogonal view with an exact inverse (Visual Anagrams, arXiv 2311.17919)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .moving import Moving


@dataclass(frozen=True)
class Permutation(Moving):
    """A view that only moves pixels, by a map that is drawn once per size: any dtype, any number of channels."""

    _maps: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def sources(self, height: int, width: int) -> Tensor:
        """Return (height, width), int64: where each pixel of the view comes from, as y * width + x."""
        raise NotImplementedError

    def view(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, H, W), its pixels moved."""
        return _gathered(x, self._both_ways(*x.shape[-2:])[0])

    def inverse(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, H, W), its pixels moved back."""
        return _gathered(x, self._both_ways(*x.shape[-2:])[1])

    def _both_ways(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        if (height, width) not in self._maps:
            self.check(height, width)
            with torch.inference_mode(False):  # or gradients could not flow through them later
                there = self.sources(height, width).flatten()
                self._maps[height, width] = there, there.argsort()
        return self._maps[height, width]


def _gathered(x: Tensor, source: Tensor) -> Tensor:
    flat = x.flatten(-2)
    return flat.gather(-1, source.to(x.device).expand_as(flat)).reshape(x.shape)


def shuffled(count: int, generator: torch.Generator) -> Tensor:
    """Return a random permutation of 0 ... `count` - 1 that is not the identity, if there is another."""
    kept = torch.arange(count)
    while torch.equal(order := torch.randperm(count, generator=generator), kept) and count > 1:
        pass
    return order


def seeded(seed: int) -> torch.Generator:
    """Return a random generator on the CPU, so that a seed means the same everywhere."""
    return torch.Generator().manual_seed(seed)
