"""Prompt-to-prompt: Attention Edit, Local Blend and the guider that samples source and target side by side.

Prompt-to-Prompt Image Editing with Cross Attention Control (arXiv 2208.01626), see attention/edits.py and blend.py.
"""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..attention.alignment import described
from ..attention.blend import MASKS, LocalBlend
from ..attention.edits import KINDS, REPLACE, REWEIGHT, Edit, PromptToPrompt
from ..attention.maps import SCALES
from .host.attention_hook import check_unet
from .host.prompt_to_prompt import PairGuider
from .host.schema import tolerant
from .host.sockets import EditsSocket, TrajectorySocket
from .host.widgets import PERCENT

CATEGORY = "guided synthesis/attention"
AUTO = "auto"


class AttentionEdit(io.ComfyNode):
    """Adds one edit: the target's maps are replaced, refined or reweighted."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_AttentionEdit",
            display_name="Attention Edit",
            category=CATEGORY,
            description=(
                "Says how the target picture of the Prompt-to-Prompt Guider takes over the source's layout. replace: "
                "swap words; refine: add words; reweight: make a word louder, quieter or push it away. Edits form a "
                "chain."
            ),
            search_aliases=[
                "prompt-to-prompt",
                "p2p",
                "word swap",
                "refine",
                "reweight",
                "attention control",
            ],
            inputs=[
                io.Combo.Input(
                    "kind",
                    options=list(KINDS),
                    default=REPLACE,
                    tooltip=(
                        "replace: a word takes the place of another (cat, dog). refine: the target has more words, "
                        "those they share stay where they are. reweight: the words' effect is multiplied by amount."
                    ),
                ),
                io.String.Input(
                    "words",
                    default="",
                    tooltip=(
                        "Words of the target prompt that this edit is about, separated by commas. Empty: all words. "
                        "reweight needs some."
                    ),
                ),
                io.Float.Input(
                    "amount",
                    default=2.0,
                    min=-10.0,
                    max=10.0,
                    step=0.1,
                    tooltip="For reweight: 1 changes nothing, 2 is stronger, 0 silences the word, less pushes it away.",
                ),
                io.Float.Input(
                    "cross_start",
                    default=0.0,
                    tooltip="From when on the source's word maps are used: 0 is the first step.",
                    **PERCENT,
                ),
                io.Float.Input(
                    "cross_end",
                    default=0.8,
                    tooltip="Until when they are used. Lower: the new words shape the picture more freely.",
                    **PERCENT,
                ),
                io.Float.Input(
                    "self_start",
                    default=0.0,
                    tooltip="From when on the layout (self-attention) is the source's.",
                    **PERCENT,
                ),
                io.Float.Input(
                    "self_end",
                    default=0.4,
                    tooltip="Until when the layout is the source's. Lower: shapes may change more. Equal to "
                    "self_start: never.",
                    **PERCENT,
                ),
                EditsSocket.Input(
                    "edits",
                    optional=True,
                    tooltip="The edits so far; leave it unconnected on the first node of the chain.",
                ),
            ],
            outputs=[EditsSocket.Output(display_name="edits", tooltip="The edits so far and this one.")],
        )

    @classmethod
    def execute(
        cls, kind, words, amount, cross_start, cross_end, self_start, self_end, edits=()
    ) -> io.NodeOutput:
        """Add the edit."""
        if kind == REWEIGHT and not words.strip():
            raise ValueError(
                "reweight needs words: name the words of the target prompt whose amount is changed."
            )
        for name, start, end in (("cross", cross_start, cross_end), ("self", self_start, self_end)):
            if start > end:
                raise ValueError(
                    f"{name}_start ({start:g}) is larger than {name}_end ({end:g}), where 0 is the first and 1 the "
                    "last sampling step. Swap the two values."
                )
        edit = Edit(kind, words, amount, (cross_start, cross_end), (self_start, self_end))
        return io.NodeOutput((*(edits or ()), edit))


class LocalBlendNode(io.ComfyNode):
    """Adds a local blend: outside the words' objects the target is the source."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_LocalBlend",
            display_name="Local Blend",
            category=CATEGORY,
            description=(
                "Keeps the edit to the objects of some words: everywhere else the target picture is the source's."
            ),
            search_aliases=["prompt-to-prompt", "p2p", "local edit", "mask by word", "keep background"],
            inputs=[
                io.String.Input(
                    "source_words",
                    default="",
                    tooltip="Words of the source prompt whose object may change, separated by commas. May be empty.",
                ),
                io.String.Input(
                    "target_words",
                    default="",
                    tooltip="Words of the target prompt whose object may appear, separated by commas. May be empty.",
                ),
                io.String.Input(
                    "subtract",
                    default="",
                    tooltip="Words whose objects must not change, even if the others overlap them.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.3,
                    tooltip="Where a word's map reaches this share of its largest value, the picture may change.",
                    **PERCENT,
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.2,
                    tooltip="When it begins: before that the maps are too vague to tell objects apart.",
                    **PERCENT,
                ),
                tolerant(
                    io.Combo.Input,
                    "scale",
                    options=[AUTO, *(f"1/{scale}" for scale in SCALES)],
                    default=AUTO,
                    advanced=True,
                    tooltip=(
                        "Resolution of the maps, against the latent. Finer follows outlines, and is less sure. auto: "
                        "the one with maps of about 16 x 16 positions (1/4 for 512 px)."
                    ),
                ),
                io.Combo.Input(
                    "mask",
                    options=list(MASKS),
                    default=MASKS[0],
                    tooltip="Where change is allowed: at the source's objects, the target's, or both (union).",
                ),
                EditsSocket.Input("edits", optional=True, tooltip="Edits so far, from Attention Edit."),
            ],
            outputs=[EditsSocket.Output(display_name="edits", tooltip="The edits so far, with this blend.")],
        )

    @classmethod
    def execute(
        cls, source_words, target_words, subtract, threshold, start_percent, scale, mask, edits=()
    ) -> io.NodeOutput:
        """Add the blend; an earlier one is replaced."""
        fixed = None if scale == AUTO else int(scale.partition("/")[2])
        blend = LocalBlend(source_words, target_words, subtract, threshold, start_percent, fixed, mask)
        return io.NodeOutput((*(edit for edit in edits or () if isinstance(edit, Edit)), blend))


