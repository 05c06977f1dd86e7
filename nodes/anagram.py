"""View, Reference Component and the Anagram Guider: one picture that shows another thing in every view of it.

Visual Anagrams (arXiv 2311.17919) and Factorized Diffusion (arXiv 2404.11615), see guidance/anagram.py; the domain
pixel is after LookingGlass (arXiv 2504.08902), see nodes/host/pixel_anagram.py.
"""

from __future__ import annotations

import torch
from comfy_api.latest import io
from torch import Tensor

from ..guidance.anagram import MEAN, REDUCTIONS, counting
from ..guidance.views.protocol import Reading
from ..guidance.views.registry import VIEWS, Parameters, make
from .host import checks
from .host.anagram import AnagramGuider as LatentGuider
from .host.pixel_anagram import PixelAnagramGuider
from .host.schema import tolerant
from .host.sockets import ViewsSocket
from .host.widgets import PERCENT

CATEGORY = "guided synthesis/illusions"
LATENT, PIXEL = "latent", "pixel"
VIEWS_IN_SHORT = "\n".join(
    (
        "How the picture is looked at. The help page of this node describes each view.",
        "identity to skew: the whole picture, as it is, flipped, turned or changed.",
        "patch permutation to mirror halves: parts of it moved, turned or flipped.",
        "scale to mask rest: components, the parts of a sum; for the guider's reduction sum.",
        "rotate 135, blur, white balance: experimental.",
    )
)
COMPONENTS = [name for name in VIEWS if make(name, Parameters(mask=torch.ones(1, 1, 8, 8))).component]


def _read_by(parameter: str, names: list[str]) -> str:
    """Return who reads a parameter, for its tooltip."""
    readers = ", ".join(name for name in names if parameter in VIEWS[name].needs)
    return f"Read by: {readers}."


def _parameters(names: list[str]) -> list[io.Input]:
    """Return the widgets that the views of these names read, and the mask."""
    of = {
        "angle": lambda tip: io.Float.Input(
            "angle", default=90.0, min=-360.0, max=360.0, step=1.0, tooltip=f"Degrees, clockwise. {tip}"
        ),
        "rows": lambda tip: io.Int.Input(
            "rows", default=4, min=1, max=64, tooltip=f"Patches from top to bottom, or rings. {tip}"
        ),
        "columns": lambda tip: io.Int.Input(
            "columns", default=4, min=1, max=64, tooltip=f"Patches from left to right. {tip}"
        ),
        "size": lambda tip: io.Float.Input(
            "size",
            default=0.6,
            min=-10.0,
            max=10.0,
            step=0.05,
            tooltip=f"Diameter of the circle, of the picture's short side; of scale: the factor. {tip}",
        ),
        "sigma": lambda tip: io.Float.Input(
            "sigma",
            default=1 / 32,
            min=0.001,
            max=0.25,
            step=0.005,
            round=0.00001,
            tooltip=f"Blur, of the picture's short side: 0.031 is 16 px of 512. More: seen from farther away. {tip}",
        ),
        "seed": lambda tip: io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**32 - 1,
            control_after_generate=False,
            tooltip=f"Which permutation; the same in all nodes that look at the picture. {tip}",
        ),
        "mask": lambda tip: io.Mask.Input(
            "mask", optional=True, tooltip=f"Where the component is, white. {tip}"
        ),
    }
    needed = [parameter for parameter in of if any(parameter in VIEWS[name].needs for name in names)]
    return [of[parameter](_read_by(parameter, names)) for parameter in needed]


def _one(mask: Tensor | None) -> Tensor | None:
    """Return the first of MASK (B, H, W) as (1, 1, H, W) float32, or None."""
    return None if mask is None else mask.reshape(-1, 1, *mask.shape[-2:])[:1].float()


