"""The host's own full-size models with random weights: what they compute is noise, what it costs is real.

Shapes come from the host's configuration, weights from a seed: N(0, 1 / fan-in), norms 1, biases 0, so that
activations stay of order one. The state dict then goes through the host's own loaders. On a CPU, SD 1.5 in float32
takes 3.4 GB (and as much again while loading), SDXL in bfloat16 5.1 GB.
"""

from __future__ import annotations

from typing import Any

import comfy.ldm.models.autoencoder
import comfy.sd
import comfy.supported_models
import torch
from torch import Tensor

_COMMON = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320}
_COMMON |= {"use_spatial_transformer": True, "legacy": False, "use_temporal_attention": False}
SD15 = _COMMON | {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "context_dim": 768,
}
SDXL = _COMMON | {
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "context_dim": 2048,
}
SD_VAE = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
SD_VAE |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
TOKENS = 77


def sd15_unet(dtype: torch.dtype = torch.float32) -> Any:
    """Return MODEL: SD 1.5's UNet (860 million weights of `dtype`)."""
    return _unet(comfy.supported_models.SD15(SD15), dtype)


def sdxl_unet(dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return MODEL: SDXL's UNet (2.6 billion weights of `dtype`)."""
    return _unet(comfy.supported_models.SDXL(SDXL), dtype)


def sd_vae(dtype: torch.dtype = torch.float32) -> Any:
    """Return the host's VAE object with SD's AutoencoderKL (84 million weights of `dtype`)."""
    with torch.device("meta"):
        network = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=SD_VAE.copy(), embed_dim=4)
    with torch.inference_mode():  # as loaders run
        return comfy.sd.VAE(sd=random_state(network, dtype), dtype=dtype)


def conditioning(model: Any, seed: int = 0) -> list:
    """Return CONDITIONING for `model` (MODEL): one random text of 77 tokens."""
    config, generator = model.model.model_config.unet_config, torch.Generator().manual_seed(seed)
    pooled = {"pooled_output": torch.randn(1, 1280, generator=generator)} if model.model.adm_channels else {}
    return [[torch.randn(1, TOKENS, config["context_dim"], generator=generator), pooled]]


def random_state(network: torch.nn.Module, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Return a state dict of random weights for `network`, of which only the shapes count."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: _random(key, value.shape, generator).to(dtype) for key, value in network.state_dict().items()
    }


def _random(key: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape) if key.endswith("weight") else torch.zeros(shape)
    return torch.randn(shape, generator=generator) / shape[1:].numel() ** 0.5


def _unet(config: Any, dtype: torch.dtype) -> Any:
    network = config.get_model({}, device="meta").diffusion_model
    state = random_state(network, dtype)
    with torch.inference_mode():
        return comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": dtype})
