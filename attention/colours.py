"""Regions of one painted picture, by colour."""

from __future__ import annotations

import torch
from kornia.color import rgb_to_lab
from PIL import ImageColor
from torch import Tensor

UNNOTICED = 0.01  # share of the picture: brush edges mix colours, which nobody needs to hear about
LEVELS = 8  # colours that are left over are told in steps of 32 of 255

Colour = tuple[int, int, int]


def parsed_table(table: str) -> list[tuple[Colour, str]]:
    """Return [((r, g, b), words)] of lines like `red: fox` or `#3366ff: a lake`.

    Raises ValueError for a line without a colon, an unknown colour, or an empty table.
    """
    found = []
    for number, line in enumerate(table.splitlines(), 1):
        if not line.strip():
            continue
        name, colon, words = line.partition(":")
        if not colon:
            raise ValueError(
                f"Line {number} of the table, {line.strip()!r}, has no colon. Write a colour, a colon and words, for "
                "example red: fox"
            )
        try:
            colour = ImageColor.getrgb(name.strip())[:3]
        except ValueError:
            raise ValueError(
                f"Line {number} of the table: {name.strip()!r} is no colour. Write a CSS name such as orange, or "
                "#rrggbb with six digits."
            ) from None
        found.append((colour, words.strip()))
    if not found:
        raise ValueError("The table is empty. Write one line for each colour, for example red: fox")
    return found


def colour_regions(
    painting: Tensor, colours: list[tuple[Colour, str]], tolerance: float
) -> tuple[list[Tensor], str]:
    """Return one mask (B, 1, H, W) of zeros and ones for each colour, and a sentence about what is left over, or "".

    A pixel of `painting` (B, 3, H, W) in [0, 1] belongs to the nearest colour, if that is within `tolerance` (CIE76
    distance in Lab). Raises ValueError for a colour that is nowhere in the painting.
    """
    wanted = torch.tensor([colour for colour, _ in colours], dtype=torch.float32) / 255
    lab = rgb_to_lab(painting.float().cpu().clamp(0, 1))
    goals = rgb_to_lab(wanted[:, :, None, None])[None]  # 1, K, 3, 1, 1
    distances = torch.stack([(lab - goals[:, k]).norm(dim=1) for k in range(len(colours))], 1)
    nearest = distances.min(1)
    owner = torch.where(nearest.values <= tolerance, nearest.indices, -1)
    masks = [(owner == k).float()[:, None] for k in range(len(colours))]
    left = _named(painting, owner == -1)
    for (colour, words), mask in zip(colours, masks, strict=True):
        if words and not bool(mask.any()):
            raise ValueError(
                f"The colour {_hex(colour)} of the table ({words}) is nowhere in the painting within a tolerance of "
                f"{tolerance:g}. {left or 'All of it is covered by other lines.'} Correct the line, or raise tolerance."
            )
    return masks, left


def _named(painting: Tensor, left: Tensor) -> str:
    """Return the sentence about the pixels `left` (B, H, W)."""
    pixels = painting.movedim(1, -1)[left.to(painting.device)].cpu()
    total = left.numel()
    coarse = (pixels * (LEVELS - 1)).round().clamp(0, LEVELS - 1).to(torch.int64)
    _, owners, counts = coarse.unique(dim=0, return_inverse=True, return_counts=True)
    told = []
    for kind in counts.argsort(descending=True).tolist():
        if counts[kind] / total >= UNNOTICED:
            mean = (pixels[owners == kind].mean(0) * 255).round().int().tolist()
            told.append(f"{_hex(mean)} ({100 * counts[kind] / total:.0f} %)")
    return f"Colours of the painting that no line of the table names: {', '.join(told)}." if told else ""


def _hex(colour: Colour | list[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
