"""Gradient matching: how alike two pictures teach a classifier the same label.

Inverting Gradients (arXiv 2003.14053), Eq. 4, as used for saliency noise by On Conditioning the Input Noise for
Controlled Image Generation with Diffusion Models (arXiv 2205.03859), Eq. 6:
    1 - <g(x), g(x*)> / (|g(x)| |g(x*)|),    g(x) = d L(x, y) / d theta,
L the classifier's cross-entropy and theta its parameters, all of them in one long vector. A cosine sees directions
alone, so L's margin takes its place (see plain_classifier.py): the same value, without underflow.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .plain_classifier import PlainClassifier, Prepare, margin

LAYERS = ("all", "last stages")
LAST = 3  # "last stages": one in so many of the modules that hold parameters


class GradientMatching:
    """Eq. 6 as a function of the picture x."""

    def __init__(
        self, network: nn.Module, prepare: Prepare, reference: Tensor, label: int, layers: str = "all"
    ) -> None:
        """Take the classifier, the reference x* (1, 3, H, W), RGB in [0, 1], and the label y.

        `network`: (B, 3, h, w) -> logits (B, K), in eval mode; it is never changed, `plain_classifier.PlainClassifier`
        says what is copied. `prepare`: RGB -> its input, differentiable. `layers`: whose parameters' gradients are
        compared, one of LAYERS; "last stages" is the last third of the modules that hold parameters, in the order in
        which they are registered. Works under inference mode. Raises ValueError if the network is in train mode, there
        is no such label or choice of layers, or the gradient at the reference is zero or not finite.
        """
        self._classifier, self._label = PlainClassifier(network, prepare), label
        self._parameters = _matched(self._classifier.parameters, layers)
        for parameter in self._parameters:
            parameter.requires_grad_()
        with torch.inference_mode(False):
            gradients = self._gradients(reference.detach().clone())
            norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
            _check_norm(norm.item(), label)
            self._reference = [(gradient / norm).flatten() for gradient in gradients]

    def __call__(self, picture: Tensor) -> Tensor:
        """Return 1 - cosine (1,) in [0, 2] for RGB `picture` (1, 3, H, W), in [0, 1] but not clamped.

        Differentiable, if `picture` is and inference mode is off. 1 where the gradient vanishes.
        """
        gradients = [gradient.flatten() for gradient in self._gradients(picture)]
        pairs = zip(gradients, self._reference, strict=True)
        product = torch.stack([gradient @ reference for gradient, reference in pairs]).sum()
        square = torch.stack([gradient @ gradient for gradient in gradients]).sum()
        length = square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()
        return (1 - product / length).clamp(0, 2).reshape(1)

    def _gradients(self, picture: Tensor) -> list[Tensor]:
        """Return the direction of g(x), one tensor a parameter; those that have no part in the logits get zeros."""
        with torch.enable_grad():
            loss = margin(self._classifier(picture), self._label).sum()
            return list(
                torch.autograd.grad(
                    loss,
                    self._parameters,
                    create_graph=picture.requires_grad,
                    allow_unused=True,
                    materialize_grads=True,
                )
            )


def total_variation(picture: Tensor) -> Tensor:
    """Return mean |difference of neighbours in a row| + the same of columns, (B,), of `picture` (B, C, H, W).

    Anisotropic, as in Inverting Gradients; sides of one pixel count as 0.
    """
    rows, columns = (picture.diff(dim=dim).abs().flatten(1) for dim in (3, 2))
    return rows.sum(1) / max(rows.shape[1], 1) + columns.sum(1) / max(columns.shape[1], 1)


def _matched(parameters: dict[str, Tensor], layers: str) -> list[Tensor]:
    if layers not in LAYERS:
        raise ValueError(f"There is no choice of layers {layers!r}: choose one of {', '.join(LAYERS)}.")
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in parameters))
    kept = modules if layers == "all" else modules[-(-len(modules) * (LAST - 1) // LAST) :]
    return [tensor for name, tensor in parameters.items() if name.rpartition(".")[0] in kept]


def _check_norm(norm: float, label: int) -> None:
    if not 0 < norm < float("inf"):
        raise ValueError(
            f"The classifier's gradient for label {label} at the reference picture is "
            f"{'zero' if norm == 0 else 'not finite'}, so there is nothing to match: choose another reference, label "
            "or classifier."
        )
