"""Films of views: the picture as it is, an eased transition to a reading, and back; which frame shows what, and how.

Cubic easing: 4 s^3 in the first half, mirrored in the second, so that a film runs backwards as it ran forwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .views.protocol import View

GREY = 0.5
LIMIT = 4 * 2**30  # bytes of a film

Ease = Callable[[float], float]


def mirrored(start: Ease) -> Ease:
    """Return the easing that follows `start` from 0 to 0.5 and its mirror image from there to 1."""
    return lambda s: start(s) if s < 0.5 else 1 - start(1 - s)


EASES: dict[str, Ease] = {
    "cubic": mirrored(lambda s: 4 * s**3),
    "sine": mirrored(lambda s: (1 - math.cos(math.pi * s)) / 2),
    "linear": mirrored(lambda s: s),
}
"""Name -> which share of the way (0 to 1) is done after a share of the time; rising, 0 at 0 and 1 at 1."""


@dataclass(frozen=True)
class Shot:
    """What a frame shows: link `view` of a chain, `t` of the way from the picture (0) to its reading (1)."""

    view: int
    t: float


def timeline(moving: Sequence[int], hold: int, transition: int, ease: Ease, loop: bool) -> list[Shot]:
    """Return a Shot for each frame: for each link of `moving` the picture, the way there, the reading, the way back.

    Picture and reading are held for `hold` frames, a way takes `transition` frames between them. The last way back is
    there only if the film shall `loop`. Of no links: the picture, held once.
    """
    steps = [ease(k / (transition + 1)) for k in range(1, transition + 1)]
    shots = [] if moving else [Shot(0, 0.0)] * hold
    for view in moving:
        way = [Shot(view, t) for t in steps]
        shots += [Shot(view, 0.0)] * hold + way + [Shot(view, 1.0)] * hold + way[::-1]
    return shots if loop or not moving else shots[: len(shots) - transition]


def moves(view: View, picture: Tensor) -> bool:
    """Tell whether the film of this view leads anywhere from RGB `picture` (1, 3, H, W)."""
    return not torch.equal(view.frame(picture, 1.0), picture)


def base(titles: Sequence[str], moving: Sequence[int]) -> str:
    """Return the title of the picture as it is: that of the first view that shows it so, not one of `moving`."""
    return next((title for i, title in enumerate(titles) if i not in moving), "")


@dataclass(frozen=True)
class Stage:
    """Where a film plays: the views, and the size of all its frames."""

    views: Sequence[View]
    height: int
    width: int

    @classmethod
    def around(cls, views: Sequence[View], picture: Tensor) -> Stage:
        """Return the smallest that holds the frames of pictures such as `picture` (1, 3, H, W).

        Both sides are even, as videos need them.
        """
        frames = [view.frame(picture, 0.0) for view in views]
        height, width = (max(frame.shape[side] for frame in frames) for side in (-2, -1))
        return cls(views, height + height % 2, width + width % 2)

    def frame(self, picture: Tensor, shot: Shot) -> Tensor:
        """Return RGB (1, 3, height, width): what `shot` shows of `picture` (1, 3, H, W), on mid grey."""
        return on_canvas(self.views[shot.view].frame(picture, shot.t), self.height, self.width)


def on_canvas(image: Tensor, height: int, width: int) -> Tensor:
    """Return RGB `image` (B, 3, h, w) in the middle of mid grey: (B, 3, `height`, `width`)."""
    down, across = height - image.shape[-2], width - image.shape[-1]
    sides = (across // 2, across - across // 2, down // 2, down - down // 2)
    return functional.pad(image, sides, value=GREY) if any(sides) else image


def check_size(frames: int, height: int, width: int) -> None:
    """Raise ValueError if a film of so many RGB frames in float32 would take more than LIMIT bytes."""
    size = frames * height * width * 3 * 4
    if size > LIMIT:
        raise ValueError(
            f"The film would have {frames} frames of {width}x{height} px, {size / 2**30:.1f} GiB of memory; at most "
            f"{LIMIT / 2**30:.0f} GiB are allowed. Lower fps, hold or transition, animate fewer pictures or views, or "
            "make the picture smaller with Upscale Image before this node."
        )
