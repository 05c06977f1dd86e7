"""A photograph for golden values: the cat Chelsea (public domain, CC0) out of a pinned wheel of scikit-image."""

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
    """Return the photograph (300, 451, 3) uint8."""
    return np.array(Image.open(_file()).convert("RGB"))


def _file() -> Path:
    file = CACHE / "chelsea.png"
    if not file.is_file():
        wheel = fetch("Downloading a photograph (14 MB)", SHA256, WHEEL, *PLATFORM.split())
        with zipfile.ZipFile(wheel) as archive:
            part = file.with_suffix(".part")
            part.write_bytes(archive.read("skimage/data/chelsea.png"))
            part.replace(file)
        shutil.rmtree(wheel.parent)
    return file
