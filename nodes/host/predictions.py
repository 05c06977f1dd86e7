"""What a guider of this pack tells post-cfg functions beside the host's own: the estimates of source and edited text.

They travel in the `model_options` that the host hands to every post-cfg function.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

KEY = "guided_synthesis_predictions"


def telling(model_options: dict[str, Any], source: Tensor, edit: Tensor) -> dict[str, Any]:
    """Return a copy of `model_options` that carries the estimates x0hat (B, C, h, w) of both texts."""
    return {**model_options, KEY: (source, edit)}


def told(args: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Return the estimates of source and edited text from the `args` of a post-cfg function, or None."""
    return args["model_options"].get(KEY)
