"""LPIPS as a network that the host manages: how different two pictures look, per picture, differentiable.

The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (arXiv 1801.03924):
d(a, b) = sum over layers l of mean over pixels of w_l . (f_l(a) - f_l(b))^2, f_l: unit features of an ImageNet network.

The weights w_l come with the package `lpips`. Those of the ImageNet network are a file in `models/lpips` of ComfyUI
(`alexnet`, `vgg16` or `squeezenet1_1`, .safetensors or .pth, named as in torchvision), or else torchvision's own
download, which starts when a node runs that needs it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch
import torchvision
from torch import Tensor

from . import gradients
from .downloads import downloaded

# names in torchvision
BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
FOLDER, ENDINGS = "lpips", (".safetensors", ".pth", ".pt")
SMALLEST = 32  # px: below that AlexNet's last layer has no pixel left
# per px of both pictures, forwards, and backwards to the first: half as much again as was measured on a CPU
BYTES = {"alex": 250, "vgg": 3000, "squeeze": 900}


class _Lpips:
    """The loaded network; `open_lpips` makes and closes it."""

    def __init__(self, net: str) -> None:
        network, device = _network(net), comfy.model_management.get_torch_device()
        offload = comfy.model_management.vae_offload_device()
        self._patcher = comfy.model_patcher.ModelPatcher(network, device, offload)
        self._bytes, self._room = BYTES[net], 0.0

    def close(self) -> None:
        """Let go of the network; it is freed with it."""
        del self._patcher

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        _check_sizes(first, second)
        self._load(self._bytes * (first.shape[0] + second.shape[0]) * first.shape[-2] * first.shape[-1])
        device = self._patcher.load_device
        with gradients.differentiable():
            pair = (picture.to(device, torch.float32) for picture in (first, second))
            return self._patcher.model(*pair, normalize=True).reshape(-1).to(first.device)

    def _load(self, needed: float) -> None:
        if needed > self._room or not gradients.is_loaded(self._patcher):
            gradients.load([self._patcher], needed, whole=True)  # its layers are not the host's own
            self._room = needed


def check_lpips(net: str) -> None:
    """Raise ValueError unless LPIPS with `net` (`alex`, `vgg` or `squeeze`) can run; call it before the work begins.

    Downloads the ImageNet network if it is not on this computer, so that a missing file or connection shows at once.
    """
    if net not in BACKBONES:
        raise ValueError(f"There is no LPIPS network {net!r}. Choose one of {', '.join(BACKBONES)}.")
    _heads_file(net)
    _backbone_file(net)


@contextmanager
def open_lpips(net: str) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
    """Yield the distance d(first, second): RGB (B, 3, H, W) in [0, 1], at least 32 px a side -> (B,), float32.

    Differentiable, also inside inference mode; on the device of `first`; one of the two may be a single picture.
    The network is loaded when first called and freed when the block ends. Raises ValueError as `check_lpips` does.
    """
    check_lpips(net)
    distance = _Lpips(net)
    try:
        yield distance
    finally:
        distance.close()


def _check_sizes(first: Tensor, second: Tensor) -> None:
    sizes = [f"{picture.shape[-1]}x{picture.shape[-2]} px" for picture in (first, second)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"LPIPS compares pictures of one size, not {sizes[0]} with {sizes[1]}: scale one of them."
        )
    if min(first.shape[-2:]) < SMALLEST:
        raise ValueError(
            f"LPIPS cannot see pictures of {sizes[0]}: make both sides at least {SMALLEST} px, or choose another "
            "distance."
        )


def _network(net: str) -> torch.nn.Module:
    """Return LPIPS with its weights; made on the meta device, where torchvision's random ones cost nothing."""
    import lpips

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # lpips uses a keyword that torchvision calls deprecated
        network = lpips.LPIPS(pretrained=False, net=net, pnet_rand=True, verbose=False)
    network.scaling_layer = lpips.ScalingLayer()
    heads = comfy.utils.load_torch_file(str(_heads_file(net)), safe_load=True)
    network.load_state_dict(heads, strict=False, assign=True)
    _load_backbone(network.net, _backbone_file(net), BACKBONES[net])
    return network.float().eval().requires_grad_(False)


def _load_backbone(backbone: torch.nn.Module, file: Path, name: str) -> None:
    """Fill `backbone`, whose `slice2.3.weight` is `features.3.weight` of torchvision, from `file`."""
    given = comfy.utils.load_torch_file(str(file), safe_load=True)
    try:
        state = {key: given["features." + key.split(".", 1)[1]] for key in backbone.state_dict()}
        backbone.load_state_dict(state, assign=True)
    except (KeyError, RuntimeError):
        raise ValueError(
            f"{file} does not hold torchvision's {name}, which LPIPS needs: replace it by torchvision's own file, "
            "or remove it to have that downloaded."
        ) from None


def _heads_file(net: str) -> Path:
    try:
        import lpips
    except ImportError as error:
        raise ValueError(
            f"LPIPS needs the Python package lpips ({error}): install the requirements of this node pack, for example "
            "with ComfyUI-Manager, and start ComfyUI again."
        ) from error
    return Path(lpips.__file__).with_name("weights") / "v0.1" / f"{net}.pth"


def _backbone_file(net: str) -> Path:
    """Return the file of the ImageNet network: the user's, or torchvision's in its own cache, downloaded if needed."""
    name = BACKBONES[net]
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    for file in folder_paths.get_filename_list(FOLDER):
        if os.path.basename(file).startswith(name) and file.endswith(ENDINGS):
            return Path(folder_paths.get_full_path(FOLDER, file))
    return downloaded(
        torchvision.models.get_model_weights(name).IMAGENET1K_V1.url,
        "LPIPS",
        f"Put that file (or {name}.safetensors with torchvision's names) in the folder models/{FOLDER} of ComfyUI, or "
        "go online and run again.",
    )
