"""What the browser needs to play a picture's views: a sheet of small frames in the host's temp folder, and its map."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor
from torch.nn import functional

from ...guidance.animation import EASES, Stage, base, moves, timeline
from ...guidance.views.protocol import View
from .restarts import check_interrupt

KEY = "guided_synthesis_views"
SIDE, SHEET = 320, 4096  # px of the long side of a frame, and of a side of the sheet, at most
FRAMES, TRANSITION = 48, 12  # of all views, as long as each has one; of the way to a reading
QUALITY = 85


def views_ui(picture: Tensor, views: Sequence[View], titles: Sequence[str]) -> dict[str, Any]:
    """Return the `ui` that plays RGB `picture` (1, 3, H, W): the way to each reading that differs from it, and back.

    The first stop is the picture as it is, called as the first view that shows it so, or nothing; the others are the
    readings, called by their `titles`.
    """
    moving = [i for i, view in enumerate(views) if moves(view, picture)]
    ways = max(1, 2 * len(moving) - 1)
    transition = max(0, min(TRANSITION, (FRAMES - 2 * len(moving)) // ways))
    shots = timeline(moving, 1, transition, EASES["cubic"], loop=False)
    stage, small = Stage.around(views, picture), {}
    for shot in dict.fromkeys(shots):  # the way back shows what the way there did
        check_interrupt()
        small[shot] = _shrunk(stage.frame(picture, shot), SIDE)
    frames = torch.cat([small[shot] for shot in shots]).movedim(1, -1)
    readings = [i for i, shot in enumerate(shots) if shot.t == 1]
    labels = [base(titles, moving), *(titles[shots[i].view] for i in readings)]
    return player_ui(frames, [0, *readings], labels)


def player_ui(frames: Tensor, stops: Sequence[int], labels: Sequence[str]) -> dict[str, Any]:
    """Save RGB `frames` (N, H, W, 3) in [0, 1] as one picture, and return where it is and how it is read.

    The dict is to be merged into a node's `ui`. Frame i lies in column i % columns and row i // columns; they are
    scaled down to SIDE px, and further if SHEET px do not hold them all. `stops` are the frames that hold a reading,
    `labels` (plain text) what they are called.
    """
    columns = math.ceil(math.sqrt(len(frames)))
    small = _shrunk(frames.movedim(-1, 1), min(SIDE, SHEET // columns))
    return {
        KEY: [
            {
                "sprite": dict(_saved(_sheet(small, columns))),
                "columns": columns,
                "count": len(small),
                "width": small.shape[-1],
                "height": small.shape[-2],
                "stops": list(stops),
                "labels": list(labels),
            }
        ]
    }


def _shrunk(images: Tensor, side: int) -> Tensor:
    """Return RGB `images` (N, 3, H, W), their long side at most `side` px."""
    scale = side / max(images.shape[-2:])
    if scale >= 1:
        return images
    size = [max(1, round(length * scale)) for length in images.shape[-2:]]
    return functional.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)


def _sheet(frames: Tensor, columns: int) -> Tensor:
    """Return (rows * h, columns * w, 3) of `frames` (N, 3, h, w), row by row; what is left over is black."""
    missing = -len(frames) % columns
    filled = torch.cat([frames, frames.new_zeros(missing, *frames.shape[1:])])
    rows = filled.unflatten(0, (-1, columns))  # (rows, columns, 3, h, w)
    return rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)


def _saved(sheet: Tensor) -> dict[str, str]:
    """Save `sheet` (H, W, 3) under a name that no browser has kept, and return where."""
    name = f"{KEY}_{uuid.uuid4().hex[:8]}"
    return ui.ImageSaveHelper.save_animated_webp(
        [sheet], name, io.FolderType.temp, None, fps=1.0, lossless=False, quality=QUALITY, method=2
    )
