"""Sweep: one setting at several values, measured and drawn, so that one sees where it turns."""

from __future__ import annotations

import re
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..guidance.metrics import paired
from .host import checks
from .host.perceptual import BACKBONES
from .host.plots import sweep_plot
from .host.schema import tolerant
from .host.scores import LPIPS, METRICS, PSNR, SSIM, scores

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
MOST = 64  # values that a plot has room for
AXES = {PSNR: "PSNR in dB (higher: closer)", SSIM: "SSIM (higher: closer)", LPIPS: "LPIPS (lower: closer)"}


def parsed(values: str) -> list[float]:
    """Return the numbers of `values`, such as "0, 0.5, 1"; raise ValueError naming what is wrong."""
    tokens = [token for token in re.split(r"[,\s]+", values) if token]
    for token in tokens:
        if not NUMBER.fullmatch(token):
            raise ValueError(
                f"values: {token!r} is not a number. Write numbers with a point, separated by commas: 0, 0.5, 1, 2."
            )
    numbers = [float(token) for token in tokens]
    for i, number in enumerate(numbers):
        if number in numbers[:i]:
            raise ValueError(
                f"values: {tokens[i]} is there twice. Write each value once; for several pictures of a value sample a "
                "batch."
            )
    if not 1 <= len(numbers) <= MOST:
        raise ValueError(f"values has {len(numbers)} numbers; write 1 to {MOST}, such as 0, 0.5, 1, 2.")
    return numbers


class SweepValues(io.ComfyNode):
    """STRING "0, 0.5, 1" -> list of FLOAT: whatever comes after it in the graph runs once for each value."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_SweepValues",
            display_name="Sweep Values",
            category="guided synthesis/guidance",
            description=(
                "Tries several values of one setting: everything behind it runs once for each. Connect value to the "
                "setting, and values to Sweep, which draws the results."
            ),
            search_aliases=["loop", "list", "for each", "xy plot", "grid", "strengths"],
            inputs=[_values_input()],
            outputs=[
                io.Float.Output(
                    display_name="value",
                    is_output_list=True,
                    tooltip="One value after the other: connect it to the setting that is to be tried.",
                ),
                io.String.Output(display_name="values", tooltip="All of them as text, for Sweep."),
            ],
        )

    @classmethod
    def validate_inputs(cls, values: Any = None) -> bool | str:
        """Refuse a wrong number before anything runs."""
        return _problem(values) or True

    @classmethod
    def execute(cls, values) -> io.NodeOutput:
        """Hand out the numbers."""
        return io.NodeOutput(parsed(values), values)


class Sweep(io.ComfyNode):
    """Pictures of several values of a setting and a reference -> a plot of a metric over the values."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_Sweep",
            display_name="Sweep",
            category="guided synthesis/guidance",
            description=(
                "Draws how a setting acts: the pictures of its values side by side, and below each how close it is to "
                "a reference. Takes a batch, or the list that Sweep Values makes of the graph."
            ),
            search_aliases=["plot", "graph", "curve", "xy plot", "strength", "metric", "compare"],
            inputs=_inputs(),
            outputs=[
                io.Image.Output(display_name="plot", tooltip="The pictures above the curve of the metric.")
            ],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, values: Any = None) -> bool | str:
        """Refuse a wrong number before anything runs."""
        return _problem(values) or True

    @classmethod
    def execute(cls, images, values, reference, metric, net, label, mask=None) -> io.NodeOutput:
        """Measure and draw; every input comes as a list, as the host gives it to nodes that gather lists."""
        numbers, metric, net, label = parsed(values[0]), metric[0], net[0], label[0]
        pictures = _one_batch([checks.picture(image, "images") for image in images], "images")
        each = _pictures_each(len(pictures), len(numbers))
        target = _one_batch([checks.picture(image, "reference") for image in reference], "reference")
        region = (
            None if mask is None else _one_batch([one.reshape(-1, *one.shape[-2:]) for one in mask], "mask")
        )
        pair = paired(pictures, _repeated(target, each, len(numbers)), _repeated(region, each, len(numbers)))
        found = scores(pair, [metric], net)[metric].reshape(len(numbers), each)
        ylabel = AXES[metric] + (f", {net}" if metric == LPIPS else "")
        plot = sweep_plot(numbers, found, pair.pictures[::each], label or "value", ylabel)
        shown = (
            ui.PreviewImage(plot, cls=cls).as_dict()
            | ui.PreviewText(_table(numbers, found, metric, label)).as_dict()
        )
        return io.NodeOutput(plot, ui=shown)


