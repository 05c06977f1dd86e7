"""The three networks of the demo model, built from the host's own classes (so that training fits inference exactly)."""

from __future__ import annotations

import comfy.ldm.modules.attention as host_attention
import comfy.ops
import torch
from comfy.clip_model import CLIPLayer, CLIPTextModel
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.taesd.taesd import TAESD

from tiny_sd.comfy_node.config import TEXT, UNET

HOST_WIDTH, AUTOENCODER_WIDTH = 64, 32
VAE_SCALE = 0.18215  # SD1's latent factor: with vae_scale set to it the host sees the encoder's own output


def _fresh(module: torch.nn.Module) -> torch.nn.Module:
    """Initialise the host's uninitialised layers as torch would."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.Conv2d.reset_parameters(layer) if isinstance(layer, torch.nn.Conv2d) else (
                torch.nn.Linear.reset_parameters(layer)
            )
        elif isinstance(layer, torch.nn.GroupNorm | torch.nn.LayerNorm) and layer.weight is not None:
            torch.nn.init.ones_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    return module


def autoencoder() -> TAESD:
    """Return a fresh TAESD-class autoencoder, `AUTOENCODER_WIDTH` channels wide: four times cheaper to train."""
    model = TAESD()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            _resize(layer, lambda channels: AUTOENCODER_WIDTH if channels == HOST_WIDTH else channels)
    return _fresh(model)


def widened(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Pad the narrow autoencoder's weights with zeros to the host's width; it computes exactly the same picture."""
    full = TAESD().state_dict()
    wide = {}
    for key, narrow in state.items():
        wide[key] = torch.zeros_like(full[key])
        wide[key][tuple(slice(side) for side in narrow.shape)] = narrow
    return wide


def _resize(layer: torch.nn.Conv2d, width) -> None:
    layer.in_channels, layer.out_channels = width(layer.in_channels), width(layer.out_channels)
    layer.weight = torch.nn.Parameter(torch.empty(layer.out_channels, layer.in_channels, *layer.kernel_size))
    if layer.bias is not None:
        layer.bias = torch.nn.Parameter(torch.empty(layer.out_channels))


def _layer_forward(self, x, mask=None, optimized_attention=None):
    """The host's CLIPLayer without its in-place additions, which break the backward pass."""
    x = x + self.self_attn(self.layer_norm1(x), mask, optimized_attention)
    return x + self.mlp(self.layer_norm2(x))


def text_encoder() -> CLIPTextModel:
    """Return a fresh CLIP text transformer of the demo size that can be trained."""
    CLIPLayer.forward = _layer_forward
    model = _fresh(CLIPTextModel(TEXT, torch.float32, "cpu", comfy.ops.disable_weight_init))
    embeddings = model.text_model.embeddings
    torch.nn.init.normal_(embeddings.token_embedding.weight, std=0.05)
    torch.nn.init.normal_(embeddings.position_embedding.weight, std=0.02)
    return model


def unet() -> UNetModel:
    """Return a fresh UNet; the last layer of every residual path starts at zero, as in the original."""
    host_attention.optimized_attention = host_attention.attention_basic  # fastest at this size on a CPU
    model = _fresh(UNetModel(**UNET, dtype=torch.float32, operations=comfy.ops.disable_weight_init))
    for block in model.modules():
        if type(block).__name__ == "ResBlock":
            torch.nn.init.zeros_(block.out_layers[-1].weight)
            torch.nn.init.zeros_(block.out_layers[-1].bias)
        if type(block).__name__ == "SpatialTransformer":
            torch.nn.init.zeros_(block.proj_out.weight)
            torch.nn.init.zeros_(block.proj_out.bias)
    torch.nn.init.zeros_(model.out[-1].weight)
    torch.nn.init.zeros_(model.out[-1].bias)
    return model
