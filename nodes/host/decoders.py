"""The three decoders of the pack on the host's networks: `vae`, `taesd` and `linear` (see guidance/decoding.py)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.taesd.taesd
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ...guidance.decoding import Decoder, LinearDecoder, colour_field, fit_linear
from . import gradients

DECODERS = ("vae", "taesd", "linear")
BACKWARD = 3  # activations kept for the backward pass, against the host's figure for decoding alone
FIELD_SIDE = 256  # px of the picture that the linear decoder is fitted to
_fitted: weakref.WeakKeyDictionary[Any, tuple[Tensor, Tensor]] = weakref.WeakKeyDictionary()


class NetworkDecoder:
    """A decoder that runs a network of the host: `decode` maps the model's latents to RGB, as in gradients.decode."""

    def __init__(self, name: str, cost: str, scale: int, decode: Callable[[Tensor], Tensor]) -> None:
        self.name, self.cost, self.scale, self.calls, self._decode = name, cost, scale, 0, decode

    def __call__(self, latent: Tensor) -> Tensor:
        """Return RGB (B, 3, H, W), float32, on the device of `latent` (B, C, h, w)."""
        self.calls += 1
        return self._decode(latent).to(latent.device)


def check_decoder(name: str, vae: Any, model: Any) -> int:
    """Return the VAE's px per latent cell; raise ValueError if decoder `name` cannot serve `model` with `vae`."""
    if not hasattr(vae, "first_stage_model"):
        raise ValueError("The vae input holds no VAE; connect the VAE output of the checkpoint or of Load VAE.")
    latent_format = model.model.latent_format
    if vae.latent_channels != latent_format.latent_channels:
        raise ValueError(
            f"This VAE makes latents of {vae.latent_channels} channels, but the model "
            f"({type(latent_format).__name__}) works on {latent_format.latent_channels}: they are of different "
            "families. Connect the VAE that belongs to the checkpoint."
        )
    if getattr(vae, "latent_dim", 2) != 2 or not isinstance(vae.downscale_ratio, int):
        raise ValueError("This VAE is made for video or sound, not for single pictures. Connect an image VAE.")
    if name == "taesd":
        _taesd_file(latent_format)
    return vae.downscale_ratio


@contextmanager
def open_decoder(name: str, vae: Any, model: Any) -> Iterator[Decoder]:
    """Yield decoder `name` (`vae`, `taesd` or `linear`) for latents of `model`, colours as `vae` makes them.

    What it holds is free again when the block ends. Raises ValueError as `check_decoder` does.
    """
    scale = check_decoder(name, vae, model)
    yield {"vae": _vae, "taesd": _taesd, "linear": _linear}[name](vae, model, scale)


def _vae(vae: Any, model: Any, scale: int) -> NetworkDecoder:
    def decode(latent: Tensor) -> Tensor:
        memory = BACKWARD * vae.memory_used_decode(latent.shape, vae.vae_dtype)
        gradients.load([vae.patcher], memory)
        return gradients.decode(vae, model.model.process_latent_out(latent))

    return NetworkDecoder("vae", "Exact and heavy: the whole VAE, forwards and backwards.", scale, decode)


def _taesd(vae: Any, model: Any, scale: int) -> NetworkDecoder:
    latent_format = model.model.latent_format
    file = folder_paths.get_full_path("vae_approx", _taesd_file(latent_format))
    network = comfy.taesd.taesd.TAESD(None, file, latent_channels=latent_format.latent_channels)
    device = comfy.model_management.get_torch_device()
    patcher = comfy.model_patcher.ModelPatcher(network, device, comfy.model_management.vae_offload_device())

    def decode(latent: Tensor) -> Tensor:
        gradients.load([patcher], BACKWARD * 64 * 64 * latent.shape[0] * latent.shape[-2] * latent.shape[-1] * 4 * 16)
        return (network.decode(latent.to(device, torch.float32)) + 1) / 2

    return NetworkDecoder("taesd", "Light: a small network that imitates the VAE.", scale, decode)


def _taesd_file(latent_format: Any) -> str:
    name = latent_format.taesd_decoder_name
    if name is None:
        raise ValueError(
            f"There is no TAESD for this model ({type(latent_format).__name__}). Choose the decoder vae or linear."
        )
    for file in folder_paths.get_filename_list("vae_approx"):
        if file.startswith(name):
            return file
    raise ValueError(
        f"The decoder taesd needs the file {name}.safetensors (or .pth) in the folder models/vae_approx of ComfyUI; "
        "put it there and press R to refresh, or choose the decoder vae or linear."
    )


@torch.no_grad()
def _linear(vae: Any, model: Any, scale: int) -> LinearDecoder:
    """Fit the map to one encode and one decode of this VAE; remembered for as long as the VAE lives.

    The host's own `latent_rgb_factors` are not used: they belong to the original VAE of a family only, and on the
    demo model a fit to this VAE is closer (27.1 dB against 24.4 dB on held-out scenes).
    """
    if vae not in _fitted:
        picture = colour_field(FIELD_SIDE, scale)
        latent = vae.encode(picture.movedim(1, -1))
        decoded = vae.decode(latent).movedim(-1, 1)
        with torch.inference_mode(False):
            _fitted[vae] = fit_linear(model.model.process_latent_in(latent).clone(), decoded.clone())
    return LinearDecoder(*_fitted[vae])
