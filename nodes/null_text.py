"""Null-Text Optimisation: a negative for each step, with which sampling at a high CFG ends in the inverted photo.

Null-text Inversion for Editing Real Images using Guided Diffusion Models (arXiv 2211.09794), see guidance/null_text.py.
"""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io, ui

from ..guidance.null_text import Descent
from .host.attention_hook import check_unet
from .host.null_text import optimise_null_text, prepared, scheduled, step_ranges
from .host.plots import curve
from .host.schema import tolerant
from .host.sockets import TrajectorySocket
from .host.trajectories import check_model


class NullText(io.ComfyNode):
    """CONDITIONING that, as the negative, takes any CFG along an inverted picture's trajectory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_NullText",
            display_name="Null-Text Optimisation",
            category="guided synthesis/inversion",
            description=(
                "Makes an inverted photo come back at a high CFG, so that its prompt can be edited: at each step the "
                "negative prompt's text is fitted until the sampler stays on the trajectory. Takes minutes on large "
                "models; do it once for each photo and keep the trajectory."
            ),
            search_aliases=[
                "null-text",
                "null text inversion",
                "inversion",
                "photo",
                "real image",
                "edit",
                "cfg",
            ],
            inputs=_inputs(),
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        cfg,
        trajectory,
        inner_steps,
        learning_rate,
        momentum,
        stop,
    ) -> io.NodeOutput:
        """Check everything, then find the texts."""
        check_unet(model)
        check_model(trajectory, model)
        _check(positive, cfg)
        negative = prepared(negative, positive)
        descent = Descent(inner_steps, learning_rate, momentum, stop)
        ranges = step_ranges(trajectory.sigmas, model.get_model_object("model_sampling"))
        texts, residuals = optimise_null_text(model, positive, negative, cfg, trajectory, descent)
        conditioning = scheduled(negative, texts, ranges)
        found = replace(trajectory, null_text=texts, residuals=residuals, cfg=cfg)
        preview = curve(residuals, "Null-text: what each step misses", "root mean square", "step")
        worst = residuals.max().item()
        return io.NodeOutput(conditioning, found, worst, ui=ui.PreviewImage(preview, cls=cls))


def _check(positive: list, cfg: float) -> None:
    """Raise ValueError for conditions or a scale that have no one text to be fitted."""
    if cfg <= 1:
        raise ValueError(
            f"cfg is {cfg:g}; up to 1 the negative does not count, so there is nothing to fit. Set cfg to that of the "
            "sampler that will make the edit, 7.5 for example."
        )
    if any("area" in settings or settings.get("set_area_to_bounds") for _, settings in positive):
        raise ValueError(
            "positive has a condition for an area, to which the host would add a negative of its own that is not "
            "fitted. Use Conditioning (Set Mask) with set_cond_area default in place of Conditioning (Set Area)."
        )


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input(
            "model", tooltip="The model that the picture was inverted with; SD 1.x, SD 2.x or SDXL."
        ),
        io.Conditioning.Input("positive", tooltip="The prompt that the picture was inverted with."),
        io.Conditioning.Input(
            "negative",
            tooltip="Where the fitted texts start: an empty prompt, as in the paper, or the positive's text again "
            "(negative-prompt inversion), which starts closer and ends closer.",
        ),
        io.Float.Input(
            "cfg",
            default=7.5,
            min=1.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="The CFG of the sampler that will use the texts; they fit this one only. More than 1.",
        ),
        TrajectorySocket.Input("trajectory", tooltip="The inverted picture, inverted at CFG 1."),
        io.Int.Input(
            "inner_steps",
            default=5,
            min=0,
            max=500,
            tooltip="Optimisation steps at each sampling step, at most. More come closer and take longer. 0: the "
            "negative as it is. The paper: 10.",
        ),
        io.Float.Input(
            "learning_rate",
            default=0.1,
            min=0.0001,
            max=1.0,
            step=0.001,
            round=0.0001,
            tooltip="How far an optimisation step goes (Adam). The paper: 0.01.",
        ),
        tolerant(
            io.Float.Input,
            "momentum",
            default=0.5,
            min=0.0,
            max=0.99,
            step=0.01,
            advanced=True,
            tooltip="How much of the direction so far a step keeps (Adam's beta 1). The paper: 0.9.",
        ),
        tolerant(
            io.Float.Input,
            "stop",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.00001,
            round=0.000001,
            advanced=True,
            tooltip="A step is done once its loss is below this, plus 0.00002 for each step before it. "
            "Larger is faster. 0: never early. The paper: 0.00001.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Conditioning.Output(
            display_name="negative",
            tooltip="The texts, each for its step: the negative of euler or ddim over the same sigmas at this CFG.",
        ),
        TrajectorySocket.Output(
            display_name="trajectory", tooltip="The trajectory with the texts inside, for editing and saving."
        ),
        io.Float.Output(
            display_name="residual",
            tooltip="By how much the worst step misses the trajectory (root mean square). Lower is better.",
        ),
    ]


NODES = [NullText]
