"""Small plots as pictures for a node's preview, drawn by matplotlib without its global state or a display."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

INCHES, DOTS_PER_INCH = (5.12, 3.2), 100  # 512 x 320 px


def curve(values: Tensor, title: str, ylabel: str) -> Tensor:
    """Return an IMAGE (1, 320, 512, 3) in [0, 1]: `values` (N,) over their number, or (N, B): one line each.

    NaN is left out. The scale is logarithmic where all values are positive.
    """
    lines = values.detach().float().cpu().reshape(len(values), -1).numpy()
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    axes.plot(np.arange(1, len(lines) + 1), lines, marker="." if len(lines) == 1 else None)
    if lines.size and np.nanmin(lines) > 0:
        axes.set_yscale("log")
    axes.set(title=title, xlabel="iteration", ylabel=ylabel)
    axes.grid(True, which="both", alpha=0.3)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return torch.from_numpy(pixels.copy()).float()[None] / 255
