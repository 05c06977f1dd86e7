"""What a safetensors file says about the classifier in it: its metadata, all of it optional.

`architecture` (a name in torchvision), `labels` (a JSON list of strings), `size` (px of the shorter side), `mean` and
`std` (JSON lists of three numbers, for RGB in [0, 1]). What is left out is as for ImageNet.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors

SIZE, MEAN, STD = 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
SMALLEST, LARGEST = 16, 2048  # px


@dataclass(frozen=True)
class Card:
    """What a file says about its classifier."""

    architecture: str | None = None
    labels: tuple[str, ...] | None = None
    size: int = SIZE
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD


def read_card(file: Path) -> Card:
    """Return the card of `file`, without reading its tensors; raises ValueError, one sentence, if it is malformed."""
    if file.suffix.lower() != ".safetensors":
        return Card()
    try:
        with safetensors.safe_open(str(file), framework="pt", device="cpu") as stored:
            metadata = stored.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"{file.name} is damaged, or no safetensors file ({error}). Copy it again."
        ) from error
    return Card(**{key: _read(key, metadata[key], file.name) for key in FIELDS if key in metadata})


def _read(key: str, text: str, file: str) -> Any:
    reader, meaning = FIELDS[key]
    try:
        return reader(text)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"The metadata of {file} is wrong: {key} must be {meaning}, not {text[:40]!r}. Save the file again."
        ) from error


def _labels(text: str) -> tuple[str, ...]:
    labels = json.loads(text)
    if not isinstance(labels, list) or not all(isinstance(label, str) and label.strip() for label in labels):
        raise ValueError
    return _distinct(labels)


def _distinct(labels: Sequence[str]) -> tuple[str, ...]:
    """Return `labels`, with its number behind one that came before: many lists have two cranes, bird and machine."""
    times = Counter[str]()
    found = []
    for number, label in enumerate(labels):
        found.append(f"{label} ({number})" if times[label] else label)
        times[label] += 1
    return tuple(found)


def _size(text: str) -> int:
    if not SMALLEST <= int(text) <= LARGEST:
        raise ValueError
    return int(text)


def _three(text: str) -> tuple[float, ...]:
    values = tuple(float(value) for value in json.loads(text))
    if len(values) != 3 or not all(map(math.isfinite, values)):
        raise ValueError
    return values


def _above_zero(text: str) -> tuple[float, ...]:
    values = _three(text)
    if min(values) <= 0:
        raise ValueError
    return values


FIELDS = {
    "architecture": (str, "the name of a network of torchvision"),
    "labels": (_labels, "a JSON list of strings, none of them empty"),
    "size": (_size, f"a whole number of px from {SMALLEST} to {LARGEST}"),
    "mean": (_three, "a JSON list of three numbers"),
    "std": (_above_zero, "a JSON list of three numbers above 0"),
}
