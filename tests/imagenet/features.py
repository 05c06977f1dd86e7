"""What AlexNet and VGG16 with their real ImageNet weights see in a picture: the outputs of five ReLU layers.

The five layers are those of LPIPS (arXiv 1801.03924), from edges and texture (first) to parts of objects (last).
"""

from __future__ import annotations

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor

from imagenet.weights import weights_file

NAMES = {"alex": "alexnet", "vgg": "vgg16"}
LAYERS = {
    "alex": (1, 4, 7, 9, 11),
    "vgg": (3, 8, 15, 22, 29),
}  # the ReLUs, as indices in torchvision's `features`
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class Features(torch.nn.Module):
    """The convolutions of `net` (`alex` or `vgg`), fixed: RGB (B, 3, H, W) in [0, 1] -> five maps (B, C, h, w)."""

    def __init__(self, net: str = "alex") -> None:
        super().__init__()
        self.layers = LAYERS[net]
        with torch.device("meta"):  # the random weights of torchvision would take seconds
            self.convolutions = torchvision.models.get_model(NAMES[net], weights=None).features
        state = load_file(weights_file(NAMES[net]))
        named = {key.removeprefix("features."): value for key, value in state.items()}
        self.convolutions.load_state_dict(named, assign=True)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the outputs of the five ReLU layers."""
        maps = []
        x = (images - images.new_tensor(MEAN).view(3, 1, 1)) / images.new_tensor(DEVIATION).view(3, 1, 1)
        for index, layer in enumerate(self.convolutions[: self.layers[-1] + 1]):
            x = layer(x)
            if index in self.layers:
                maps.append(x)
        return maps
