"""Superpixels: patches of about one colour and one size that follow a picture's edges.

SLIC Superpixels Compared to State-of-the-art Superpixel Methods (Achanta et al., PAMI 2012): k-means on colour and
place, started at a regular grid of side S, where a pixel only looks at the centres around it:
    D^2 = |Lab - Lab_c|^2 / m^2 + |xy - xy_c|^2 / S^2,   m = 20.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .palette import lab

SMALLEST_SIDE = 2.0  # px: below this a patch is a pixel
COMPACTNESS = 20.0  # m, in units of Lab: larger makes rounder patches, smaller follows edges more closely
ROUNDS = 6  # of k-means; patches hardly change after
AROUND = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]


def superpixels(pictures: Tensor, side: float) -> Tensor:
    """Return labels (B, H, W), int64, of superpixels of about `side` px for `pictures` (B, 3, H, W) in [0, 1].

    Labels of one picture are below `patches(H, W, side)`. Computed on the CPU: the same on every device.
    """
    height, width = pictures.shape[-2:]
    rows, columns = _grid(height, width, side)
    down, right = (
        torch.arange(height) * rows // height,
        torch.arange(width) * columns // width,
    )  # each pixel's cell
    features = _features(pictures.detach().cpu().float(), height / rows, width / columns)  # (B, 5, H * W)
    labels = (down[:, None] * columns + right).flatten().expand(len(pictures), -1)
    centres = means(features, labels, rows * columns)
    for _ in range(ROUNDS):
        best = features.new_full(labels.shape, torch.inf)
        for step_down, step_right in AROUND:
            row, column = (down + step_down).clamp(0, rows - 1), (right + step_right).clamp(0, columns - 1)
            candidate = (row[:, None] * columns + column).flatten()
            distance = (features - centres[:, :, candidate]).square().sum(1)
            labels = torch.where(distance < best, candidate, labels)
            best = best.minimum(distance)
        centres = means(features, labels, rows * columns)
    return labels.view(-1, height, width).to(pictures.device)


def patches(height: int, width: int, side: float) -> int:
    """Return how many superpixels of about `side` px a picture of `height` x `width` px has."""
    rows, columns = _grid(height, width, side)
    return rows * columns


def means(values: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the means (B, C, `count`) of `values` (B, C, N) over equal `labels` (B, N); 0 for a label not used.

    Differentiable and linear in `values`.
    """
    batch, channels = values.shape[:2]
    index = (
        labels + count * torch.arange(batch, device=labels.device)[:, None]
    ).flatten()  # one run of labels each
    sums = values.new_zeros(batch * count, channels)
    # accumulating index_put, unlike index_add, adds in the same order on every run on a GPU
    sums = sums.index_put((index,), values.transpose(1, 2).reshape(-1, channels), accumulate=True)
    sizes = torch.bincount(index, minlength=batch * count).clamp(min=1)[:, None]
    return (sums / sizes).view(batch, count, channels).transpose(1, 2)


def flatten_patches(pictures: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return `pictures` (B, 3, H, W) with every superpixel of `labels` (1 or B, H, W) in its mean colour."""
    flat = labels.flatten(1).expand(len(pictures), -1)
    colours = means(pictures.flatten(2), flat, count)  # (B, 3, count)
    place = torch.arange(len(pictures), device=flat.device)[:, None]
    return colours.transpose(1, 2)[place, flat].transpose(1, 2).reshape(pictures.shape)


def _grid(height: int, width: int, side: float) -> tuple[int, int]:
    side = max(side, SMALLEST_SIDE)
    return max(1, round(height / side)), max(1, round(width / side))


def _features(pictures: Tensor, tall: float, wide: float) -> Tensor:
    """Return colour and place (B, 5, H * W) of every pixel in units of D, for cells of `tall` x `wide` px."""
    batch, _, height, width = pictures.shape
    y = (torch.arange(height) / tall)[:, None].expand(height, width)
    x = (torch.arange(width) / wide).expand(height, width)
    place = torch.stack([y, x]).expand(batch, -1, -1, -1)
    return torch.cat([lab(pictures) / COMPACTNESS, place], dim=1).flatten(2)
