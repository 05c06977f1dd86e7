"""What the browser needs to show where each word of a prompt looked: the picture, a sheet of heat maps, the words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .sheets import saved, sheet_of, shrunk

KEY = "guided_synthesis_attention"
SIDE, MAP = 512, 128  # px of the long side of the picture, and of a side of a map
GROUND = 0.3  # the grey that maps lie on if there is no picture


def explorer_ui(words: Sequence[str], maps: Tensor, picture: Tensor) -> dict[str, Any]:
    """Save RGB `maps` (N, 3, MAP, MAP) of the N `words` (plain text) and the RGB `picture` (3, H, W), all in [0, 1].

    Returns where they are and how they are read; it is to be merged into a node's `ui`.
    """
    shown = shrunk(picture[None], SIDE)[0].movedim(0, -1)
    return {KEY: [{**sheet_of(maps, MAP, KEY), "picture": saved(shown, KEY), "words": list(words)}]}
