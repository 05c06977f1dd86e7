"""Compose and the Compose Guider: several prompts as AND and NOT, each with its own prediction.

Compositional Visual Generation with Composable Diffusion Models (arXiv 2206.01714), see guidance/composition.py.
"""

from __future__ import annotations

from comfy_api.latest import io

from ..guidance.composition import Term, counting
from .host.composition import CompositionGuider
from .host.schema import tolerant
from .host.sockets import CompositionSocket

CATEGORY = "guided synthesis/guidance"


class Compose(io.ComfyNode):
    """Adds one prompt to a composition: AND with a weight above 0, NOT below."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_Compose",
            display_name="Compose",
            category=CATEGORY,
            description=(
                "Adds a prompt to a composition for the Compose Guider. Weight above 0: AND, the picture shall show "
                "this as well. Below 0: NOT, it shall not. Compose nodes form a chain."
            ),
            search_aliases=["composable diffusion", "AND", "NOT", "negation", "combine prompts", "weight"],
            inputs=[
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The prompt, from any text node; masks, areas, ControlNets and step ranges count.",
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip=(
                        "How strongly it counts, times cfg. Above 0: AND. Below 0: NOT; -1 is usual. 0: as if it were "
                        "not there."
                    ),
                ),
                CompositionSocket.Input(
                    "composition",
                    optional=True,
                    tooltip="The prompts so far; leave it unconnected on the first node of the chain.",
                ),
            ],
            outputs=[
                CompositionSocket.Output(
                    display_name="composition", tooltip="The prompts so far and this one."
                )
            ],
        )

    @classmethod
    def execute(cls, conditioning, weight, composition=()) -> io.NodeOutput:
        """Add the prompt."""
        return io.NodeOutput((*(composition or ()), Term(conditioning, weight)))


class ComposeGuider(io.ComfyNode):
    """GUIDER that samples a composition."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_ComposeGuider",
            display_name="Compose Guider",
            category=CATEGORY,
            description=(
                "Paints what all prompts of a composition ask for (AND) and none of what its NOT prompts name. Each "
                "prompt gets its own prediction at each step. For SamplerCustomAdvanced, with any sampler."
            ),
            search_aliases=["composable diffusion", "AND", "NOT", "negation", "negative prompt", "perp-neg"],
            inputs=[
                io.Model.Input("model", tooltip="Any image model; patches and LoRAs keep working."),
                CompositionSocket.Input("composition", tooltip="The prompts, from a chain of Compose nodes."),
                io.Conditioning.Input(
                    "negative",
                    tooltip=(
                        "What everything is measured against (unconditional): an empty prompt. What shall not be "
                        "there belongs in a Compose with a weight below 0."
                    ),
                ),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip=(
                        "Guidance scale of the whole: a prompt of weight 1 acts as with this CFG. With several AND "
                        "prompts about the same things, lower it or their weights."
                    ),
                ),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, model, composition, negative, cfg) -> io.NodeOutput:
        """Build the guider."""
        guider = CompositionGuider(model, counting(composition or ()), negative)
        guider.set_cfg(cfg)
        return io.NodeOutput(guider)


NODES = [Compose, ComposeGuider]
