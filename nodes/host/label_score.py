"""How surely a classifier sees each of several labels in each of several pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import comfy.model_management
import torch
from torch import Tensor

from .classifiers import Classifier


def label_score_table(pictures: Iterable[Tensor], labels: Sequence[str], classifier: Classifier) -> Tensor:
    """Return log p (P, T) of T `labels` in P RGB `pictures` (1, 3, H, W) in [0, 1], float32 on the CPU.

    Raises ValueError for a label that the classifier does not know.
    """
    columns = [classifier.index(label) for label in labels]
    return torch.stack([_logarithms(classifier, picture)[columns] for picture in pictures])


@torch.no_grad()
def _logarithms(classifier: Classifier, picture: Tensor) -> Tensor:
    comfy.model_management.throw_exception_if_processing_interrupted()
    with classifier.opened() as network:
        seen = classifier.prepare(picture.float().to(classifier.patcher.load_device))
        return network(seen)[0].log_softmax(0).cpu()
