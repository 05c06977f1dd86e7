"""Text Guidance: source, edited and null text at every step, with a scale for what stays and one for what changes.

Perceptual Similarity guidance and text guidance optimization for Editing Real Images using Guided Diffusion Models
(arXiv 2312.06680), equations (1) to (4), see guidance/text_guidance.py.
"""

from __future__ import annotations

from comfy_api.latest import io

from ..guidance.text_guidance import EDIT_SOURCE, FORMULAS
from .host import checks
from .host.schema import tolerant
from .host.text_guidance import TextGuidance, TextGuider
from .host.widgets import PERCENT

SCALE = {"min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}


class TextGuidanceGuider(io.ComfyNode):
    """GUIDER that edits a photo from its inverted noise, by the difference of two prompts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_TextGuidanceGuider",
            display_name="Text Guidance Guider",
            category="guided synthesis/guidance",
            description=(
                "Edits a photo from its inverted noise with two prompts, one of what it shows and one of what it "
                "shall show: gamma holds on to the first, beta pushes from the first to the second. For "
                "SamplerCustomAdvanced, with any sampler."
            ),
            search_aliases=[
                "text guidance",
                "edit photo",
                "real image",
                "source prompt",
                "dual cfg",
                "delta",
            ],
            inputs=_inputs(),
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def validate_inputs(
        cls, start_percent: float | None = None, end_percent: float | None = None
    ) -> bool | str:
        """Refuse a reversed range before anything runs."""
        return checks.percent_range(start_percent, end_percent) or True

    @classmethod
    def execute(
        cls, model, source, edit, null, gamma, beta, formula, start_percent, end_percent, cfg
    ) -> io.NodeOutput:
        """Check the range, then build the guider."""
        if problem := checks.percent_range(start_percent, end_percent):
            raise ValueError(problem)
        guidance = TextGuidance(gamma, beta, formula, start_percent, end_percent)
        guider = TextGuider(model, source, edit, null, guidance)
        guider.set_cfg(cfg)
        return io.NodeOutput(guider)


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="Any image model; LoRAs and patches count, Perceptual Guidance too."),
        io.Conditioning.Input(
            "source", tooltip="What the photo shows: the prompt that it was inverted with."
        ),
        io.Conditioning.Input("edit", tooltip="What it shall show: the same prompt with the words changed."),
        io.Conditioning.Input(
            "null", tooltip="An empty prompt, a negative prompt, or the texts of Null-Text Optimisation."
        ),
        io.Float.Input(
            "gamma",
            default=1.0,
            tooltip="How strongly the source prompt is held on to. Take the cfg that the photo was inverted or its "
            "null-texts were fitted for: then the source alone gives the photo back.",
            **SCALE,
        ),
        io.Float.Input(
            "beta",
            default=3.0,
            tooltip="How strongly the edit is pushed. 0: no edit. 2 to 3 keeps the photo well; more shows more of the "
            "edit. Equal to gamma (formula edit - source): plain CFG on the edit.",
            **SCALE,
        ),
        io.Combo.Input(
            "formula",
            options=list(FORMULAS),
            default=EDIT_SOURCE,
            tooltip="What beta pushes away from. edit - source: only what the two prompts do not share. edit - null: "
            "all of the edit; gamma and beta then add up.",
        ),
        io.Float.Input(
            "start_percent",
            default=0.0,
            tooltip="When it begins: 0 is the first sampling step. Before it: plain CFG on the edit.",
            **PERCENT,
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            tooltip="When it ends. After it: plain CFG on the edit, at cfg, a third faster.",
            **PERCENT,
        ),
        io.Float.Input(
            "cfg",
            default=7.5,
            tooltip="Scale of the plain CFG on the edit before start_percent and after end_percent.",
            **SCALE,
        ),
    ]


NODES = [TextGuidanceGuider]
