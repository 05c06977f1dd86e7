"""Image classifiers as the host manages them: what a picture shows, and the network for gradients of that.

A network of torchvision with its labels and with how it wants to see pictures. classifier_card.py reads what its file
says about it, classifier_weights.py makes the network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
import torchvision
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize

from . import gradients
from .classifier_card import Card, read_card
from .classifier_weights import filled_network, read_weights
from .downloads import downloaded

BYTES = (
    1200  # per px that the network sees, forwards: half as much again as VGG16, the largest, takes on a CPU
)
IMAGENET_LABELS = tuple(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
TRIAL = 64  # px: all of the architectures see pictures as small as this


@dataclass(frozen=True)
class Classifier:
    """A fixed network in eval mode, float32, that names what is in a picture; what a CLASSIFIER socket carries."""

    patcher: Any
    """The host's ModelPatcher over the network: (B, 3, h, w) -> logits (B, len(labels))."""
    name: str
    labels: tuple[str, ...]
    """No two are the same."""
    size: int
    """How many px the shorter side has when the network sees a picture."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def prepare(self, pictures: Tensor) -> Tensor:
        """Return what the network sees of RGB `pictures` (B, 3, H, W) in [0, 1]: (B, 3, h, w), min(h, w) = `size`.

        The whole picture: scaled (bilinear, antialiased), its aspect kept, nothing cropped. Differentiable.
        """
        scaled = resize(pictures, [self.size], antialias=True)
        mean, std = (scaled.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (scaled - mean) / std

    def index(self, label: str) -> int:
        """Return the number of `label`, a name (case, spaces and underscores do not matter) or a number.

        Digits are a number unless a label is called so. Of names that differ in nothing else (ImageNet's Cardigan is
        a dog, its cardigan is not) it is the one that is written in the same way, or the first. Raises ValueError,
        which offers the nearest names.
        """
        wanted, names = _plain(label), [_plain(name) for name in self.labels]
        if label in self.labels:
            return self.labels.index(label)
        if wanted in names:
            return names.index(wanted)
        if wanted.isdecimal() and int(wanted) < len(self.labels):
            return int(wanted)
        near = ", ".join(map(repr, self._near(label)))
        offer = f"The nearest are {near}. " if near else ""
        raise ValueError(
            f"The classifier {self.name} has no label {label!r}. {offer}Write one of its {len(self.labels)} labels, "
            f"which Load Classifier shows, or a number from 0 to {len(self.labels) - 1}."
        )

    def predicted(self, pictures: Tensor, count: int = 1) -> list[list[tuple[str, float]]]:
        """Return for each of RGB `pictures` (B, 3, H, W) in [0, 1] its `count` likeliest labels, the best first.

        Each with its probability in [0, 1]. Fewer than `count` if the classifier has no more labels.
        """
        return [self._best(picture, count) for picture in pictures.split(1)]

    @contextmanager
    def opened(self, memory: float | None = None) -> Iterator[nn.Module]:
        """Yield the network on its device, for work that takes `memory` bytes beside its weights.

        By default what one picture of twice as much width as height takes, forwards. The weights may be inference
        tensors: take gradients through `gradients.differentiable()`, or of copies.
        """
        needed = 2 * BYTES * self.size**2 if memory is None else memory
        gradients.load([self.patcher], needed, whole=True)  # its layers are not the host's own
        yield self.patcher.model

    def _near(self, label: str) -> list[str]:
        """Return five labels at most: those that share a word with `label`, then those that look like it."""
        sharing = [name for name in self.labels if _words(name) & _words(label)]
        names = {_plain(name): name for name in self.labels}
        alike = [names[name] for name in get_close_matches(_plain(label), names, cutoff=0.5)]
        return list(dict.fromkeys(sharing + alike))[:5]

    def _best(self, picture: Tensor, count: int) -> list[tuple[str, float]]:
        comfy.model_management.throw_exception_if_processing_interrupted()
        seen = self.prepare(picture.float())
        with self.opened(BYTES * seen.shape[-2] * seen.shape[-1]) as network, torch.no_grad():
            chances = network(seen.to(self.patcher.load_device))[0].softmax(0)
        best = chances.topk(min(count, len(self.labels)))
        return [(self.labels[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]


def load_classifier(file: Path | None, architecture: str | None) -> Classifier:
    """Return the classifier in `file` (safetensors, or .pth and .pt of torchvision), on the CPU until it is opened.

    `architecture` is the name of a network of torchvision, or None for the one that the metadata of the file names.
    Without a `file`, torchvision's own weights of `architecture`, downloaded if needed. Sizes and the number of
    labels are those of the tensors. Raises ValueError, one sentence, for whatever is wrong with the file.
    """
    name = architecture if file is None else file.stem
    file = _pretrained(architecture) if file is None else file
    card = read_card(file)
    architecture = architecture or card.architecture
    if not architecture:
        raise ValueError(f"{file.name} does not say what network it holds: choose it in architecture.")
    network = filled_network(architecture, read_weights(file), file.name)
    labels = _labels(card, _outputs(network, min(TRIAL, card.size), architecture, file.name), file.name)
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.vae_offload_device()
    patcher = comfy.model_patcher.ModelPatcher(network, device, offload)
    return Classifier(patcher, str(name), labels, card.size, card.mean, card.std)


def _pretrained(architecture: str | None) -> Path:
    weights = torchvision.models.get_model_weights(str(architecture)).IMAGENET1K_V1
    return downloaded(
        weights.url,
        f"torchvision's {architecture}",
        "Go online and run again, or put that file into the folder models/classifiers of ComfyUI and choose it there.",
    )


@torch.no_grad()
def _outputs(network: nn.Module, size: int, architecture: str, file: str) -> int:
    """Return how many numbers the network gives for a grey picture of `size` px, or say that it does not work."""
    try:
        logits = network(torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{file} does not work as {architecture} on a picture of {size} px ({str(error).splitlines()[0]}). Choose "
            "another architecture, or another file."
        ) from error
    if logits.ndim != 2 or not logits.isfinite().all():
        raise ValueError(
            f"{file} gives no finite numbers as {architecture}: it is damaged. Save it again, in float32."
        )
    return logits.shape[1]


def _labels(card: Card, count: int, file: str) -> tuple[str, ...]:
    """Return `count` labels: those of the file, or ImageNet's, or numbers."""
    if card.labels is None:
        return IMAGENET_LABELS if count == len(IMAGENET_LABELS) else tuple(map(str, range(count)))
    if len(card.labels) != count:
        raise ValueError(
            f"The metadata of {file} has {len(card.labels)} labels for a network that tells {count} apart: write "
            "one for each, in the order of its outputs."
        )
    return card.labels


def _plain(label: str) -> str:
    return re.sub(r"[\s_]+", "", label.casefold())


def _words(label: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", label.casefold()))
