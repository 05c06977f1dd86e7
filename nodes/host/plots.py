"""Small plots as pictures for a node's preview, drawn by matplotlib without its global state or a display."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

INCHES, DOTS_PER_INCH = (5.12, 3.2), 100  # 512 x 320 px
FEW = 64  # so many values have room for a dot each, which shows one between two that are missing


def curve(values: Tensor, title: str, ylabel: str, xlabel: str = "iteration") -> Tensor:
    """Return an IMAGE (1, 320, 512, 3) in [0, 1]: `values` (N,) over their number, or (N, B): one line each.

    NaN and infinity are left out; if nothing else is there, the plot says so. The scale is logarithmic where no value
    is negative, with zero at its lower end.
    """
    lines = values.detach().float().cpu().reshape(len(values), -1).numpy()
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    axes.xaxis.get_major_locator().set_params(integer=True)
    finite = lines[np.isfinite(lines)]
    axes.plot(np.arange(1, len(lines) + 1), lines, marker="." if len(lines) <= FEW else None)
    if finite.size:
        _scale(axes, finite)
    else:
        axes.text(0.5, 0.5, "no value was measured", transform=axes.transAxes, ha="center", va="center")
        axes.set(xticks=[], yticks=[])
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(True, which="both", alpha=0.3)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return torch.from_numpy(pixels.copy()).float()[None] / 255


def _scale(axes: Any, finite: np.ndarray) -> None:
    """Make the scale of y logarithmic if `finite` values allow it; one that is linear around 0 if some are 0."""
    if finite.min() > 0:
        axes.set_yscale("log")
    elif finite.min() == 0 and finite.max() > 0:
        axes.set_yscale("symlog", linthresh=float(finite[finite > 0].min()))
        axes.set_ylim(bottom=0)
