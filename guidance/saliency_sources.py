"""Where a classifier looks, without an inversion: its last feature map, Grad-CAM and the sign of a gradient.

Paying More Attention to Attention (arXiv 1612.03928), Eq. 1-2: the mean over channels of squared features.
Grad-CAM (arXiv 1610.02391), Eq. 1-2: ReLU(sum_k a_k A^k), a_k = mean over places of d z_y / d A^k.
Explaining and Harnessing Adversarial Examples (arXiv 1412.6572), the fast gradient sign method: sign(d L / d x).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .plain_classifier import PlainClassifier, Prepare, margin


def feature_map(network: nn.Module, prepare: Prepare, reference: Tensor) -> Tensor:
    """Return the mean over channels of the squared last feature map, (1, 1, h, w) float32, of RGB (1, 3, H, W).

    The last map is the last output (1, K, h, w) with more than one place that a module of `network` gives. Raises
    ValueError if there is none.
    """
    with torch.inference_mode(False), torch.no_grad():
        features, _ = _features(network, prepare, reference.detach().clone())
        return features.square().mean(1, keepdim=True).float()


def saliency(network: nn.Module, prepare: Prepare, reference: Tensor, label: int) -> Tensor:
    """Return Grad-CAM of `label` on the last feature map of RGB `reference` (1, 3, H, W): (1, 1, H, W) in [0, 1].

    Bilinear to the size of the picture; its largest value is 1, or all are 0 where nothing speaks for the label.
    Raises ValueError as `feature_map` does, and if there is no such label.
    """
    with torch.inference_mode(False), torch.enable_grad():
        features, logits = _features(network, prepare, reference.detach().clone().requires_grad_())
        margin(logits, label)  # checks the label
        (gradient,) = torch.autograd.grad(logits[0, label], features)
        seen = (gradient.mean((2, 3), keepdim=True) * features.detach()).sum(1, keepdim=True).relu().float()
    scaled = interpolate(seen, size=tuple(reference.shape[-2:]), mode="bilinear", align_corners=False)
    return scaled / scaled.amax().clamp_min(torch.finfo(torch.float32).tiny)


def sign_gradient(
    network: nn.Module, prepare: Prepare, render: Callable[[Tensor], Tensor], latent: Tensor, label: int
) -> Tensor:
    """Return the sign (-1, 0 or 1) of d L / d `latent` at `render(latent)`, RGB: shape and dtype of `latent`.

    L is the cross-entropy to `label`: to go this way makes the picture less like it. Raises ValueError if there is no
    such label.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf, classifier = latent.detach().clone().requires_grad_(), PlainClassifier(network, prepare)
        (gradient,) = torch.autograd.grad(margin(classifier(render(leaf)), label).sum(), leaf)
        return gradient.sign()


def _features(network: nn.Module, prepare: Prepare, picture: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last feature map (1, K, h, w) with more than one place, and the logits (1, K)."""
    with _watched(network) as maps:
        logits = PlainClassifier(network, prepare)(picture)
    if not maps:
        raise ValueError(
            "The classifier has no feature map with more than one place, so it does not show where it looks: choose a "
            "convolutional network, such as a ResNet, or a larger picture."
        )
    return maps[-1], logits


@contextmanager
def _watched(network: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list whose one entry becomes the last feature map while the network runs."""
    maps: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            maps[:] = [output]

    handles = [module.register_forward_hook(keep) for module in network.modules()]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
