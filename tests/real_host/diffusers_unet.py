"""The demo model's UNet in an implementation that is not the host's: diffusers' UNet2DConditionModel, same weights."""

from __future__ import annotations

from typing import Any

import comfy.utils
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

TEXT_LAYER = ".attn2.to_q.weight"


def converted(model: Any) -> tuple[UNet2DConditionModel, dict[str, tuple[str, int, int]]]:
    """Return the UNet of MODEL, and the host's key (block, number, index) of each of its cross-attention layers.

    Raises an error of torch's if any weight is missing or left over.
    """
    config, state = model.model.model_config.unet_config, model.model.diffusion_model.state_dict()
    names = {theirs: ours for theirs, ours in comfy.utils.unet_to_diffusers(config).items() if ours in state}
    if left := set(state) - set(names.values()):
        raise ValueError(f"Weights of the host's UNet have no name in diffusers: {sorted(left)}.")
    network = UNet2DConditionModel(**_shape(config)).eval()
    network.load_state_dict({theirs: state[ours].clone() for theirs, ours in names.items()}, strict=True)
    layers = {
        theirs.removesuffix(".to_q.weight"): _host_key(ours)
        for theirs, ours in names.items()
        if theirs.endswith(TEXT_LAYER)
    }
    return network, layers


class Maps:
    """Attention processor of diffusers that keeps softmax(q k) of its layer: (B, heads, N, T)."""

    def __init__(self) -> None:
        self.maps: Tensor | None = None

    def __call__(
        self, layer: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **others: Any
    ) -> Tensor:
        """Attend as diffusers' own AttnProcessor does, for text without a mask."""
        query = layer.head_to_batch_dim(layer.to_q(hidden_states))
        key = layer.head_to_batch_dim(layer.to_k(encoder_hidden_states))
        value = layer.head_to_batch_dim(layer.to_v(encoder_hidden_states))
        probs = layer.get_attention_scores(query, key)
        self.maps = probs.unflatten(0, (-1, layer.heads))
        out = layer.batch_to_head_dim(torch.bmm(probs, value))
        return layer.to_out[1](layer.to_out[0](out))


def keep_maps(network: UNet2DConditionModel, layers: dict[str, Any]) -> dict[str, Maps]:
    """Let the layers of `network` keep their maps; returns the processors by name."""
    kept = {name: Maps() for name in layers}
    for name, processor in kept.items():
        network.get_submodule(name).set_processor(processor)
    return kept


def _shape(config: dict[str, Any]) -> dict[str, Any]:
    """Return diffusers' configuration for a small host UNet with one block a level."""
    depth = config["transformer_depth"]
    down = tuple("CrossAttnDownBlock2D" if count else "DownBlock2D" for count in depth)
    up = tuple("CrossAttnUpBlock2D" if count else "UpBlock2D" for count in reversed(depth))
    return {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "block_out_channels": tuple(config["model_channels"] * times for times in config["channel_mult"]),
        "layers_per_block": config["num_res_blocks"][0],
        "down_block_types": down,
        "up_block_types": up,
        "attention_head_dim": config["num_heads"],  # its old name: it is the number of heads
        "cross_attention_dim": config["context_dim"],
        "use_linear_projection": config["use_linear_in_transformer"],
    }


def _host_key(name: str) -> tuple[str, int, int]:
    """Return (block, number, index) of `output_blocks.3.1.transformer_blocks.0.attn2.to_q.weight`."""
    parts = name.split(".")
    number = 0 if parts[0] == "middle_block" else int(parts[1])
    return (
        parts[0].removesuffix("_blocks").removesuffix("_block"),
        number,
        int(parts[parts.index("transformer_blocks") + 1]),
    )
