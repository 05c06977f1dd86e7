"""The three decoders on the host's networks: `vae`, `taesd` and `linear` (see guidance/decoding.py)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.taesd.taesd
import folder_paths
import torch
from torch import Tensor

from ...guidance.decoding import Decoder, LinearDecoder, colour_field, fit_linear
from . import gradients

DECODERS = ("vae", "taesd", "linear")
FIELD_CELLS = 32  # latent cells along each side of the picture that the linear decoder is fitted to
TAESD_BYTES = (
    2 * 141_000
)  # per latent cell: measured activations of TAESD in float32, and as much to work with
_fitted: weakref.WeakKeyDictionary[Any, dict[Any, tuple[Tensor, Tensor]]] = weakref.WeakKeyDictionary()


class NetworkDecoder:
    """A decoder that runs a network of the host, loaded when first needed and again for a larger latent."""

    def __init__(
        self,
        name: str,
        cost: str,
        scale: int,
        decode: Callable[[Tensor], Tensor],
        patcher: Any,
        memory: Callable[[torch.Size, bool], float],
        checkpointing: bool | None = None,
        whole: bool = False,
    ) -> None:
        """Take `decode` (latents of the model's space to RGB) and the `patcher` (ModelPatcher) of its
        network.

        `memory` gives the bytes of a decode and its backward pass by shape of the latent and by whether blocks
        are recomputed (`checkpointing`; None: where memory would not suffice otherwise); `whole`: never in part.
        """
        self.name, self.cost, self.scale, self.calls = name, cost, scale, 0
        self._decode, self._patcher, self._memory = decode, patcher, memory
        self._asked, self._checkpointing = checkpointing, bool(checkpointing)
        self._whole, self._room = whole, 0.0

    def close(self) -> None:
        """Let go of the network; an own one is freed with it."""
        del self._decode, self._patcher, self._memory

    def __call__(self, latent: Tensor) -> Tensor:
        """Return RGB (B, 3, H, W), float32, not clamped, on the device of `latent` (B, C, h, w)."""
        self._load(latent.shape)
        self.calls += 1
        network = self._patcher.model
        saving = gradients.checkpointed(network) if self._checkpointing else nullcontext()
        with gradients.differentiable(), saving:
            return self._decode(latent).to(latent.device)

    def around(self, latent: Tensor, picture: Tensor | None = None) -> NetworkDecoder:
        """Return itself: a network is exact everywhere."""
        return self

    def _load(self, shape: torch.Size) -> None:
        needed = self._memory(shape, False)
        if needed > self._room or not gradients.is_loaded(self._patcher):
            if self._asked is None:
                free = comfy.model_management.get_free_memory(self._patcher.load_device)
                self._checkpointing = needed > free
            gradients.load([self._patcher], self._memory(shape, self._checkpointing), self._whole)
            self._room = needed


def check_decoder(name: str, vae: Any, model: Any) -> int:
    """Return the VAE's px per latent cell; raise ValueError if `name` cannot serve `model` with `vae`."""
    if name not in DECODERS:
        raise ValueError(f"There is no decoder {name!r}. Choose one of {', '.join(DECODERS)}.")
    if getattr(vae, "first_stage_model", None) is None:
        raise ValueError(
            "The vae input holds no VAE; connect the VAE output of the checkpoint or of Load VAE."
        )
    if getattr(vae, "latent_dim", 2) != 2 or not isinstance(vae.downscale_ratio, int):
        raise ValueError(
            "This VAE is made for video or sound, not for single pictures. Connect an image VAE."
        )
    latent_format = model.model.latent_format
    if vae.latent_channels != latent_format.latent_channels:
        raise ValueError(
            f"This VAE makes latents of {vae.latent_channels} channels, but the model "
            f"({type(latent_format).__name__}) works on {latent_format.latent_channels}: they are of different "
            "families. Connect the VAE that belongs to the checkpoint."
        )
    if name == "taesd":
        _taesd_file(latent_format)
    return vae.downscale_ratio


@contextmanager
def open_decoder(name: str, vae: Any, model: Any, checkpointing: bool | None = None) -> Iterator[Decoder]:
    """Yield decoder `name` (`vae`, `taesd` or `linear`) for latents of `model`, colours as `vae` makes them.

    With `checkpointing`, `vae` and `taesd` recompute their blocks in the backward pass: less memory, more
    time. None: only if the memory that is free does not suffice otherwise. Own networks are freed when the block
    ends. Raises ValueError as `check_decoder` does.
    """
    scale = check_decoder(name, vae, model)
    network = (_taesd if name == "taesd" else _vae)(vae, model, scale, checkpointing)
    try:
        yield LinearDecoder(*_linear_map(vae, model, scale), network) if name == "linear" else network
    finally:
        network.close()


def _vae(vae: Any, model: Any, scale: int, checkpointing: bool | None) -> NetworkDecoder:
    return NetworkDecoder(
        name="vae",
        cost="Exact and heavy: the whole VAE, forwards and backwards.",
        scale=scale,
        decode=lambda latent: gradients.decode(vae, model.model.process_latent_out(latent)),
        patcher=vae.patcher,
        memory=partial(gradients.decode_memory, vae),
        checkpointing=checkpointing,
        whole=getattr(vae, "disable_offload", False),
    )


def _taesd(vae: Any, model: Any, scale: int, checkpointing: bool | None) -> NetworkDecoder:
    latent_format = model.model.latent_format
    file = folder_paths.get_full_path("vae_approx", _taesd_file(latent_format))
    network = comfy.taesd.taesd.TAESD(None, file, latent_channels=latent_format.latent_channels).eval()
    device = comfy.model_management.get_torch_device()
    patcher = comfy.model_patcher.ModelPatcher(network, device, comfy.model_management.vae_offload_device())
    return NetworkDecoder(
        name="taesd",
        cost="Light: a small network that imitates the VAE.",
        scale=scale,
        decode=lambda latent: (network.decode(latent.to(device, torch.float32)) + 1) / 2,
        patcher=patcher,
        memory=lambda shape, _: TAESD_BYTES * shape[0] * shape[-2] * shape[-1],
        checkpointing=checkpointing,
        whole=True,  # its scale and shift are plain parameters, which the host cannot stream
    )


def _taesd_file(latent_format: Any) -> str:
    name = latent_format.taesd_decoder_name
    if name is None:
        raise ValueError(
            f"There is no TAESD for this model ({type(latent_format).__name__}). Choose the decoder vae or "
            "linear."
        )
    for file in folder_paths.get_filename_list("vae_approx"):
        if file.startswith(name):
            return file
    raise ValueError(
        f"The decoder taesd needs the file {name}.safetensors (or .pth) in the folder models/vae_approx of "
        "ComfyUI; put it there and press R to refresh, or choose the decoder vae or linear."
    )


def _linear_map(vae: Any, model: Any, scale: int) -> tuple[Tensor, Tensor]:
    """Fit the linear map to one encode and one decode of this VAE; remembered for as long as the VAE lives.

    The host's own `latent_rgb_factors` are not used: to tell whether they belong to this VAE takes the same
    decode as the fit, which can only be closer (a test compares the two on the demo model).
    """
    latent_format = model.model.latent_format
    maps = _fitted.setdefault(vae, {})
    space = (
        type(latent_format),
        latent_format.scale_factor,
    )  # one VAE may serve models of several latent spaces
    if space not in maps:
        picture = colour_field(FIELD_CELLS * scale, scale)
        gradients.load([vae.patcher], _forward_memory(vae, scale), getattr(vae, "disable_offload", False))
        with gradients.differentiable(), torch.no_grad():
            latent = gradients.encode(vae, picture)
            pixels = gradients.decode(vae, latent).clamp(0, 1)
            maps[space] = fit_linear(model.model.process_latent_in(latent), pixels)
    return maps[space]


def _forward_memory(vae: Any, scale: int) -> float:
    cells, px = (1, vae.latent_channels, FIELD_CELLS, FIELD_CELLS), FIELD_CELLS * scale
    encoding = vae.memory_used_encode((1, 3, px, px), vae.vae_dtype)
    return max(encoding, vae.memory_used_decode(cells, vae.vae_dtype))
