"""Widgets that several nodes have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from comfy_api.latest import io

from ...attention.maps import SCALES
from .schema import tolerant

PERCENT = {"min": 0.0, "max": 1.0, "step": 0.01}


def switch(name: str, default: bool, tooltip: str) -> io.Input:
    """Return an on-off widget that newer hosts hide among the advanced ones."""
    return tolerant(io.Boolean.Input, name, default=default, advanced=True, tooltip=tooltip)


def scale_switches(on: Collection[int], tooltip: Callable[[int], str]) -> list[io.Input]:
    """Return a switch for the attention layers of each scale, those of `on` on; `tooltip` gets their px per token."""
    return [switch(f"scale_{scale}", scale in on, tooltip(8 * scale)) for scale in SCALES]


def scales_on(widgets: dict[str, Any]) -> frozenset[int]:
    """Return the scales that `scale_switches` has on."""
    return frozenset(scale for scale in SCALES if widgets[f"scale_{scale}"])


def heavy_at_scale_1(text: str) -> Callable[[int], str]:
    """Return a tooltip for `scale_switches`: `text` about layers of so many px, and a warning for the finest."""
    return lambda px: f"{text} {px} px wide" + ("; takes by far the most memory." if px == 8 else ".")
