"""What the browser needs to play a picture's views: a sheet of small frames in the host's temp folder, and its map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...guidance.animation import EASES, Stage, base, moves, timeline
from ...guidance.views.protocol import View
from .restarts import check_interrupt
from .sheets import sheet_of, shrunk

KEY = "guided_synthesis_views"
SIDE = 320  # px of the long side of a frame, at most
FRAMES, TRANSITION = 48, 12  # of all views, as long as each has one; of the way to a reading


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
        small[shot] = shrunk(stage.frame(picture, shot), SIDE)
    frames = torch.cat([small[shot] for shot in shots]).movedim(1, -1)
    readings = [i for i, shot in enumerate(shots) if shot.t == 1]
    labels = [base(titles, moving), *(titles[shots[i].view] for i in readings)]
    return player_ui(frames, [0, *readings], labels)


def player_ui(frames: Tensor, stops: Sequence[int], labels: Sequence[str]) -> dict[str, Any]:
    """Save RGB `frames` (N, H, W, 3) in [0, 1] as a sheet of at most SIDE px each, and return how it is played.

    The dict is to be merged into a node's `ui`. `stops` are the frames that hold a reading, `labels` (plain text) what
    they are called.
    """
    sheet = sheet_of(frames.movedim(-1, 1), SIDE, KEY)
    return {KEY: [{**sheet, "stops": list(stops), "labels": list(labels)}]}
