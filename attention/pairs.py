"""Two prompts in one condition: its pictures are those of the source prompt first, then as many of the target."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .maps import Call, Condition, Editor, Layer, folded
from .words import Prompt


@dataclass(frozen=True)
class Pair:
    """What a condition of both prompts carries as its words. Its text is as long as a multiple of either's."""

    source: Prompt
    target: Prompt


@dataclass(frozen=True, eq=False)
class Halved:
    """Shows an editor that knows prompts, not pairs, each half of a pair as pictures of a condition of its own."""

    editor: Editor

    def reads(self, layer: Layer, condition: Condition, progress: float) -> bool:
        """Tell whether the editor wants a half."""
        return any(self.editor.reads(layer, part, progress) for part in _parts(condition))

    def edit(self, maps: Tensor, call: Call) -> Tensor:
        """Return `maps` with the halves edited that the editor wants; the same object if nothing changes."""
        parts = _parts(call.condition)
        halves = maps.chunk(len(parts))
        each = [self._edited(half, replace(call, condition=p)) for half, p in zip(halves, parts, strict=True)]
        changed = any(new is not old for new, old in zip(each, halves, strict=True))
        return torch.cat(each) if changed else maps

    def _edited(self, maps: Tensor, call: Call) -> Tensor:
        if not self.editor.reads(call.layer, call.condition, call.progress):
            return maps
        own = folded(maps, call.condition.tokens)
        edited = self.editor.edit(own, call)
        return maps if edited is own else unfolded(edited, maps.shape[-1])


def unfolded(maps: Tensor, tokens: int) -> Tensor:
    """Return `maps` (..., T) as those of a condition that is repeated to `tokens`: what `folded` undoes."""
    repeats = tokens // maps.shape[-1]
    return maps if repeats == 1 else maps.repeat(*[1] * (maps.ndim - 1), repeats) / repeats


def _parts(condition: Condition) -> tuple[Condition, ...]:
    """Return the conditions of the halves; of the whole, if both have the same prompt or it is no pair."""
    pair = condition.prompt
    if not isinstance(pair, Pair):
        return (condition,)
    prompts = dict.fromkeys((pair.source, pair.target))
    return tuple(replace(condition, prompt=prompt, tokens=prompt.length) for prompt in prompts)