def _problem(values: Any) -> str | None:
    """Return the sentence for wrong `values`; None if they are fine, or not known yet because they are linked."""
    text = values[0] if isinstance(values, (list, tuple)) and values else values
    try:
        return None if not isinstance(text, str) else parsed(text) and None
    except ValueError as error:
        return str(error)


def _one_batch(tensors: list[Tensor], name: str) -> Tensor:
    """Return the batches `tensors` of a list as one; raise ValueError if their sizes differ."""
    sizes = {tuple(tensor.shape[1:]) for tensor in tensors}
    if len(sizes) > 1:
        shown = " and ".join(sorted(f"{size[-1]}x{size[-2]} px" for size in sizes))
        raise ValueError(
            f"{name} are of several sizes ({shown}); all must have one. Put Upscale Image before."
        )
    return torch.cat(tensors)


def _pictures_each(count: int, values: int) -> int:
    """Return how many pictures belong to each value; raise ValueError unless all have as many."""
    if count % values:
        raise ValueError(
            f"images has {count} pictures for {values} values; give one for each value, or equally many for each "
            "(first all of the first value, then all of the second, and so on)."
        )
    return count // values


def _repeated(tensor: Tensor | None, each: int, values: int) -> Tensor | None:
    """Return one for each picture if `tensor` holds one for each picture of a value."""
    if tensor is None or each == 1 or len(tensor) != each:
        return tensor
    return tensor.repeat(values, *(1 for _ in tensor.shape[1:]))


def _table(numbers: list[float], found: Tensor, metric: str, label: str) -> str:
    """Return a line for each value: the mean of what is finite, its least and largest, and what is not finite."""
    lines = []
    for number, row in zip(numbers, found, strict=True):
        finite, parts = row[row.isfinite()], []
        if len(finite):
            spread = f" ({finite.min():.4g} to {finite.max():.4g})" if len(finite) > 1 else ""
            parts.append(f"{finite.mean():.4g}{spread}")
        parts += [f"{n} equal" for n in [int(row.isinf().sum())] if n]
        parts += [f"{n} not a number" for n in [int(row.isnan().sum())] if n]
        lines.append(f"{label or 'value'} {number:g}: {metric} {', '.join(parts)}")
    return "\n".join(lines)


def _values_input() -> io.Input:
    return io.String.Input(
        "values",
        default="0, 0.5, 1, 2",
        tooltip="The values of the setting, separated by commas: 0, 0.5, 1, 2. No value twice.",
    )


def _inputs() -> list[io.Input]:
    return [
        io.Image.Input(
            "images",
            tooltip="The results in the order of the values: behind Sweep Values, or joined with Batch Images. With "
            "several pictures for each value their figures are averaged; all pictures of the first value come first.",
        ),
        _values_input(),
        io.Image.Input(
            "reference",
            tooltip="What they are compared with, such as the result without the guide: one, or one for each picture "
            "of a value. Same size.",
        ),
        io.Combo.Input(
            "metric", options=list(METRICS), default=LPIPS, tooltip="What is measured against the reference."
        ),
        io.Combo.Input(
            "net",
            options=list(BACKBONES),
            default="alex",
            tooltip="The network of LPIPS; other metrics do not use it.",
        ),
        io.String.Input(
            "label", default="strength", tooltip="The name of the setting, written below the plot."
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where the reference counts: white fully, black not at all. Same size.",
        ),
    ]


NODES = [SweepValues, Sweep]
