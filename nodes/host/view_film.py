"""Draws a film of views frame by frame into the memory of the film itself, with the host's progress bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import comfy.utils
import matplotlib
import torch
from PIL import ImageFont
from torch import Tensor

from ...guidance.animation import Shot
from .restarts import check_interrupt


def film(pictures: Tensor, shots: Sequence[Shot], draw: Callable[[Tensor, Shot], Tensor]) -> Tensor:
    """Return IMAGE (B * F, H, W, 3): of each of B `pictures` (B, 3, h, w) the F `shots`, one picture after the other.

    `draw` gets a picture (1, 3, h, w) and a shot and returns (H, W, 3); shots that come again are copied.
    """
    total = len(pictures) * len(shots)
    progress, frames = comfy.utils.ProgressBar(total), torch.empty(0)
    for b, picture in enumerate(pictures.split(1)):
        drawn: dict[Shot, int] = {}
        for i, shot in enumerate(shots, b * len(shots)):
            check_interrupt()
            frame = frames[drawn[shot]] if shot in drawn else draw(picture, shot)
            if i == 0:
                frames = frame.new_empty(total, *frame.shape)
            frames[i] = frame
            drawn.setdefault(shot, i)
            progress.update(1)
    return frames


def caption_font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font that comes with matplotlib, `size` px high: letters of Europe, Greek and Cyrillic among them."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
