"""Illusion Score: alignment and concealment of an illusion's readings, and the best picture of a batch.

Visual Anagrams (arXiv 2311.17919), section 4, see guidance/illusion_score.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from comfy_api.latest import io, ui
from torch import Tensor

from ..guidance.illusion_score import alignment, best, certainty, concealment
from ..guidance.views.protocol import Views
from .host import checks
from .host.clip_score import clip_score_table
from .host.schema import tolerant
from .host.sockets import ViewsSocket


class IllusionScore(io.ComfyNode):
    """IMAGE, VIEWS and a CLIP model -> how well the illusion works, and the picture in which it works best."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_IllusionScore",
            display_name="Illusion Score",
            category="guided synthesis/illusions",
            description=(
                "Lets CLIP look at each reading of an illusion: does it show what its prompt says (alignment), and not "
                "what the others say (concealment)? Of a batch, picks the best picture."
            ),
            search_aliases=["visual anagram", "illusion", "clip score", "best of", "pick", "rank", "quality"],
            inputs=_inputs(),
            outputs=_outputs(),
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image, views, prompts, clip, clip_vision) -> io.NodeOutput:
        """Check everything, score each picture, and show the table."""
        pictures = checks.picture(image, "image")
        lines = _prompts(prompts, views)
        for link in views:
            link.view.check(*pictures.shape[-2:])
        table = clip_score_table(_readings(pictures, views), lines, clip, clip_vision)
        scores = table.double().div(100).reshape(len(pictures), len(views), len(views))
        winner = best(scores)
        return io.NodeOutput(
            alignment(scores)[winner].item(),
            concealment(scores)[winner].item(),
            pictures[winner : winner + 1].movedim(1, -1),
            ui=ui.PreviewText("\n".join(_lines(scores, lines, winner))),
        )


def _prompts(text: str, views: Views) -> list[str]:
    """Return the prompts, one for each view; raise ValueError if their number is another, or there are no views."""
    if not views:
        raise ValueError("views is empty: there is no reading to score. Connect a View node to it.")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) != len(views):
        raise ValueError(
            f"prompts has {len(lines)} {'line' if len(lines) == 1 else 'lines'} for {len(views)} views. Write one "
            "line for each view, in the order of the chain: what that reading should show."
        )
    return lines


def _readings(pictures: Tensor, views: Views) -> Iterator[Tensor]:
    """Yield (1, 3, H, W): the first of `pictures` in each view, then the second, and so on."""
    return (link.view.reading(one) for one in pictures.split(1) for link in views)


def _lines(scores: Tensor, prompts: Sequence[str], winner: int) -> list[str]:
    """Return what the node shows of the cosines `scores` (B, N, N): a line for each picture, and for each view."""
    lines, sure = [], certainty(scores)
    for i, (a, c) in enumerate(zip(alignment(scores), concealment(scores), strict=True)):
        mark = " (best)" if i == winner and len(scores) > 1 else ""
        lines.append(f"picture {i + 1}{mark}: alignment {a:.4f}, concealment {c:.4f}")
        lines += [
            f"    {prompt}: fits {scores[i, j, j]:.4f}, told apart {sure[i, j]:.4f}"
            for j, prompt in enumerate(prompts)
        ]
    return lines


def _inputs() -> list[io.Input]:
    return [
        io.Image.Input("image", tooltip="The illusion, or a batch of which the best is wanted."),
        ViewsSocket.Input("views", tooltip="The chain of View nodes that it was made with."),
        io.String.Input(
            "prompts",
            default="",
            multiline=True,
            tooltip=(
                "What each reading should show: a line for each view, in the order of the chain. Only what differs "
                "between them should differ: 'a painting of a fox', 'a painting of an apple'."
            ),
        ),
        io.Clip.Input(
            "clip",
            tooltip="The text half of a CLIP model. ViT-L: clip_l with Load CLIP; ViT-H: SD 2.x; ViT-bigG: SDXL.",
        ),
        io.ClipVision.Input(
            "clip_vision", tooltip="The vision half of the same CLIP model (Load CLIP Vision)."
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Float.Output(
            display_name="alignment",
            tooltip=(
                "How well the worst reading of the best picture fits its prompt: a cosine (photographs and their "
                "captions: about 0.25 to 0.3)."
            ),
        ),
        io.Float.Output(
            display_name="concealment",
            tooltip=(
                "How surely the readings of the best picture are told apart: 1 is certain, 1 divided by the number of "
                "views a guess."
            ),
        ),
        io.Image.Output(
            display_name="best",
            tooltip="The picture with the highest alignment; of equal ones that with the highest concealment.",
        ),
    ]


NODES = [IllusionScore]
