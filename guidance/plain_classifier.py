"""A classifier as a plain function of its picture and its parameters, whatever mode its weights were made in.

The loss is the cross-entropy -log softmax(z)_y of logits z and label y, written as softplus(m) of the margin
    m = log sum_{j != y} exp(z_j) - z_y.
d softplus(m) = sigmoid(m) dm: gradients of the loss and of m differ by a positive number alone. Where only a
gradient's direction counts, m stands for the loss; it does not underflow when the classifier is certain of its label.

The logits are twice differentiable: torch knows no second derivative of hardsigmoid, of which MobileNetV3 is made, but
does of the same function written as ReLU6(x + 3) / 6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import hardsigmoid, relu6
from torch.overrides import TorchFunctionMode

Prepare = Callable[[Tensor], Tensor]
"""RGB (B, 3, H, W) in [0, 1] -> the network's input, differentiable."""


class PlainClassifier:
    """Pictures -> logits, with own copies of a network's weights; the network itself is never changed."""

    def __init__(self, network: nn.Module, prepare: Prepare) -> None:
        """Take an eval-mode `network`: (B, 3, h, w) -> logits (B, K); its tensors may be inference tensors.

        The copies lie on its device, in float32, or in float64 if its parameters are float64. Raises ValueError if a
        part of the network is in train mode.
        """
        _check_evaluates(network)
        self._network, self._prepare = network, prepare
        self.dtype = _precision(network)
        with torch.inference_mode(False), torch.no_grad():
            self.parameters = {name: self._copy(tensor) for name, tensor in network.named_parameters()}
            self._buffers = {name: self._copy(tensor) for name, tensor in network.named_buffers()}

    def __call__(self, picture: Tensor) -> Tensor:
        """Return logits (B, K) of RGB `picture` (B, 3, H, W); outside of inference mode, if gradients are wanted."""
        tensors = {**self.parameters, **self._buffers}
        prepared = self._prepare(picture.to(self.dtype))
        with _TwiceDifferentiable():
            return functional_call(self._network, tensors, (prepared,))

    def _copy(self, tensor: Tensor) -> Tensor:
        copied = tensor.detach().clone()
        return copied.to(self.dtype) if copied.is_floating_point() else copied


class _TwiceDifferentiable(TorchFunctionMode):
    """While it is on, hardsigmoid is computed as ReLU6(x + 3) / 6."""

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is hardsigmoid:
            return relu6(args[0] + 3) / 6
        return function(*args, **(kwargs or {}))


def margin(logits: Tensor, label: int) -> Tensor:
    """Return m (B,) of `logits` (B, K): by how much the other labels together outdo `label`.

    softplus of it is the cross-entropy. Raises ValueError if there is no such label, or no other.
    """
    count = logits.shape[1]
    if not 0 <= label < count:
        raise ValueError(
            f"The classifier has no label {label}: it knows {count}, numbered 0 to {count - 1}. Choose one of them."
        )
    if count == 1:
        raise ValueError(
            "The classifier knows a single label, so nothing speaks against it: choose a classifier with more."
        )
    others = torch.cat((logits[:, :label], logits[:, label + 1 :]), 1)
    return others.logsumexp(1) - logits[:, label]


def _precision(network: nn.Module) -> torch.dtype:
    double = any(parameter.dtype == torch.float64 for parameter in network.parameters())
    return torch.float64 if double else torch.float32


def _check_evaluates(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if module.training:
            part = f"its layer {name} ({type(module).__name__})" if name else "the whole network"
            raise ValueError(
                f"The classifier is in train mode ({part}), in which BatchNorm and Dropout change what it sees: call "
                "eval() on it first."
            )
