"""Photographs for golden values and benchmarks, out of a pinned wheel of scikit-image (public domain, CC0)."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from imagenet.weights import CACHE, fetch

WHEEL = "scikit-image==0.26.0"
SHA256 = "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af"
# one and the same wheel on every computer, since only a picture is read from it
PLATFORM = "--only-binary :all: --platform manylinux_2_28_x86_64 --python-version 3.11 --implementation cp --abi cp311"


def chelsea() -> np.ndarray:
    """Return the photograph of the cat Chelsea, (300, 451, 3) uint8."""
    return _pixels("chelsea.png")


def coffee() -> np.ndarray:
    """Return the photograph of a cup of coffee, (400, 600, 3) uint8."""
    return _pixels("coffee.png")


def _pixels(name: str) -> np.ndarray:
    return np.array(Image.open(_file(name)).convert("RGB"))


def _file(name: str) -> Path:
    file = CACHE / name
    if not file.is_file():
        wheel = fetch("Downloading a photograph (14 MB)", SHA256, WHEEL, *PLATFORM.split())
        with zipfile.ZipFile(wheel) as archive:
            part = wheel.parent / name
            part.write_bytes(archive.read(f"skimage/data/{name}"))
            part.replace(file)
        shutil.rmtree(wheel.parent)
    return file
