"""Gradients in the host: differentiable calls of its networks, though nodes run under `torch.inference_mode()`.

The host's weights are inference tensors, which autograd refuses to save. `differentiable()` leaves inference mode and
hands every torch function a plain copy of each inference tensor at the moment of use. Nothing is patched: the shared
model, its weights and its modules stay as they are, whatever happens inside, and weights that the host streams or
moves (low VRAM) are copied from where they are. A copy lives as long as autograd needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

# the blocks whose activations are worth recomputing: UNet, AutoencoderKL, TAESD
CHECKPOINTED = ("ResBlock", "SpatialTransformer", "ResnetBlock", "AttnBlock", "Block")


class _PlainTensors(TorchFunctionMode):
    """Replaces inference tensors by plain copies in the arguments of every torch function."""

    def __torch_function__(self, function, types, args=(), kwargs=None):  # noqa: D105
        return function(*_plain(args), **_plain(kwargs or {}))


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone() if value.is_inference() else value
    if type(value) in (list, tuple):
        return type(value)(_plain(entry) for entry in value)
    if type(value) is dict:
        return {key: _plain(entry) for key, entry in value.items()}
    return value


@contextmanager
def differentiable() -> Iterator[None]:
    """Run the block with gradients on, also inside inference mode, `no_grad`, and for weights loaded there.

    Call the network, the loss and `torch.autograd.grad` inside the block. Ask for gradients of your own leaves, e.g.
    `latent.clone().requires_grad_()`; the weights never collect any.
    """
    with torch.inference_mode(False), torch.enable_grad(), _PlainTensors():
        yield


@contextmanager
def checkpointed(*networks: torch.nn.Module) -> Iterator[None]:
    """Recompute the blocks of `networks` in the backward pass instead of keeping their activations.

    The blocks' `forward` is wrapped for the duration of the block only, on these instances only.
    """
    blocks = [m for network in networks for m in network.modules() if type(m).__name__ in CHECKPOINTED]
    kept = [(block, block.__dict__.get("forward")) for block in blocks]
    try:
        for block in blocks:
            block.forward = partial(_recomputed, block.forward)
        yield
    finally:
        for block, forward in kept:
            if forward is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = forward


def _recomputed(forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """Call `forward` under a checkpoint; option dictionaries are copied as they are now, the host changes them."""
    now = {key: dict(value) if type(value) is dict else value for key, value in kwargs.items()}
    return checkpoint(forward, *args, use_reentrant=False, **now)


def load(patchers: list[Any], memory: float) -> None:
    """Load `patchers` (ModelPatcher) for a call that takes `memory` bytes, beside the models that are in use now."""
    used = comfy.model_management.loaded_models(only_currently_used=True)
    others = [model for model in used if model is not None and not any(model is p for p in patchers)]
    comfy.model_management.load_models_gpu([*patchers, *others], memory_required=memory)


def decode(vae: Any, latent: Tensor) -> Tensor:
    """Decode `latent` (B, C, h, w) in the VAE's own space to RGB (B, 3, H, W), float32, not clamped.

    Differentiable inside `differentiable()`. The VAE must be loaded (`load([vae.patcher], ...)`).
    """
    picture = vae.first_stage_model.decode(latent.to(vae.device, vae.vae_dtype)).float()
    return (picture + 1) / 2


def encode(vae: Any, image: Tensor) -> Tensor:
    """Encode RGB `image` (B, 3, H, W) in [0, 1] to latents (B, C, h, w) in the VAE's own space, float32.

    H and W must be multiples of the VAE's cell. Differentiable inside `differentiable()`; the VAE must be loaded.
    """
    pixels = vae.process_input(image).to(vae.device, vae.vae_dtype)
    return vae.first_stage_model.encode(pixels).float()


def denoise(model: Any, x: Tensor, sigma: Tensor, context: Tensor, **conditions: Any) -> Tensor:
    """Return the estimate x0hat (B, C, h, w) of a loaded MODEL for noisy latents `x` at `sigma` (B,).

    `context` (B, T, D) is the text condition; `conditions` are further arguments of the host's `apply_model`
    (`y` for SDXL, `control`, ...). Differentiable in all of them inside `differentiable()`. Attention runs in plain
    torch, since the host's other kernels have no backward pass.
    """
    options = dict(conditions.pop("transformer_options", {}))
    options["optimized_attention_override"] = _torch_attention
    return model.model.apply_model(x, sigma, c_crossattn=context, transformer_options=options, **conditions)


def _torch_attention(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    kwargs.pop("transformer_options", None)
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)
