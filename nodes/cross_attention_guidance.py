"""Cross-Attention Guidance: an edited picture keeps the layout of the picture before the edit.

Zero-shot Image-to-Image Translation (pix2pix-zero, arXiv 2302.03027), see attention/guidance_loss.py.
"""

from __future__ import annotations

from comfy_api.latest import io

from .host import checks
from .host.attention_guidance import guide_attention
from .host.attention_hook import check_unet
from .host.schema import tolerant
from .host.widgets import PERCENT, heavy_at_scale_1, scale_switches, scales_on

COMPARED = (2, 4, 8)  # unless asked otherwise: scale 1 takes more memory than the others together


class CrossAttentionGuidance(io.ComfyNode):
    """MODEL patch: each run samples the source first, then the edit, its attention maps pulled to the source's."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_CrossAttentionGuidance",
            display_name="Cross-Attention Guidance (pix2pix-zero)",
            category="guided synthesis/attention",
            description=(
                "Keeps the layout while you edit the prompt: the sampler runs twice from the same noise, first with "
                "the source prompt, then with the positive prompt, while each word's attention is pulled back to "
                "where it was in the first run. Put it between the checkpoint and any sampler."
            ),
            search_aliases=["pix2pix-zero", "cross attention guidance", "structure", "layout", "edit"],
            inputs=[
                io.Model.Input("model", tooltip="SD 1.x, SD 2.x or SDXL, with LoRAs and other patches."),
                io.Conditioning.Input(
                    "source",
                    tooltip="The prompt before the edit. The sampler's positive is the prompt after it: from Edit "
                    "Direction, or a prompt of the same length (77 tokens for up to 75).",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How far each step goes towards the source's attention: more keeps more of the layout, too "
                    "much breaks the picture. 1 is about the paper's 0.1 on SD 1.5. 0 switches it off.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    tooltip="When it begins: 0 is the first sampling step.",
                    **PERCENT,
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    tooltip="When it ends. Earlier is faster and leaves details to the new prompt.",
                    **PERCENT,
                ),
                *scale_switches(COMPARED, heavy_at_scale_1("Compare layers whose tokens are")),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The model, for any sampler; each run takes two to four times as long.",
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls, start_percent: float | None = None, end_percent: float | None = None
    ) -> bool | str:
        """Refuse a reversed range before anything runs."""
        return checks.percent_range(start_percent, end_percent) or True

    @classmethod
    def execute(cls, model, source, strength, start_percent, end_percent, **layers) -> io.NodeOutput:
        """Check everything, then return the guided model."""
        if problem := checks.percent_range(start_percent, end_percent):
            raise ValueError(problem)
        check_unet(model)
        scales = scales_on(layers)
        if strength == 0 or not scales:
            return io.NodeOutput(model)
        return io.NodeOutput(guide_attention(model, source, strength, start_percent, end_percent, scales))


NODES = [CrossAttentionGuidance]