class View(io.ComfyNode):
    """Adds a view of the picture, and what shall be seen there, to a chain."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        names = list(VIEWS)
        *widgets, mask = _parameters(names)
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_View",
            display_name="View",
            category=CATEGORY,
            description=(
                "Adds a view of the picture, such as upside down, and the prompt for what shall be seen there. View "
                "nodes form a chain for the Anagram Guider and for Apply View."
            ),
            search_aliases=[
                "visual anagram",
                "illusion",
                "hybrid",
                "jigsaw",
                "upside down",
                "flip",
                "rotate",
            ],
            inputs=[
                io.Combo.Input(
                    "view",
                    options=names,
                    default="identity",
                    tooltip=VIEWS_IN_SHORT,
                ),
                *widgets,
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="What it counts against the other views, with reduction weighted; 0: as if not there.",
                ),
                tolerant(
                    io.Boolean.Input,
                    "experimental",
                    default=False,
                    advanced=True,
                    tooltip="Allow views that are there to show what does not work: "
                    + ", ".join(name for name, kind in VIEWS.items() if kind.about.startswith("Experimental"))
                    + ".",
                ),
                io.Conditioning.Input(
                    "conditioning",
                    optional=True,
                    tooltip=(
                        "The prompt: what shall be seen there. Masks, areas and ControlNets are as this view shows "
                        "them. Free where pictures are only looked at."
                    ),
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="A negative prompt for this view; free: that of the guider.",
                ),
                mask,
                ViewsSocket.Input(
                    "views",
                    optional=True,
                    tooltip="The views so far; leave it unconnected on the first node of the chain.",
                ),
            ],
            outputs=[ViewsSocket.Output(display_name="views", tooltip="The views so far and this one.")],
        )

    @classmethod
    def execute(
        cls,
        view,
        angle,
        rows,
        columns,
        size,
        sigma,
        seed,
        weight,
        experimental,
        conditioning=None,
        negative=None,
        mask=None,
        views=(),
    ) -> io.NodeOutput:
        """Add the view."""
        found = make(view, Parameters(angle, rows, columns, size, sigma, seed, _one(mask)))
        if found.experimental and not experimental:
            raise ValueError(
                f"The view {view} is there to show what does not work: {found.experimental} Turn on experimental to "
                "use it all the same, or choose another view."
            )
        link = Reading(found, positive=conditioning, negative=negative, weight=weight, title=view)
        return io.NodeOutput((*(views or ()), link))


class ReferenceComponent(io.ComfyNode):
    """Adds a component that is taken from a real picture to a chain."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        *widgets, mask = _parameters(COMPONENTS)
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_ReferenceComponent",
            display_name="Reference Component",
            category=CATEGORY,
            description=(
                "Takes a component of the picture, such as what is seen from afar, from a real picture; View nodes "
                "with prompts say what the other components show. For the Anagram Guider with reduction sum."
            ),
            search_aliases=["hybrid image", "illusion", "factorized diffusion", "low pass", "ILVR"],
            inputs=[
                io.Combo.Input(
                    "component",
                    options=COMPONENTS,
                    default="low pass",
                    tooltip="\n".join(f"{name}: {VIEWS[name].about}" for name in COMPONENTS),
                ),
                *widgets,
                io.Image.Input(
                    "reference", tooltip="The real picture; it is scaled and cropped to the picture's shape."
                ),
                mask,
                ViewsSocket.Input(
                    "views",
                    optional=True,
                    tooltip="The views so far; leave it unconnected on the first node of the chain.",
                ),
            ],
            outputs=[
                ViewsSocket.Output(display_name="views", tooltip="The views so far and this component.")
            ],
        )

    @classmethod
    def execute(cls, component, size, sigma, reference, mask=None, views=()) -> io.NodeOutput:
        """Add the component."""
        found = make(component, Parameters(size=size, sigma=sigma, mask=_one(mask)))
        link = Reading(found, reference=checks.picture(reference, "reference"), title=component)
        return io.NodeOutput((*(views or ()), link))


class AnagramGuider(io.ComfyNode):
    """GUIDER that samples a picture whose every view shows what its prompt asks for."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_AnagramGuider",
            display_name="Anagram Guider",
            category=CATEGORY,
            description=(
                "Paints one picture that shows another thing in each of its views: upside down, as a jigsaw, from "
                "afar. For SamplerCustomAdvanced, with any sampler."
            ),
            search_aliases=["visual anagrams", "illusion", "hybrid image", "ambigram", "LookingGlass"],
            inputs=_guider_inputs(),
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
        cls, model, views, negative, cfg, reduction, domain, start_percent, end_percent, vae=None
    ) -> io.NodeOutput:
        """Check chain and VAE, then build the guider."""
        if problem := checks.percent_range(start_percent, end_percent):
            raise ValueError(problem)
        checks.image_latent(model)
        readings = counting(views or (), reduction)
        if vae is None and (domain == PIXEL or any(reading.reference is not None for reading in readings)):
            raise ValueError(
                "The domain pixel and real pictures (Reference Component) need the VAE. Connect the checkpoint's to "
                "vae."
            )
        settings = model, readings, negative, reduction, vae
        guider = (
            PixelAnagramGuider(*settings, start_percent, end_percent)
            if domain == PIXEL
            else LatentGuider(*settings)
        )
        guider.set_cfg(cfg)
        return io.NodeOutput(guider)


def _guider_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="Any image model; patches and LoRAs keep working, on every view."),
        ViewsSocket.Input("views", tooltip="Two to six views with prompts, from a chain of View nodes."),
        io.Conditioning.Input("negative", tooltip="Negative or empty prompt, for views without their own."),
        io.Float.Input(
            "cfg",
            default=7.5,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="Guidance scale of every view. 7 to 10 is usual: views that compete need a little more.",
        ),
        io.Combo.Input(
            "reduction",
            options=list(REDUCTIONS),
            default=MEAN,
            tooltip=(
                "How the views become one picture. mean: all count the same. weighted: by the weights of the View "
                "nodes. alternate: one view after another, step by step (as fast as a single view, in latents). sum: "
                "components add up, such as low pass and high pass."
            ),
        ),
        io.Combo.Input(
            "domain",
            options=[LATENT, PIXEL],
            default=LATENT,
            tooltip=(
                "Where the views look. latent: fast; for flips, quarter turns, patches of whole cells, and components. "
                "pixel: for all views, also negate, jigsaw and circles; each step of the range decodes every view once "
                "and encodes it twice."
            ),
        ),
        io.Float.Input(
            "start_percent",
            default=0.0,
            tooltip="Domain pixel: when the views begin to agree; 0 is the first sampling step.",
            **PERCENT,
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            tooltip="Domain pixel: when they stop agreeing; 1 is the last step. If lower, one view wins in the end.",
            **PERCENT,
        ),
        io.Vae.Input(
            "vae",
            optional=True,
            tooltip="The checkpoint's VAE; for domain pixel and Reference Component.",
        ),
    ]


NODES = [View, ReferenceComponent, AnagramGuider]
