"""All views by name, with the parameters each one reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .circles import ConcentricRings, InnerCircle
from .colour import Colour, Grayscale
from .component import Rest
from .failures import Blur, Rotation135, WhiteBalance
from .flip import Flip
from .identity import Identity
from .jigsaw import Jigsaw
from .mask import Mask
from .mirror_halves import MirrorHalves
from .motion import Motion
from .negate import Negate
from .passes import LowPass, TripleLow, TripleMiddle, triple_high
from .patch_permutation import PatchPermutation
from .pixel_permutation import PixelPermutation
from .protocol import View
from .rotate import QuarterTurn, rotate
from .scale import Scale
from .skew import Skew
from .square_hinge import SquareHinge


@dataclass(frozen=True)
class Parameters:
    """What views can be told; each reads those that its kind needs. Sizes are shares of the picture's short side."""

    angle: float = 90.0
    """Degrees, clockwise as seen."""
    rows: int = 4
    """Patches from top to bottom; of rings: how many."""
    columns: int = 4
    """Patches from left to right."""
    size: float = 0.6
    """Diameter of a circle; of "scale": the factor."""
    sigma: float = 1 / 32
    """Of the blur; 2 px at 64."""
    seed: int = 0
    """Of what is drawn at random, 0 or more."""
    mask: Tensor | None = None
    """(1, 1, H, W) in [0, 1], of any size: where the masked component is."""


@dataclass(frozen=True)
class Kind:
    """How a view is made, which parameters it reads, and what it does, in one sentence."""

    make: Callable[[Parameters], View]
    needs: frozenset[str]
    about: str


def _kind(make: Callable[[Parameters], View], needs: str, about: str) -> Kind:
    return Kind(make, frozenset(needs.split()), about)


VIEWS: dict[str, Kind] = {
    "identity": _kind(lambda p: Identity(), "", "The picture as it is."),
    "flip horizontal": _kind(lambda p: Flip(), "", "Left and right exchanged, as in a mirror."),
    "flip vertical": _kind(lambda p: Flip(vertical=True), "", "Top and bottom exchanged, as in water."),
    "rotate 90 clockwise": _kind(lambda p: QuarterTurn(1), "", "A quarter turn to the right; squares only."),
    "rotate 90 counter-clockwise": _kind(
        lambda p: QuarterTurn(3), "", "A quarter turn to the left; squares only."
    ),
    "rotate 180": _kind(lambda p: QuarterTurn(2), "", "Turned upside down."),
    "rotate": _kind(
        lambda p: rotate(p.angle),
        "angle",
        "Turned clockwise by any angle: exact for multiples of 90, blurred and without corners for others.",
    ),
    "negate": _kind(lambda p: Negate(), "", "The negative; only in pixels."),
    "skew": _kind(
        lambda p: Skew(), "", "Each column shifted further down than the one before, around the edge."
    ),
    "patch permutation": _kind(
        lambda p: PatchPermutation(p.rows, p.columns, p.seed),
        "rows columns seed",
        "Rectangular patches that change places at random.",
    ),
    "pixel permutation": _kind(
        lambda p: PixelPermutation(p.seed), "seed", "Every pixel goes to a place of its own at random."
    ),
    "jigsaw": _kind(
        lambda p: Jigsaw(p.seed), "seed", "A puzzle of 4 x 4 pieces that can be put together in a second way."
    ),
    "inner circle": _kind(
        lambda p: InnerCircle(p.size, p.angle),
        "size angle",
        "A disc in the middle turned clockwise by any angle.",
    ),
    "concentric rings": _kind(
        lambda p: ConcentricRings(p.rows, p.size, p.angle),
        "rows size angle",
        "Rings about the middle turned by the angle, every second one the other way.",
    ),
    "square hinge": _kind(
        lambda p: SquareHinge(), "", "3 x 3 squares, hinged at their corners, that turn by a quarter each."
    ),
    "mirror halves": _kind(
        lambda p: MirrorHalves(), "", "The left and the right half, each flipped in place."
    ),
    "scale": _kind(
        lambda p: Scale(p.size),
        "size",
        "Component: the picture times a factor (size); the factors of all together shall be 1, a negative one is NOT.",
    ),
    "low pass": _kind(lambda p: LowPass(p.sigma), "sigma", "Component: what is seen from afar."),
    "high pass": _kind(lambda p: Rest(LowPass(p.sigma)), "sigma", "Component: what is seen from close by."),
    "triple pass low": _kind(
        lambda p: TripleLow(p.sigma), "sigma", "Component: what is seen from afar, of three."
    ),
    "triple pass middle": _kind(
        lambda p: TripleMiddle(p.sigma), "sigma", "Component: what is seen from half way, of three."
    ),
    "triple pass high": _kind(
        lambda p: triple_high(p.sigma), "sigma", "Component: what is seen from close by, of three."
    ),
    "grayscale": _kind(lambda p: Grayscale(), "", "Component: what is seen in dim light, without colour."),
    "colour": _kind(lambda p: Colour(Grayscale()), "", "Component: the colours, seen in bright light."),
    "motion": _kind(
        lambda p: Motion(), "", "Component: what is seen when the picture moves along its diagonal."
    ),
    "motion rest": _kind(
        lambda p: Rest(Motion()), "", "Component: what is seen only while the picture rests."
    ),
    "mask": _kind(lambda p: Mask(p.mask), "mask", "Component: what is within the mask."),
    "mask rest": _kind(lambda p: Rest(Mask(p.mask)), "mask", "Component: what is outside the mask."),
    "rotate 135": _kind(lambda p: Rotation135(), "", "Experimental: turned by 135 degrees."),
    "blur": _kind(lambda p: Blur(p.sigma), "sigma", "Experimental: the picture blurred."),
    "white balance": _kind(lambda p: WhiteBalance(), "", "Experimental: the picture in warmer light."),
}


def make(name: str, parameters: Parameters) -> View:
    """Return the view called `name`; raises ValueError for an unknown name or a parameter out of range."""
    if name not in VIEWS:
        raise ValueError(f"There is no view called '{name}'. Choose one of: {', '.join(VIEWS)}.")
    return VIEWS[name].make(parameters)
