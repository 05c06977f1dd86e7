"""Prompt-to-prompt: the target picture takes attention maps of the source picture that is sampled beside it.

Prompt-to-Prompt (arXiv 2208.01626). Pictures of a condition are sources first, then as many targets.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .alignment import refinement, replacement
from .maps import Call, Condition, Layer, folded
from .pairs import Pair, unfolded
from .words import Prompt

REPLACE, REFINE, REWEIGHT = "replace", "refine", "reweight"
KINDS = (REPLACE, REFINE, REWEIGHT)
LARGEST_SHARED = 32 * 32  # positions: larger self-attention maps are details, which the words change as well
Range = tuple[float, float]


@dataclass(frozen=True)
class Edit:
    """One edit of the target's maps.

    `replace`: its words take the maps of those they stand for; `refine`: words that both prompts have take the
    source's; `reweight`: its words are multiplied by `amount` (below 0: pushed away), with no renormalisation.
    """

    kind: str
    words: str = ""
    """Words of the target prompt, parted by commas; nothing: all."""
    amount: float = 1.0
    cross: Range = (0.0, 0.8)
    """When cross-attention is edited (progress, 0 to 1)."""
    own: Range = (0.0, 0.4)
    """When self-attention is the source's; start = end: never."""

    def tokens(self, target: Prompt) -> Tensor:
        """Return which tokens it is about: (T,), bool."""
        chosen = torch.zeros(target.length, dtype=torch.bool)
        chosen[list(target.find_all(self.words)) if self.words.strip() else slice(None)] = True
        return chosen


@dataclass(frozen=True, eq=False)
class PromptToPrompt:
    """Editor and Sharer of a pair of prompts. Raises ValueError for words that the target has not.

    Where two edits take maps for the same word, the later one decides how and when; then all reweights act.
    """

    pair: Pair
    edits: tuple[Edit, ...]
    _taken: list[tuple[Edit, Tensor, Tensor]] = field(init=False, repr=False)
    _scaled: list[tuple[Edit, Tensor]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Look the words up and align the prompts."""
        tokens = [(edit, edit.tokens(self.pair.target)) for edit in self.edits]
        scaled = [(edit, chosen) for edit, chosen in tokens if edit.kind == REWEIGHT]
        taking = [(edit, chosen) for edit, chosen in tokens if edit.kind != REWEIGHT]
        if not taking:  # to reweight alone means: the source's maps, louder or quieter
            taking = [(edit, torch.ones_like(chosen)) for edit, chosen in scaled]
        object.__setattr__(self, "_scaled", scaled)
        object.__setattr__(self, "_taken", self._ruled(taking))

    def _ruled(self, taking: list[tuple[Edit, Tensor]]) -> list[tuple[Edit, Tensor, Tensor]]:
        """Return (edit, its tokens, its matrix), a token only in the last edit that names it."""
        found = []
        free = torch.ones(self.pair.target.length, dtype=torch.bool)
        for edit, chosen in reversed(taking):
            matrix = (replacement if edit.kind == REPLACE else refinement)(self.pair.source, self.pair.target)
            found.append((edit, chosen & free & (matrix.sum(0) > 0), matrix))
            if edit.kind != REWEIGHT:
                free = free & ~chosen
        return found

    def reads(self, layer: Layer, condition: Condition, progress: float) -> bool:
        """Tell whether the condition is of the pair and an edit is on."""
        return condition.prompt == self.pair and any(_within(edit.cross, progress) for edit in self.edits)

    def edit(self, maps: Tensor, call: Call) -> Tensor:
        """Return `maps` (2 B, heads, N, T) with those of the targets edited."""
        sources, targets = maps.chunk(2)
        own = folded(sources, self.pair.source.length), folded(targets, self.pair.target.length)
        return torch.cat([sources, unfolded(self.edited(*own, call.progress), maps.shape[-1])])

    def edited(self, source: Tensor, target: Tensor, progress: float) -> Tensor:
        """Return `target` (B, heads, N, T) after all edits that are on; `source` has the source's tokens."""
        for edit, tokens, matrix in self._taken:
            if _within(edit.cross, progress):
                target = torch.where(tokens.to(target.device), source @ matrix.to(source), target)
        for edit, tokens in self._scaled:
            if _within(edit.cross, progress):
                target = torch.where(tokens.to(target.device), edit.amount * target, target)
        return target

    def sources(
        self, layer: Layer, grid: tuple[int, int], condition: Condition, progress: float, pictures: int
    ) -> list[int] | None:
        """Return the sources' numbers twice while self-attention is the source's."""
        if condition.kind != 0 or grid[0] * grid[1] > LARGEST_SHARED:
            return None
        if not any(_within(edit.own, progress) for edit in self.edits):
            return None
        return [*range(pictures // 2)] * 2


def _within(limits: Range, progress: float) -> bool:
    return limits[0] <= progress <= limits[1] and limits[0] < limits[1]
