"""Networks of torchvision made from a file: the file decides what they are fit to, and how wide they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import comfy.utils
import torch
import torchvision
from torch import Tensor, nn

# networks that take pictures of any size and give one tensor
FAMILIES = (
    *(
        "alexnet",
        "convnext",
        "densenet",
        "efficientnet",
        "mnasnet",
        "mobilenet",
        "regnet",
        "resnet",
        "resnext",
    ),
    *("shufflenet", "squeezenet", "vgg", "wide_resnet"),
)
ARCHITECTURES = [
    name for name in torchvision.models.list_models(torchvision.models) if name.startswith(FAMILIES)
]
COUNTER = "num_batches_tracked"  # of BatchNorm: of no use in eval mode, so files may leave it out
SHOWN = 3  # names of tensors in a message


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the tensors of `file`, floats as float32, copied: the file may be replaced while they are in use.

    Raises ValueError, one sentence, if it is damaged or holds anything else; no pickle runs.
    """
    try:
        return {
            key: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
            for key, value in comfy.utils.load_torch_file(str(file), safe_load=True).items()
        }
    except Exception as error:  # each format fails in ways of its own
        raise ValueError(
            f"{file.name} is damaged, or no file of weights ({error}). Copy it again; of a network of torchvision "
            "save the state_dict, best as safetensors."
        ) from error


def filled_network(architecture: str, state: Mapping[str, Tensor], file: str) -> nn.Module:
    """Return torchvision's `architecture` with the tensors of `state`, whatever their shapes, fixed, in eval mode.

    Raises ValueError, one sentence about `file`, if names of tensors are missing or left over.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{file} says that it is {architecture!r}, which is no network of torchvision for pictures of any size. "
            "Choose what it is in architecture."
        )
    with torch.device("cpu" if architecture.startswith("regnet") else "meta"):  # RegNet computes its widths
        network = torchvision.models.get_model(architecture, weights=None)
    if architecture.startswith("densenet"):  # torchvision's own files have older names
        state = {re.sub(r"(norm|conv)\.([12])\.", r"\1\2.", key): value for key, value in state.items()}
    wanted = network.state_dict().keys()
    given = {key: torch.tensor(0) for key in wanted if key.endswith(COUNTER)} | dict(state)
    _check_names(architecture, wanted, given, file)
    for key, value in given.items():
        _put(network, key, value)
    return network.eval()


def _check_names(architecture: str, wanted: Collection[str], given: Collection[str], file: str) -> None:
    missing, more = [key for key in wanted if key not in given], [key for key in given if key not in wanted]
    faults = [f"{verb} {_some(names)}" for verb, names in (("lacks", missing), ("has", more)) if names]
    if faults:
        raise ValueError(
            f"{file} is not torchvision's {architecture}: it {' and '.join(faults)}. Choose what it is in "
            "architecture, or another file."
        )


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


def _put(network: nn.Module, key: str, value: Tensor) -> None:
    parent, _, leaf = key.rpartition(".")
    module = network.get_submodule(parent)
    is_buffer = leaf in dict(module.named_buffers(recurse=False))
    setattr(module, leaf, value if is_buffer else nn.Parameter(value, requires_grad=False))
