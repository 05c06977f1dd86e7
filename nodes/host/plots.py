"""Small plots as pictures for a node's preview, drawn by matplotlib without its global state or a display."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor
from torch.nn import functional

from ...guidance.noise_statistics import spectrum, white_spread

INCHES, DOTS_PER_INCH = (5.12, 3.2), 100  # 512 x 320 px
FEW = 64  # so many values have room for a dot each, which shows one between two that are missing

# of a sweep: px around the curve, which lies below the pictures, and the height of the curve
LEFT, RIGHT, BOTTOM, PLOT = 84, 16, 52, 240
GAP, TALLEST = 4, 2  # px around a picture of a sweep; its largest height, in columns
LINE, ODD = "#1f6fb4", "#c2410c"

WIDE = (10.24, 3.2)  # inches of two plots side by side: 1024 x 320 px
RINGS = 32  # at most, of a spectrum
LEAST = 0.01  # power that is drawn
COARSE, FINE = 0.125, 0.25  # cycles per cell: what is coarser and finer is told in words
CHANCE = 3  # standard deviations that white noise stays within


def curve(values: Tensor, title: str, ylabel: str, xlabel: str = "iteration") -> Tensor:
    """Return an IMAGE (1, 320, 512, 3) in [0, 1]: `values` (N,) over their number, or (N, B): one line each.

    NaN and infinity are left out; if nothing else is there, the plot says so. The scale is logarithmic where no value
    is negative, with zero at its lower end.
    """
    lines = values.detach().float().cpu().reshape(len(values), -1).numpy()
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
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
    return _drawn(figure)


def sweep_plot(values: Sequence[float], scores: Tensor, pictures: Tensor, xlabel: str, ylabel: str) -> Tensor:
    """Return an IMAGE (1, H, W, 3) in [0, 1]: `pictures` (N, 3, h, w) in a row above the curve of `scores` (N, K).

    A column for each of the N `values`, evenly spaced: the picture, and below it a dot for each of its K scores; a line
    through the means of those that are finite. Infinity is a triangle at the upper edge, NaN a cross at the lower one.
    W is 516 to 1060 for up to 15 values, then 64 more for each.
    """
    columns, column = len(values), max(64, min(160, 960 // len(values)), 416 // len(values))
    row = _row(pictures, column)
    width, height = LEFT + column * columns + RIGHT, row.shape[0] + PLOT + BOTTOM
    figure = Figure(figsize=(width / DOTS_PER_INCH, height / DOTS_PER_INCH), dpi=DOTS_PER_INCH)
    axes = figure.add_axes(
        (LEFT / width, BOTTOM / height, column * columns / width, PLOT / height),
        xlim=(-0.5, columns - 0.5),
        xlabel=xlabel,
        ylabel=ylabel,
    )
    axes.set_xticks(range(columns), [f"{value:g}" for value in values])
    axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    axes.grid(True, alpha=0.3)
    _draw_scores(axes, scores.detach().double().cpu().numpy())
    plot = _drawn(figure)
    plot[0, : row.shape[0], LEFT : LEFT + row.shape[1]] = row
    return plot


def noise_plot(noise: Tensor) -> Tensor:
    """Return an IMAGE (1, 320, 1024, 3) in [0, 1]: how far `noise` (B, C, h, w) is from white Gaussian noise.

    Left the radial power spectrum, a thin line for each channel and their mean, over the band in which 19 of 20 values
    of white noise lie; right the histogram of the values over the normal density. The titles say it in words.
    """
    noise = noise.detach().float().cpu()
    figure = Figure(figsize=WIDE, dpi=DOTS_PER_INCH, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_spectrum(left, noise)
    _draw_values(right, noise.double().flatten())
    return _drawn(figure)


def _draw_spectrum(axes: Any, noise: Tensor) -> None:
    count, channels, height, width = noise.shape
    bins = min(RINGS, max(height, width) // 2)
    frequencies, power = spectrum(noise.reshape(-1, 1, height, width), bins)
    lines = power.reshape(count, channels, bins).mean(0).clamp(min=LEAST)
    mean, spread = lines.mean(0), white_spread(noise, bins) / count**0.5
    axes.fill_between(
        frequencies, (1 - 2 * spread).clamp(min=LEAST), 1 + 2 * spread, color="0.85", label="white noise"
    )
    axes.axhline(1, color="0.6", linewidth=1)
    axes.plot(frequencies, lines.T, color=LINE, linewidth=0.7, alpha=0.5)
    axes.plot(frequencies, mean, color=LINE, linewidth=2.5, label="this noise")
    axes.set_yscale("log", base=2)
    axes.set_ylim(min(0.2, 0.8 * float(lines.min())), max(8.0, 1.5 * float(lines.max())))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda power, _: f"{power:.2g}"))
    axes.set(
        title=_spectrum_in_words(frequencies, mean, spread),
        xlabel="coarse                    cycles per cell                    fine",
        xlim=(0, 0.5),
        ylabel="power",
    )
    axes.legend(loc="upper right")


def _spectrum_in_words(frequencies: Tensor, power: Tensor, spread: Tensor) -> str:
    """Return whether `power` (N,) at `frequencies` is that of white noise, or where it is not."""
    off = ((power - 1) / spread).square().mean()  # 1 +- sqrt(2 / N) for white noise
    if off < 1 + CHANCE * (2 / len(power)) ** 0.5:
        return "spectrum: as white noise"
    ends = frequencies <= max(COARSE, float(frequencies[0])), frequencies > FINE
    coarse, fine = (power[where].mean() for where in ends)
    return f"spectrum: coarse parts x {coarse:.2g}, fine parts x {fine:.2g}"


def _draw_values(axes: Any, values: Tensor) -> None:
    edges = np.linspace(-5, 5, 41)
    shown = np.histogram(values, edges)[0] / len(values) / np.diff(edges)
    axes.stairs(shown, edges, fill=True, color=LINE, alpha=0.5, label="this noise")
    x = np.linspace(-5, 5, 201)
    axes.plot(
        x, np.exp(-(x**2) / 2) / (2 * np.pi) ** 0.5, color="0.25", linewidth=1.5, label="Gaussian noise"
    )
    mean, deviation = float(values.mean()), float(values.std(correction=0))
    axes.set(
        title=_values_in_words((values - mean) / deviation),
        xlabel=f"value (mean {round(mean, 2) + 0.0:.2f}, deviation {deviation:.2f})",
        xlim=(-5, 5),
        ylabel="share",
    )
    axes.legend(loc="upper right")


def _values_in_words(values: Tensor) -> str:
    """Return whether standardised `values` (N,) are as far out as those of Gaussian noise."""
    excess = float(values.pow(4).mean()) - 3  # 0 +- sqrt(24 / N) for Gaussian noise
    if abs(excess) < CHANCE * (24 / len(values)) ** 0.5:
        return "values: as Gaussian noise"
    return f"values: {'more' if excess > 0 else 'fewer'} extremes than Gaussian ({excess:+.2g})"


def _row(pictures: Tensor, column: int) -> Tensor:
    """Return `pictures` (N, 3, h, w) side by side on white, each centred in a column: (H, N * `column`, 3)."""
    h, w = pictures.shape[-2:]
    scale = min((column - 2 * GAP) / w, (TALLEST * column - 2 * GAP) / h)
    size = max(1, round(h * scale)), max(1, round(w * scale))
    small = functional.interpolate(
        pictures.float().cpu().nan_to_num(), size=size, mode="bilinear", antialias=True, align_corners=False
    ).clamp(0, 1)
    row, across = torch.ones(len(pictures), 3, size[0] + 3 * GAP, column), (column - size[1]) // 2
    row[:, :, GAP : GAP + size[0], across : across + size[1]] = small
    return row.permute(2, 0, 3, 1).flatten(1, 2)


def _draw_scores(axes: Any, scores: np.ndarray) -> None:
    """Draw `scores` (N, K) and the line through the means of the finite ones."""
    finite, several = np.isfinite(scores), scores.shape[1] > 1
    columns = np.repeat(np.arange(len(scores)), scores.shape[1])
    means = [row[there].mean() if there.any() else np.nan for row, there in zip(scores, finite, strict=True)]
    axes.plot(means, color=LINE, linewidth=2, marker="D", markersize=5, zorder=2)
    axes.scatter(columns, scores, s=18 if several else 45, color=LINE, alpha=0.5 if several else 1, zorder=3)
    if finite.any():
        _roomy(axes, scores[finite])
    else:
        axes.set_yticks([])
    _mark(axes, np.isinf(scores).any(1), "^", 0.94, "equal", -9)
    _mark(axes, np.isnan(scores).any(1), "x", 0.06, "not a number", 9)


def _mark(axes: Any, columns: np.ndarray, marker: str, height: float, word: str, offset: int) -> None:
    """Draw `marker` at `height` (0 to 1 of the plot) in the marked `columns`, with `word` `offset` points above it."""
    edge = axes.get_xaxis_transform()
    for x in np.flatnonzero(columns):
        axes.plot(x, height, marker, color=ODD, markersize=8, transform=edge, zorder=4)
        axes.annotate(
            word,
            (x, height),
            (0, offset),
            xycoords=edge,
            textcoords="offset points",
            ha="center",
            va="top" if offset < 0 else "bottom",
            fontsize=8,
            color=ODD,
        )


def _roomy(axes: Any, finite: np.ndarray) -> None:
    """Leave room above and below `finite` scores for what is drawn at the edges."""
    low, high = float(finite.min()), float(finite.max())
    room = 0.2 * (high - low) or 0.1 * abs(high) or 0.1
    axes.set_ylim(low - room, high + room)


def _drawn(figure: Figure) -> Tensor:
    canvas = FigureCanvasAgg(figure)
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
