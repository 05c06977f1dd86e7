"""Edit Direction: moves a prompt's condition from one thing to another, by the mean of many sentences.

Zero-shot Image-to-Image Translation (pix2pix-zero, arXiv 2302.03027), see attention/edit_direction.py.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..attention.edit_direction import direction, of_length, sentences
from .host.restarts import check_interrupt
from .host.schema import tolerant

TEMPLATE = "a photo of {}\na drawing of {}\na painting of {}\n{} in the distance"
POOLED = "pooled_output"


class EditDirection(io.ComfyNode):
    """CONDITIONING moved by mean(target sentences) - mean(source sentences), and that direction itself."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_EditDirection",
            display_name="Edit Direction (pix2pix-zero)",
            category="guided synthesis/attention",
            description=(
                "Turns one thing of a prompt into another, cat into dog, without rewriting the prompt: it adds the "
                "mean difference between many sentences about the one and about the other. Works with prompts that "
                "do not name the thing at all. For a picture that keeps its layout, add Cross-Attention Guidance."
            ),
            search_aliases=["pix2pix-zero", "edit direction", "concept", "swap word", "text direction"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder that also made the conditioning."),
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The prompt before the edit, from CLIP Text Encode or Prompt with Words.",
                ),
                io.String.Input(
                    "source",
                    multiline=True,
                    default="a cat",
                    tooltip="What shall change: words such as a cat, one per line (a cat, a kitten), each put into the "
                    "template; or whole sentences, with an empty template.",
                ),
                io.String.Input(
                    "target",
                    multiline=True,
                    default="a dog",
                    tooltip="What it shall become, in the same way. The numbers of lines may differ.",
                ),
                io.String.Input(
                    "template",
                    multiline=True,
                    default=TEMPLATE,
                    tooltip="Sentences around the words, one per line, with a pair of braces where the words go. More "
                    "sentences make a purer direction. Empty: each line of source and target is a whole sentence.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How far to go: 1 is the paper's edit, more exaggerates, 0 changes nothing, below 0 goes "
                    "the other way.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning", tooltip="The edited prompt: the positive of any sampler."
                ),
                io.Conditioning.Output(
                    display_name="direction",
                    tooltip="The direction alone, at strength 1, for graphs that mix conditionings themselves.",
                ),
            ],
        )

    @classmethod
    def execute(cls, clip, conditioning, source, target, template, strength) -> io.NodeOutput:
        """Encode all sentences, and add their difference."""
        if clip is None:
            raise ValueError(
                "The clip input holds no text encoder. If it comes from a checkpoint loader, the checkpoint has none: "
                "add Load CLIP."
            )
        before = sentences(source, template, "source")
        after = sentences(target, template, "target")
        embedding, pooled = _direction(_encoded(clip, before), _encoded(clip, after))
        bare = [[embedding, {} if pooled is None else {POOLED: pooled}]]
        if strength == 0:
            return io.NodeOutput(conditioning, bare)
        return io.NodeOutput([_moved(*entry, embedding, pooled, strength) for entry in conditioning], bare)


def _encoded(clip: Any, texts: list[str]) -> list[tuple[Tensor, Tensor | None]]:
    """Return embedding (1, T, D) and pooled output (1, D') or None of each text."""
    found = []
    for text in texts:
        check_interrupt()
        found.append(clip.encode_from_tokens(clip.tokenize(text), return_pooled=True))
    return found


def _direction(source: list, target: list) -> tuple[Tensor, Tensor | None]:
    """Return the directions of embeddings (1, T, D) and of pooled outputs (1, D'), these None if there are none."""
    embedding = direction([e for e, _ in source], [e for e, _ in target])
    if any(pooled is None for _, pooled in source + target):
        return embedding, None
    mean = direction(*([pooled[:, None] for _, pooled in texts] for texts in (source, target)))
    return embedding, mean[:, 0]


def _moved(
    embedding: Tensor, settings: dict, move: Tensor, pooled_move: Tensor | None, strength: float
) -> list:
    """Return an entry of CONDITIONING moved by `strength` times the direction; all its other settings stay."""
    if embedding.shape[-1] != move.shape[-1]:
        raise ValueError(
            f"The conditioning has {embedding.shape[-1]} numbers a token, but this clip makes {move.shape[-1]}: they "
            "are of different models. Connect the clip that also encoded the conditioning."
        )
    settings, pooled = dict(settings), settings.get(POOLED)
    if pooled is not None and pooled_move is not None:
        settings[POOLED] = _added(pooled, pooled_move, strength)
    return [_added(embedding, of_length(move, embedding.shape[1]), strength), settings]


def _added(value: Tensor, move: Tensor, strength: float) -> Tensor:
    return value + (strength * move).to(value)


NODES = [EditDirection]