class PromptToPromptGuider(io.ComfyNode):
    """GUIDER that samples the source's and the target's picture, the target with the source's attention."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return tolerant(
            io.Schema,
            node_id="GuidedSynthesis_PromptToPromptGuider",
            display_name="Prompt-to-Prompt Guider",
            category=CATEGORY,
            description=(
                "Edits a generated picture, or an inverted photo, by editing its prompt: samples the picture of the "
                "source prompt and that of the target prompt together and lets the second take the layout of the "
                "first. For SamplerCustomAdvanced, with any sampler; it returns both pictures, the source first."
            ),
            search_aliases=["prompt-to-prompt", "p2p", "edit", "word swap", "cross attention control"],
            inputs=[
                io.Model.Input("model", tooltip="SD 1.x, SD 2.x or SDXL."),
                io.Conditioning.Input("source", tooltip="The source prompt, from Prompt with Words."),
                io.Conditioning.Input("target", tooltip="The target prompt, from Prompt with Words."),
                io.Conditioning.Input("negative", tooltip="The negative prompt of both."),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Classifier-free guidance scale of both.",
                ),
                EditsSocket.Input(
                    "edits",
                    optional=True,
                    tooltip=(
                        "From Attention Edit or Local Blend. Without any: words are swapped if both prompts have the "
                        "same number of words, otherwise refined."
                    ),
                ),
                TrajectorySocket.Input(
                    "trajectory",
                    optional=True,
                    tooltip=(
                        "Edits a photo: the trajectory from Invert, under the source prompt. The source is then the "
                        "photo, exactly (direct inversion); null-texts in it replace the negative. With euler or ddim "
                        "and the sigmas of the inversion; the noise connected to the sampler does not matter."
                    ),
                ),
            ],
            outputs=[
                io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced."),
            ],
            is_output_node=False,
        )

    @classmethod
    def execute(cls, model, source, target, negative, cfg, edits=(), trajectory=None) -> io.NodeOutput:
        """Build the guider and tell which word stands for which."""
        check_unet(model)
        steps = tuple(edit for edit in edits or () if isinstance(edit, Edit))
        blends = [edit for edit in edits or () if isinstance(edit, LocalBlend)]
        blend = blends[-1] if blends else None
        if trajectory is not None and trajectory.null_text is not None and trajectory.cfg != cfg:
            raise ValueError(
                f"The null-texts in the trajectory are for cfg {trajectory.cfg:g}, but cfg is {cfg:g}. Set cfg to "
                f"{trajectory.cfg:g}, or connect the trajectory of Invert, without null-texts."
            )
        guider = PairGuider(model, source, target, negative, steps, blend, trajectory)
        guider.set_cfg(cfg)
        return io.NodeOutput(guider, ui=ui.PreviewText("\n\n".join(map(_described, guider.pairs))))


def _described(pair: PromptToPrompt) -> str:
    """Return which word of the target stands for which of the source."""
    return described(pair.pair.source, pair.pair.target, pair.edits[0].kind == REPLACE)


NODES = [AttentionEdit, LocalBlendNode, PromptToPromptGuider]
