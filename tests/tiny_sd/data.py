"""The training set: scenes drawn once into one array, with their captions. Held-out scenes have other seeds."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from tiny_sd.world import draw, make_spec

HELD_OUT = 10_000_000  # scenes with seeds from here on are never trained on


def _one(seed: int) -> tuple[np.ndarray, str, bool]:
    scene = draw(make_spec(seed))
    return scene.image, scene.spec.caption, len(scene.spec.things) == 2


def scenes(count: int, cache: Path) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Return `count` training scenes: images (N, 128, 128, 3) uint8, captions, and which show two objects."""
    images_file, words_file = cache / f"scenes{count}.npy", cache / f"scenes{count}.json"
    if not words_file.exists():
        with ProcessPoolExecutor() as pool:
            drawn = list(pool.map(_one, range(count), chunksize=200))
        cache.mkdir(parents=True, exist_ok=True)
        np.save(images_file, np.stack([image for image, _, _ in drawn]))
        words_file.write_text(json.dumps([[caption, two] for _, caption, two in drawn]))
    words = json.loads(words_file.read_text())
    return (
        np.load(images_file, mmap_mode="r"),
        [caption for caption, _ in words],
        np.array([two for _, two in words]),
    )
