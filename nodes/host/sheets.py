"""Pictures for the parts of the pack in the browser, in the host's temp folder: many small ones share one file."""

from __future__ import annotations

import math
import uuid
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor
from torch.nn import functional

SHEET = 4096  # px of a side of a sheet, at most
QUALITY = 85


def sheet_of(frames: Tensor, side: int, name: str) -> dict[str, Any]:
    """Save RGB `frames` (N, 3, H, W) in [0, 1] as one picture, and return where it is and how it is read.

    Frame i lies in column i % columns and row i // columns; they are scaled down to `side` px, and further if a sheet
    does not hold them all.
    """
    columns = math.ceil(math.sqrt(len(frames)))
    small = shrunk(frames, min(side, SHEET // columns))
    return {
        "sprite": saved(_joined(small, columns), name),
        "columns": columns,
        "count": len(small),
        "width": small.shape[-1],
        "height": small.shape[-2],
    }


def shrunk(images: Tensor, side: int) -> Tensor:
    """Return RGB `images` (N, 3, H, W), their long side at most `side` px."""
    scale = side / max(images.shape[-2:])
    if scale >= 1:
        return images
    size = [max(1, round(length * scale)) for length in images.shape[-2:]]
    return functional.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)


def saved(picture: Tensor, name: str) -> dict[str, str]:
    """Save RGB `picture` (H, W, 3) in [0, 1] under `name` and what no browser has kept yet, and return where."""
    return dict(
        ui.ImageSaveHelper.save_animated_webp(
            [picture],
            f"{name}_{uuid.uuid4().hex[:8]}",
            io.FolderType.temp,
            None,
            fps=1.0,
            lossless=False,
            quality=QUALITY,
            method=2,
        )
    )


def _joined(frames: Tensor, columns: int) -> Tensor:
    """Return (rows * h, columns * w, 3) of `frames` (N, 3, h, w), row by row; what is left over is black."""
    missing = -len(frames) % columns
    filled = torch.cat([frames, frames.new_zeros(missing, *frames.shape[1:])])
    rows = filled.unflatten(0, (-1, columns))  # (rows, columns, 3, h, w)
    return rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
