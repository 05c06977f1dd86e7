"""How far pictures are from real ones: the kernel distance between what an ImageNet network sees in both.

Demystifying MMD GANs (arXiv 1801.01401): the unbiased estimate of the squared maximum mean discrepancy,
    KID = mean k(x, x') + mean k(y, y') - 2 mean k(x, y),  k(a, b) = (a . b / d + 1)^3,
over all pairs of two different real pictures x, two different outputs y, and one of each. 0 on average for outputs
that are as good as real, hence also a little below 0. The network is AlexNet (or VGG16) instead of Inception. A
feature is the mean over the picture of one channel of one of five ReLU layers, from texture to parts of objects; each
layer is divided by its root mean square among the real pictures, so that all five have a say.

AlexNet is the default: on the demo world noise of 0.01, which nobody sees, costs a twelfth of a blur of 1 px, and 120
pictures take half a second of one core; for VGG16 that noise is worse than the blur, and they take 11 seconds.

    realism = Realism(real)                        # once, some hundred pictures (N, 3, 128, 128) in [0, 1]
    realism(outputs)                               # the distance, deterministic
    realism.measure(outputs, scenes)               # with its standard error
    realism.difference(ours, theirs, scenes)       # negative where `ours` is the more realistic; paired, so sharper
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from imagenet.features import Features

BATCH = 50  # pictures at once through the network


class Measured(NamedTuple):
    """A distance (or a difference of two) and its standard error over the pictures."""

    value: float
    error: float


class Realism:
    """The kernel distance of outputs to `real` pictures (N, 3, H, W) in [0, 1], as seen by `net` (`alex` or `vgg`)."""

    def __init__(self, real: Tensor, net: str = "alex") -> None:
        self._network = Features(net)
        seen = self._seen(real)
        self._units = [layer.square().mean().sqrt() for layer in seen]
        self._real = self._in_units(seen)
        self._among_real = _mean_of_pairs(kernel(self._real, self._real), torch.arange(len(real)))

    def __call__(self, images: Tensor) -> float:
        """Return the distance of `images` (N, 3, H, W) in [0, 1], N at least 2."""
        return self.measure(images).value

    def measure(self, images: Tensor, scenes: Tensor | None = None) -> Measured:
        """Return the distance and its standard error (jackknife, leaving out one scene at a time).

        `scenes` (N,) numbers the scene of each picture where several show the same (other seeds): such pictures do not
        count as two different ones. `real` is taken as given: all methods are compared with the same.
        """
        scenes = torch.arange(len(images)) if scenes is None else scenes
        return _jackknife(self._leaving_out(images, scenes))

    def difference(self, first: Tensor, second: Tensor, scenes: Tensor | None = None) -> Measured:
        """Return distance(first) - distance(second) and its standard error, for pictures i of both of scene i."""
        scenes = torch.arange(len(first)) if scenes is None else scenes
        pair = [self._leaving_out(images, scenes) for images in (first, second)]
        return _jackknife(pair[0] - pair[1])

    def _seen(self, images: Tensor) -> list[Tensor]:
        """Return for each of the five layers the means (N, C) of its channels over the picture."""
        with torch.inference_mode():
            batches = [
                [layer.mean((2, 3)) for layer in self._network(batch)] for batch in images.split(BATCH)
            ]
            return [torch.cat(layers).double() for layers in zip(*batches, strict=True)]

    def _in_units(self, seen: list[Tensor]) -> Tensor:
        return torch.cat([layer / unit for layer, unit in zip(seen, self._units, strict=True)], 1)

    def _leaving_out(self, images: Tensor, scenes: Tensor) -> Tensor:
        """Return the distance of all, then without the first scene, without the second, ..."""
        features = self._in_units(self._seen(images))
        among, across = kernel(features, features), kernel(features, self._real).mean(1)
        kept = [torch.ones_like(scenes, dtype=torch.bool), *(scenes != scene for scene in scenes.unique())]
        pairs = [
            _mean_of_pairs(among[keep][:, keep], scenes[keep]) - 2 * across[keep].mean() for keep in kept
        ]
        return self._among_real + torch.stack(pairs)


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return (x . y / d + 1)^3 for all rows of `x` (N, d) and `y` (M, d): (N, M)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_of_pairs(values: Tensor, scenes: Tensor) -> Tensor:
    """Return the mean of `values` (N, N) over the pairs of two different scenes."""
    return values[scenes[:, None] != scenes].mean()


def _jackknife(leaving_out: Tensor) -> Measured:
    """Return the value of all (first entry) and the standard error from those with one left out (the others)."""
    one_out = leaving_out[1:]
    variance = (len(one_out) - 1) * (one_out - one_out.mean()).square().mean()
    return Measured(leaving_out[0].item(), variance.sqrt().item())
