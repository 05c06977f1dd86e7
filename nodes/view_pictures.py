"""Apply View and View Animation: how a picture reads in each view of a chain, and the film that shows the way there.

Visual Anagrams (arXiv 2311.17919), Factorized Diffusion (arXiv 2404.11615); see guidance/views and
guidance/animation.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..guidance.animation import EASES, Shot, Stage, base, check_size, moves, on_canvas, timeline
from ..guidance.captions import faded, strips
from ..guidance.views.protocol import Reading, Views
from .host import checks
from .host.restarts import check_interrupt
from .host.schema import tolerant
from .host.sockets import ViewsSocket
from .host.view_film import caption_font, film
from .host.view_player import views_ui

CATEGORY = "guided synthesis/illusions"
ALL = -1
SMALLEST = 8  # px of letters that can still be read


class ApplyView(io.ComfyNode):
    """IMAGE and VIEWS -> IMAGE: what the reader of a view sees."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_ApplyView",
            display_name="Apply View",
            category=CATEGORY,
            description=(
                "Shows how a picture reads in a view: flipped, turned, rearranged, from afar. Any picture will do, "
                "not only an illusion. In the node the picture moves between its readings."
            ),
            search_aliases=["visual anagram", "illusion", "flip", "rotate", "jigsaw", "view", "hybrid"],
            inputs=[
                io.Image.Input("image", tooltip="The picture, or a batch of them."),
                ViewsSocket.Input(
                    "views", tooltip="A chain of View nodes; their prompts do not matter here."
                ),
                io.Int.Input(
                    "index",
                    default=ALL,
                    min=ALL,
                    max=1000,
                    tooltip="Which link of the chain: 0 is the first. -1: all, one after the other as a batch.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="reading",
                    tooltip=(
                        "The picture as it is seen in the view. With index -1 the first picture in all views, then "
                        "the second, and so on; readings of other sizes are put on mid grey."
                    ),
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image, views, index) -> io.NodeOutput:
        """Look at each picture through each of the chosen views."""
        pictures = _checked(image, views)
        seen = _readings(pictures, _chosen(views, index))
        return io.NodeOutput(seen, ui=_preview(cls, seen, pictures, views))


class ViewAnimation(io.ComfyNode):
    """IMAGE and VIEWS -> a film as IMAGE batch: the picture, the way to each reading, and back."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_ViewAnimation",
            display_name="View Animation",
            category=CATEGORY,
            description=(
                "Makes a film of a picture that moves from reading to reading: rotations turn, pieces fly, hybrids "
                "recede. For Save Animated WEBP or Create Video."
            ),
            search_aliases=["visual anagram", "illusion", "film", "video", "transition", "animate", "hybrid"],
            inputs=_animation_inputs(),
            outputs=[
                io.Image.Output(
                    display_name="frames",
                    tooltip="The frames of the film. Several pictures are shown one after the other.",
                ),
                io.Float.Output(
                    display_name="fps", tooltip="Frames per second, for the node that saves the film."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, image, views, hold, transition, fps, ease, loop, caption_size, captions=""
    ) -> io.NodeOutput:
        """Plan the film, draw it, and show the readings."""
        pictures = _checked(image, views)
        looks, lines = [link.view for link in views], _captions(captions, views, caption_size)
        moving = [i for i, look in enumerate(looks) if moves(look, pictures[:1])]
        shots = timeline(moving, max(1, round(hold * fps)), round(transition * fps), EASES[ease], loop)
        stage = Stage.around(looks, pictures[:1])
        frames = _filmed(pictures, stage, shots, [base(lines, moving), *lines], caption_size / 100)
        return io.NodeOutput(frames, fps, ui=_preview(cls, _readings(pictures, views), pictures, views))


def _filmed(
    pictures: Tensor, stage: Stage, shots: Sequence[Shot], captions: Sequence[str], size: float
) -> Tensor:
    """Return IMAGE (B * F, H, W, 3): the `shots` of each of `pictures`, above the caption of what they show.

    The first of `captions` is that of the picture as it is; `size` of the letters is a share of the width.
    """
    labels = strips(captions, stage.width, caption_font(max(SMALLEST, round(size * stage.width))))
    check_size(len(pictures) * len(shots), stage.height + labels.shape[1], stage.width)

    def draw(picture: Tensor, shot: Shot) -> Tensor:
        below = faded(labels[0], labels[shot.view + 1], shot.t)
        return torch.cat([stage.frame(picture, shot)[0].movedim(0, -1), below])

    return film(pictures, shots, draw)


def _checked(image: Tensor, views: Views) -> Tensor:
    """Return `image` as (B, 3, H, W); raise ValueError if there are no views, or one does not fit it."""
    if not views:
        raise ValueError(
            "views is empty: there is no view to look at the picture through. Connect a View node to it."
        )
    pictures = checks.picture(image, "image")
    for link in views:
        link.view.check(*pictures.shape[-2:])
    return pictures


def _chosen(views: Views, index: int) -> Views:
    """Return link `index` of the chain, or all."""
    if index >= len(views):
        raise ValueError(
            f"index is {index}, but the chain has {len(views)} {'view' if len(views) == 1 else 'views'}, counted from "
            f"0. Lower it to {len(views) - 1}, or set -1 for all."
        )
    return views if index == ALL else (views[index],)


def _readings(pictures: Tensor, views: Views) -> Tensor:
    """Return IMAGE (B * N, H, W, 3): the first of B pictures in all N views, then the second, on one canvas."""
    seen = [_reading(one, link) for one in pictures.split(1) for link in views]
    height, width = (max(one.shape[side] for one in seen) for side in (-2, -1))
    return torch.cat([on_canvas(one, height, width) for one in seen]).movedim(1, -1)


def _reading(picture: Tensor, link: Reading) -> Tensor:
    check_interrupt()
    return link.view.reading(picture)


def _titles(views: Views) -> list[str]:
    return [link.title or f"view {i}" for i, link in enumerate(views, 1)]


def _captions(text: str, views: Views, size: float) -> list[str]:
    """Return a caption for each view: the lines of `text`, or the titles; nothing if they have no `size`."""
    if not size:
        return [""] * len(views)
    lines = text.splitlines() if (text or "").strip() else _titles(views)
    if len(lines) != len(views):
        raise ValueError(
            f"captions has {len(lines)} {'line' if len(lines) == 1 else 'lines'} for {len(views)} views. Write one "
            "line for each view, in the order of the chain, or leave it empty for the names of the views."
        )
    return lines


def _preview(cls: type[io.ComfyNode], shown: Tensor, pictures: Tensor, views: Views) -> dict[str, Any]:
    """Return the `ui` of IMAGE `shown`, and the player of the first of `pictures`."""
    player = views_ui(pictures[:1], [link.view for link in views], _titles(views))
    return {**ui.PreviewImage(shown, cls=cls).as_dict(), **player}


def _animation_inputs() -> list[io.Input]:
    return [
        io.Image.Input("image", tooltip="The picture. Of a batch each in turn, one after the other."),
        ViewsSocket.Input("views", tooltip="A chain of View nodes; their prompts do not matter here."),
        io.Float.Input(
            "hold",
            default=1.0,
            min=0.0,
            max=60.0,
            step=0.1,
            tooltip="How long the picture, and each reading, stands still, in seconds.",
        ),
        io.Float.Input(
            "transition",
            default=1.0,
            min=0.0,
            max=60.0,
            step=0.1,
            tooltip="How long the way to a reading takes, and the way back, in seconds. 0: a cut.",
        ),
        io.Float.Input(
            "fps",
            default=30.0,
            min=1.0,
            max=120.0,
            step=1.0,
            tooltip="Frames per second. Half of it is half the memory and half the file.",
        ),
        io.Combo.Input(
            "ease",
            options=list(EASES),
            default="cubic",
            tooltip=(
                "How a transition starts and stops. cubic: slowly, fast in between. sine: the same, softer. linear: "
                "at one speed."
            ),
        ),
        io.Boolean.Input(
            "loop",
            default=True,
            tooltip=(
                "On: the film comes back to the picture, so it can play without end. Off: it stops at the last reading."
            ),
        ),
        io.Float.Input(
            "caption_size",
            default=5.0,
            min=0.0,
            max=20.0,
            step=0.5,
            tooltip="How high the letters of the captions are, in percent of the picture's width. 0: no captions.",
        ),
        io.String.Input(
            "captions",
            default="",
            multiline=True,
            optional=True,
            tooltip=(
                "What stands below each reading: a line for each view, in the order of the chain. Empty: the names of "
                "the views."
            ),
        ),
    ]


NODES = [ApplyView, ViewAnimation]
