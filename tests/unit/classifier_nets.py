"""Small classifiers of pictures for the tests of gradient matching and what goes with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MEAN, DEVIATION = 0.45, 0.25


def prepare(pictures: Tensor) -> Tensor:
    """Return `pictures` (B, 3, H, W) as the networks take them."""
    return (pictures - MEAN) / DEVIATION


def picture(side: int = 12, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a random RGB picture (1, 3, side, side) in [0, 1]."""
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def settled(network: nn.Module, seed: int = 0) -> nn.Module:
    """Return `network` in eval mode, its BatchNorm with statistics as if it had been trained."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor, low, high in (
                    (module.running_mean, -0.3, 0.3),
                    (module.running_var, 0.5, 2.0),
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.3, 0.3),
                ):
                    tensor.uniform_(low, high, generator=random)
    return network.eval()


def smooth_net(labels: int = 5, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """Return a network of a few hundred parameters that is smooth in its input and its parameters."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, labels),
    )
    return settled(network, seed).to(dtype)
