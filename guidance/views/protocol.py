"""What a view is: a second way to look at a picture, which a diffusion model can be asked to make sense of as well.

Visual Anagrams (arXiv 2311.17919): v(x) must be linear and orthogonal, so that noise seen through it stays N(0, I).
Factorized Diffusion (arXiv 2404.11615): components f_i with sum_i f_i(x) = x take the place of the inverse views.
Every size in a view is a share of the picture's, so that one view serves a latent and the picture it decodes to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor


class View:
    """A way to look at pictures or latents (B, C, H, W); immutable, and the same whatever tensor it meets.

    `view(x)` is what the reader of this view sees, and `inverse(x)` leads back: (B, C, H, W) both, for autograd too.
    """

    orthogonal: ClassVar[bool] = True
    """Whether inner products are kept; without that noise does not stay noise."""
    exact: ClassVar[bool] = True
    """Whether inverse(view(x)) is x, to the bit."""
    component: ClassVar[bool] = False
    """Whether it is a part of a sum: `view` is then the identity and `inverse` the filter f_i."""
    experimental: ClassVar[str] = ""
    """Why it does not make good anagrams, if it is there to teach that; else empty."""

    def check(self, height: int, width: int) -> None:
        """Raise ValueError, with what to do, if the view does not fit tensors of this size."""

    def in_latents(self, height: int, width: int) -> bool:
        """Tell whether a latent of this size can be looked at in its place: only whole cells move, uncut."""
        raise NotImplementedError

    def view(self, x: Tensor) -> Tensor:
        """Return what this view shows of `x`."""
        raise NotImplementedError

    def inverse(self, x: Tensor) -> Tensor:
        """Return `x`, seen through this view, as it is without; of a component: its share of `x`."""
        raise NotImplementedError

    def reading(self, image: Tensor) -> Tensor:
        """Return RGB (B, 3, H, W) in [0, 1] as the reader sees it: `view`, or the component made visible."""
        return self.view(image)

    def frame(self, image: Tensor, t: float) -> Tensor:
        """Return RGB (B, 3, H', W') between `image` (t = 0) and its reading (t = 1), the size the same for all t."""
        raise NotImplementedError


@dataclass(frozen=True)
class Reading:
    """One link of a chain of views: what shall be seen there."""

    view: View
    positive: Any = None
    """The prompt (host's CONDITIONING); None where only pictures are looked at."""
    negative: Any = None
    """Its own negative prompt; None: the guider's."""
    weight: float = 1.0
    reference: Tensor | None = None
    """A real picture, RGB (B, 3, H, W) in [0, 1], that fixes this component; then there is no prompt."""
    title: str = ""
    """What captions call it."""


Views = tuple[Reading, ...]
