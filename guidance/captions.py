"""Captions under a picture: dark strips with the text in the middle, wrapped so that nothing is cut off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

PAPER, INK = 26, 240  # of 255
SPACING = 1.3  # a line, in heights of the font


def strips(texts: Sequence[str], width: int, font: ImageFont.FreeTypeFont) -> Tensor:
    """Return RGB (N, S, `width`, 3) in [0, 1]: a strip for each text, all as tall as the longest text needs.

    S is even, and 0 if there is no text at all. Letters that `font` lacks are drawn as its empty box.
    """
    wrapped = [wrap(text, width - _margin(font), font) for text in texts]
    lines = max((len(one) for one in wrapped), default=0)
    height = 2 * round((lines * SPACING + 1) * font.size / 2) if lines else 0
    return torch.stack([_strip(one, height, width, font) for one in wrapped])


def wrap(text: str, width: float, font: ImageFont.FreeTypeFont) -> list[str]:
    """Return the lines of `text`, each at most `width` px wide as long as a single letter is."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines += _pieces(word, width, font)
    return lines


def faded(one: Tensor, other: Tensor, t: float) -> Tensor:
    """Return the strip between strips `one` (t = 0) and `other` (t = 1): half way the text has gone to nothing."""
    paper = PAPER / 255
    return paper + abs(1 - 2 * t) * ((one if t < 0.5 else other) - paper)


def _pieces(word: str, width: float, font: ImageFont.FreeTypeFont) -> list[str]:
    """Return `word`, cut where it is wider than `width`."""
    pieces = [word[0]]
    for letter in word[1:]:
        if font.getlength(pieces[-1] + letter) <= width:
            pieces[-1] += letter
        else:
            pieces.append(letter)
    return pieces


def _strip(lines: list[str], height: int, width: int, font: ImageFont.FreeTypeFont) -> Tensor:
    image = Image.new("RGB", (width, height), (PAPER,) * 3)
    draw, step = ImageDraw.Draw(image), SPACING * font.size
    top = height / 2 - (len(lines) - 1) / 2 * step
    for i, line in enumerate(lines):
        draw.text((width / 2, top + i * step), line, (INK,) * 3, font, anchor="mm")
    return torch.from_numpy(np.array(image)).float().div(255).reshape(height, width, 3)


def _margin(font: ImageFont.FreeTypeFont) -> float:
    """Return the px that stay free left and right together."""
    return font.size
