"""Scale: the picture times a factor, as a component (Factorized Diffusion, arXiv 2404.11615).

With factors that sum to 1, each with its prompt, the sum is Composable Diffusion (arXiv 2206.01714): w and 1 - w mix
two prompts, and 1 + w with -w is a negative prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from torch import Tensor

from .component import Component


@dataclass(frozen=True)
class Scale(Component):
    """f(x) = factor * x."""

    factor: float = 0.5

    def __post_init__(self) -> None:
        if not isfinite(self.factor) or self.factor == 0:
            raise ValueError(
                f"The size of 'scale' is the factor of this component, but it is {self.factor}. Choose a number "
                "other than 0; below 0 it says what not to show."
            )

    def part(self, x: Tensor) -> Tensor:
        """Return `factor` times `x` (B, C, H, W)."""
        return self.factor * x

    def reading(self, image: Tensor) -> Tensor:
        """Return `image` (B, 3, H, W): all components of this family are in the whole picture."""
        return image
