"""Illusion Score: alignment and concealment of an illusion's readings, and the best picture of a batch.

Visual Anagrams (arXiv 2311.17919), section 4, see guidance/illusion_score.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..guidance.illusion_score import TEMPERATURE, alignment, best, certainty, concealment
from ..guidance.views.protocol import Views
from .host import checks
from .host.clip_score import clip_score_table
from .host.label_score import label_score_table
from .host.schema import tolerant
from .host.sockets import ClassifierSocket, ViewsSocket


@dataclass(frozen=True)
class _Judgement:
    """What CLIP or a classifier says of B pictures."""

    scores: Tensor
    """(B, N views, N prompts) float64: cosines, or logarithms of probabilities."""
    temperature: float
    logarithms: bool

    def fits(self) -> Tensor:
        """Return how well each reading fits each prompt, (B, N, N): a cosine or a probability."""
        return self.scores.exp() if self.logarithms else self.scores


class IllusionScore(io.ComfyNode):
    """IMAGE, VIEWS and a CLIP model or a classifier -> how well the illusion works, and the best of a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_IllusionScore",
            display_name="Illusion Score",
            category="guided synthesis/illusions",
            description=(
                "Lets CLIP or a classifier look at each reading of an illusion: does it show what its prompt says "
                "(alignment), and not what the others say (concealment)? Of a batch, picks the best picture."
            ),
            search_aliases=["visual anagram", "illusion", "clip score", "best of", "pick", "rank", "quality"],
            inputs=_inputs(),
            outputs=_outputs(),
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image, views, prompts, clip=None, clip_vision=None, classifier=None) -> io.NodeOutput:
        """Check everything, score each picture, and show the table."""
        pictures = checks.picture(image, "image")
        lines = _prompts(prompts, views)
        _check_judges(clip, clip_vision, classifier)
        for link in views:
            link.view.check(*pictures.shape[-2:])
        readings, shape = _readings(pictures, views), (len(pictures), len(views), len(views))
        if classifier is None:
            cosines = clip_score_table(readings, lines, clip, clip_vision).double().div(100)
            judged = _Judgement(cosines.reshape(shape), TEMPERATURE, logarithms=False)
        else:
            chances = label_score_table(readings, lines, classifier).double()
            judged = _Judgement(chances.reshape(shape), 1.0, logarithms=True)
        winner = best(judged.scores, judged.temperature)
        return io.NodeOutput(
            alignment(judged.fits())[winner].item(),
            concealment(judged.scores, judged.temperature)[winner].item(),
            pictures[winner : winner + 1].movedim(1, -1),
            ui=ui.PreviewText("\n".join(_lines(judged, lines, winner))),
        )


def _check_judges(clip: Any, clip_vision: Any, classifier: Any) -> None:
    """Raise ValueError unless there is either a classifier or both halves of a CLIP model."""
    if classifier is not None and (clip is not None or clip_vision is not None):
        raise ValueError(
            "A classifier and CLIP are both connected, and only one can judge. Disconnect classifier, or clip and "
            "clip_vision."
        )
    if classifier is None and (clip is None or clip_vision is None):
        raise ValueError(
            "Nothing is connected that could look at the readings. Connect clip and clip_vision (both halves of one "
            "CLIP model), or a classifier from Load Classifier."
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


def _lines(judged: _Judgement, prompts: Sequence[str], winner: int) -> list[str]:
    """Return what the node shows: a line for each picture, and for each of its views."""
    lines, fits = [], judged.fits()
    sure = certainty(judged.scores, judged.temperature)
    told = concealment(judged.scores, judged.temperature)
    for i, (a, c) in enumerate(zip(alignment(fits), told, strict=True)):
        mark = " (best)" if i == winner and len(fits) > 1 else ""
        lines.append(f"picture {i + 1}{mark}: alignment {a:.4f}, concealment {c:.4f}")
        lines += [
            f"    {prompt}: fits {fits[i, j, j]:.4f}, told apart {sure[i, j]:.4f}"
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
                "between them should differ: 'a painting of a fox', 'a painting of an apple'. With a classifier: one "
                "of its labels in each line."
            ),
        ),
        io.Clip.Input(
            "clip",
            optional=True,
            tooltip="The text half of a CLIP model. ViT-L: clip_l with Load CLIP; ViT-H: SD 2.x; ViT-bigG: SDXL.",
        ),
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip="The vision half of the same CLIP model (Load CLIP Vision).",
        ),
        ClassifierSocket.Input(
            "classifier",
            optional=True,
            tooltip="Judges instead of CLIP, by the probabilities of its labels (Load Classifier).",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Float.Output(
            display_name="alignment",
            tooltip=(
                "How well the worst reading of the best picture fits its prompt: a cosine of CLIP (photographs and "
                "their captions: about 0.25 to 0.3), or a classifier's probability."
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
