"""Gradients in the host: differentiable calls of its diffusion model, its VAE and own networks.

    with differentiable():
        latent = latent.clone().requires_grad_()
        loss = objective(decode(vae, latent))
        (gradient,) = torch.autograd.grad(loss, latent)

Nodes run under `torch.inference_mode()`, samplers under `no_grad` as well; `differentiable()` (see
plain_tensors.py) works inside both, for fp32, fp16 and bf16 weights, and for weights that the host streams
because memory is low.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from .plain_tensors import checkpointed, differentiable

__all__ = ["calc_conds", "checkpointed", "control_networks", "decode", "decode_memory", "denoise"]
__all__ += [
    "differentiable",
    "encode",
    "encode_memory",
    "is_loaded",
    "load",
    "memory_advice",
    "with_plain_attention",
]

# Memory for a pass forwards and backwards, against the host's figure for forwards alone, most of which is room for
# kernels. Measured on the SD VAE: the tensors of a plain decode take 0.3 of that figure, with the backward pass 1.0,
# under checkpoints 0.6; of an encode 0.2, 0.6 and 0.4 of its own. The rest is room for kernels, here as well.
BACKWARD = 2
BACKWARD_CHECKPOINTED = 1.5


def load(patchers: list[Any], memory: float, whole: bool = False) -> None:
    """Load `patchers` (ModelPatcher) for a call that takes `memory` bytes, beside the models that are in use
    now.

    Inside a sampler the sampled model stays loaded (perhaps in part, as the host does when memory is low).
    Networks with layers that are not the host's own cannot be loaded in part: ask for the `whole`.
    """
    used = comfy.model_management.loaded_models(only_currently_used=True)
    others = [other for other in used if other is not None and not any(other.is_clone(p) for p in patchers)]
    comfy.model_management.load_models_gpu(
        [*patchers, *others], memory_required=memory, force_full_load=whole
    )


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Let an out-of-memory error of the block say what to do; the host treats it as its own, as before."""
    try:
        yield
    except comfy.model_management.OOM_EXCEPTION as error:
        raise comfy.model_management.OOM_EXCEPTION(f"Out of memory. {advice}") from error


def is_loaded(patcher: Any) -> bool:
    """Tell whether the host still has `patcher` (ModelPatcher) in its list of loaded models."""
    return any(loaded is patcher for loaded in comfy.model_management.loaded_models())


def decode(vae: Any, latent: Tensor) -> Tensor:
    """Decode `latent` (B, C, h, w) in the VAE's own space to RGB (B, 3, H, W), float32, nominally [0, 1], not
    clamped.

    On the VAE's device. Differentiable inside `differentiable()`. The VAE must be loaded
    (`load([vae.patcher], ...)`).
    """
    slope, middle = _output_range(vae)
    return vae.first_stage_model.decode(latent.to(vae.device, vae.vae_dtype)).float() * slope + middle


def encode(vae: Any, image: Tensor) -> Tensor:
    """Encode RGB `image` (B, 3, H, W) in [0, 1] to latents (B, C, h, w) in the VAE's own space, float32.

    H and W must be multiples of the VAE's cell. Differentiable inside `differentiable()`; the VAE must be
    loaded.
    """
    pixels = vae.process_input(image).to(vae.device, vae.vae_dtype)
    return vae.first_stage_model.encode(pixels).float()


def decode_memory(vae: Any, shape: torch.Size, checkpointing: bool = False) -> float:
    """Return the bytes that `decode` of latents of `shape` and its backward pass take beside the weights."""
    factor = BACKWARD_CHECKPOINTED if checkpointing else BACKWARD
    return factor * shape[0] * vae.memory_used_decode(shape, vae.vae_dtype)


def encode_memory(vae: Any, shape: torch.Size, checkpointing: bool = False) -> float:
    """Return the bytes that `encode` of pictures of `shape` (B, 3, H, W) and its backward pass take."""
    factor = BACKWARD_CHECKPOINTED if checkpointing else BACKWARD
    return factor * shape[0] * vae.memory_used_encode(shape, vae.vae_dtype)


def denoise(model: Any, x: Tensor, sigma: Tensor, context: Tensor, **conditions: Any) -> Tensor:
    """Return the estimate x0hat (B, C, h, w), float32, of a loaded MODEL for noisy latents `x` at `sigma`
    (B,).

    `context` (B, T, D) is the text condition; `conditions` are further arguments of the host's `apply_model`
    (`y` for SDXL, `control`, ...), all on the model's device. Differentiable in all of them inside
    `differentiable()`. The noise estimate is (x - x0hat) / sigma. The model's own patches apply. Attention
    runs in plain torch, since the host's other kernels have no backward pass.
    """
    given = conditions.pop("transformer_options", {})
    options = with_plain_attention({**model.model_options["transformer_options"], **given})
    return model.model.apply_model(x, sigma, c_crossattn=context, transformer_options=options, **conditions)


def calc_conds(
    base_model: Any, conds: list, x: Tensor, sigma: Tensor, model_options: dict[str, Any]
) -> list[Tensor]:
    """Return one x0hat (B, C, h, w) for each entry of `conds`, as the host's sampler computes them.

    For post-cfg functions and guiders: `base_model`, `conds` (prepared by the host), `x`, `sigma` and
    `model_options` as the sampler has them. Areas, masks, ControlNets and hooks apply. Differentiable inside
    `differentiable()`.
    """
    options = with_plain_attention(model_options.get("transformer_options", {}))
    model_options = {**model_options, "transformer_options": options}
    return comfy.samplers.calc_cond_batch(base_model, conds, x, sigma, model_options)


def control_networks(conds: list[dict]) -> Iterator[torch.nn.Module]:
    """Yield the networks of the ControlNets of conditions that the host has prepared."""
    for entry in conds:
        control = entry.get("control")
        while control is not None:
            network = getattr(control, "control_model", None)
            if isinstance(network, torch.nn.Module):
                yield network
            control = control.previous_controlnet


def _output_range(vae: Any) -> tuple[float, float]:
    """Return slope and offset of the host's `process_output`, measured where it does not clamp."""
    low, high = vae.process_output(torch.tensor([-0.25, 0.25])).tolist()
    if low == 0.0:  # an identity on [0, 1]: clamped below
        return 1.0, 0.0
    return (high - low) / 0.5, (high + low) / 2


def with_plain_attention(transformer_options: dict[str, Any]) -> dict[str, Any]:
    """Return the options for a pass with gradients: attention in plain torch, and patches that may write in place.

    An override of the attention that is already there sits on top of it.
    """
    earlier = transformer_options.get("optimized_attention_override")

    def override(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        plain = comfy.ldm.modules.attention.attention_pytorch
        return plain(*args, **kwargs) if earlier is None else earlier(plain, *args, **kwargs)

    options = {**transformer_options, "optimized_attention_override": override}
    if "patches" in options:
        patches = options["patches"].items()
        options["patches"] = {
            slot: [_views_copied(patch) for patch in entries] if "block_patch" in slot else entries
            for slot, entries in patches
        }
    options.pop(
        "prefetch_dynamic_vbars", None
    )  # newer hosts replay whole blocks as CUDA graphs: no gradients
    return options


def _views_copied(patch: Callable[..., Any]) -> Callable[..., Any]:
    """Return `patch` such that autograd keeps copies of views: FreeU V2 overwrites what it has just multiplied."""

    def copying(*args: Any, **kwargs: Any) -> Any:
        with saved_tensors_hooks(
            lambda kept: kept.clone() if kept._is_view() else kept.detach(), lambda kept: kept
        ):
            return patch(*args, **kwargs)

    return copying
