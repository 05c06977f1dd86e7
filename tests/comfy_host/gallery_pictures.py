"""Of what the pictures of the README, of the workflow browser and of the help pages are put together.

A cell is what a graph saves (`guided`; `readings 2` is the second of several), what a node shows without saving it (by
the node's title), an input picture (`photo.png`), or an input picture with a hole (`photo.png without mask.png`).
"""

from __future__ import annotations

Cells = tuple[str, ...]

ROWS: dict[str, Cells] = {
    "anagram_best_of": ("readings 1", "readings 2"),
    "anagram_flip": ("readings 1", "readings 2"),
    "anagram_jigsaw": ("readings 1", "readings 2"),
    "anagram_negative": ("readings 1", "readings 2"),
    "anagram_three_views": ("readings 1", "readings 2", "readings 3"),
    "anagram_turn": ("readings 1", "readings 2"),
    "anagram_upscale": ("picture", "large", "readings 2"),
    "attention_mask_inpaint": ("picture", "map", "changed"),
    "compose_and_not": ("one", "not"),
    "gradop_constrained": ("gradop_painting.png", "text", "optimum", "result"),
    "gradop_painting": ("gradop_painting.png", "sdedit", "guided"),
    "hybrid_far_near": ("readings 1", "picture"),
    "hybrid_from_photo": ("photo.png", "readings 1", "picture"),
    "ilvr_low_pass": ("reference", "factor_16", "factor_64"),
    "instruction_pairs": ("before", "after"),
    "invert_rebuild": ("photo.png", "trajectory 1 of 6", "rebuilt"),
    "loopback": ("gradop_painting.png", "single", "repeated"),
    "perceptual_photo_edit": ("photo.png", "text", "guided"),
    "photo_edit_kept": ("photo.png", "edit"),
    "photo_negative_prompt_inversion": ("photo.png", "before", "after"),
    "photo_painting_guide": ("photo_stroke_edit.png", "inverted", "guided"),
    "photo_stroke_edit": ("photo", "photo_stroke_edit.png", "edited"),
    "photo_to_painting": ("photo.png", "gaussian", "median_palette", "superpixel"),
    "photo_word_swap": ("photo.png", "before", "after"),
    "photo_word_swap_null_text": ("photo.png", "before", "after"),
    "photo_word_swap_sdxl": ("photo.png", "before", "after"),
    "pix2pix_zero": ("before", "direction", "guided"),
    "regions_from_painting": ("regions.png", "plain", "placed"),
    "repaint_inpaint": ("photo.png without repaint_mask.png", "plain", "repaint"),
    "saliency_other_things": ("saliency_reference.png", "first", "second", "plain"),
    "saliency_painting": ("saliency_reference.png", "saliency_painting.png", "both", "painting"),
    "saliency_turned": ("saliency_reference.png", "plain", "mirrored", "shifted"),
    "strength_sweep": ("plot",),
    "word_refine": ("before", "after"),
    "word_reweight": ("before", "after"),
    "word_swap": ("before", "after"),
}
"""The thumbnail of each workflow."""

PAGES: dict[str, tuple[str, Cells]] = {
    "AnagramGuider": ("anagram_flip", ROWS["anagram_flip"]),
    "ApplyView": ("anagram_turn", ROWS["anagram_turn"]),
    "AttentionEdit": ("word_refine", ROWS["word_refine"]),
    "AttentionMapView": ("attention_mask_inpaint", ROWS["attention_mask_inpaint"]),
    "AttentionRecorder": ("attention_mask_inpaint", ROWS["attention_mask_inpaint"]),
    "AttentionRegion": ("regions_from_painting", ROWS["regions_from_painting"]),
    "Compose": ("compose_and_not", ROWS["compose_and_not"]),
    "ComposeGuider": ("compose_and_not", ROWS["compose_and_not"]),
    "CrossAttentionGuidance": ("pix2pix_zero", ROWS["pix2pix_zero"]),
    "CrossAttentionInjector": ("regions_from_painting", ROWS["regions_from_painting"]),
    "DirectInversion": ("photo_word_swap", ROWS["photo_word_swap"]),
    "EditDirection": ("pix2pix_zero", ("before", "direction")),
    "GradOP": ("gradop_constrained", ROWS["gradop_constrained"]),
    "IllusionScore": ("anagram_best_of", ROWS["anagram_best_of"]),
    "ImageMetrics": ("perceptual_photo_edit", ROWS["perceptual_photo_edit"]),
    "Invert": ("invert_rebuild", ROWS["invert_rebuild"]),
    "LoadClassifier": ("saliency_other_things", ("saliency_reference.png", "Where the classifier looks")),
    "LocalBlend": ("word_reweight", ROWS["word_reweight"]),
    "Loopback": ("loopback", ROWS["loopback"]),
    "LowPassGuide": ("ilvr_low_pass", ROWS["ilvr_low_pass"]),
    "NullText": ("photo_word_swap_null_text", ROWS["photo_word_swap_null_text"]),
    "PaintedRegions": ("regions_from_painting", ROWS["regions_from_painting"]),
    "PaintingDistance": ("photo_stroke_edit", ("painting", "edited", "Where it strays from the painting")),
    "PaintingFunction": ("photo_to_painting", ROWS["photo_to_painting"]),
    "PaintingGuide": ("gradop_painting", ROWS["gradop_painting"]),
    "PerceptualGuidance": ("perceptual_photo_edit", ROWS["perceptual_photo_edit"]),
    "Prompt": ("attention_mask_inpaint", ROWS["attention_mask_inpaint"]),
    "PromptToPromptGuider": ("word_swap", ROWS["word_swap"]),
    "RePaintSampler": ("repaint_inpaint", ROWS["repaint_inpaint"]),
    "ReferenceComponent": ("hybrid_from_photo", ROWS["hybrid_from_photo"]),
    "SaliencyNoise": (
        "saliency_other_things",
        ("saliency_reference.png", "Where the classifier looks", "first", "second"),
    ),
    "Sweep": ("strength_sweep", ROWS["strength_sweep"]),
    "SweepValues": ("strength_sweep", ROWS["strength_sweep"]),
    "TextGuidanceGuider": ("perceptual_photo_edit", ("photo.png", "text")),
    "TrajectoryView": ("invert_rebuild", ("trajectory",)),
    "TransformNoise": ("saliency_turned", ("plain", "mirrored", "shifted")),
    "View": ("anagram_flip", ROWS["anagram_flip"]),
}
"""The picture on the help page of a node, and the graph that makes it."""

README: dict[str, tuple[str, Cells]] = {
    "painting": ("gradop_painting", ("gradop_painting.png",)),
    "sdedit": ("gradop_painting", ("sdedit",)),
    "guided": ("gradop_painting", ("guided",)),
}
"""The first three pictures of the README."""

FILMS = (
    "anagram_flip",
    "anagram_turn",
    "anagram_negative",
    "anagram_jigsaw",
    "anagram_three_views",
    "hybrid_far_near",
    "hybrid_from_photo",
)
"""Graphs whose animation is shown in the README."""
FILM_PAGE = "anagram_jigsaw"
"""The one on the help page of View Animation."""
