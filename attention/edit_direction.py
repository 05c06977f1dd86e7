"""The direction in text space from one thing to another, as the difference of mean embeddings.

Zero-shot Image-to-Image Translation (pix2pix-zero, arXiv 2302.03027): encode many sentences that name the source and
many that name the target; the direction is mean(target) - mean(source), token by token, and is added to the condition.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SLOT = "{}"


def sentences(lines: str, template: str, name: str) -> list[str]:
    """Return each line of `lines` in each line of `template`, or the lines themselves if the template is empty.

    `name` is what errors call the lines. Raises ValueError if there are no lines, or for a template line without {}.
    """
    found, templates = _lines(lines), _lines(template) or [SLOT]
    if not found:
        raise ValueError(f"{name} is empty. Write one word or sentence a line, for example a cat.")
    for line in templates:
        if SLOT not in line:
            raise ValueError(
                f"The template line {line!r} has no {SLOT}, so it would be the same for source and target. Write "
                f"{SLOT} where the words go, for example a photo of {SLOT}; or empty the template and write whole "
                "sentences."
            )
    return [line.replace(SLOT, words) for words in found for line in templates]


def of_length(embedding: Tensor, tokens: int) -> Tensor:
    """Return `embedding` (B, T, D) as (B, tokens, D): its chunks again and again, as the host repeats conditions."""
    return embedding[:, torch.arange(tokens, device=embedding.device) % embedding.shape[1]]


def mean_embedding(embeddings: Sequence[Tensor]) -> Tensor:
    """Return the mean (1, T, D) of embeddings (1, T_i, D), in float32; shorter ones repeat up to the longest."""
    longest = max(e.shape[1] for e in embeddings)
    return torch.stack([of_length(e.float(), longest) for e in embeddings]).mean(0)


def direction(source: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Return mean(target) - mean(source) of embeddings (1, T_i, D): (1, T, D) of the longest, float32."""
    means = mean_embedding(source), mean_embedding(target)
    longest = max(m.shape[1] for m in means)
    before, after = (of_length(m, longest) for m in means)
    return after - before


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
