"""The families of models: one small MODEL of each class, all for the demo model's CLIP and VAE."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from real_host.models import CPU, tiny_sdxl
from tiny_sd.host_model import load_demo_model


def tiny_sd2(host: SimpleNamespace) -> Any:
    """Return a MODEL of SD 2.x's class that predicts velocities (768 px), with random weights and tiny widths."""
    import torch

    from full_size.models import SD15, random_state

    tiny = {"model_channels": 64, "num_res_blocks": [1, 1, 1, 1], "context_dim": 64}
    depths = {"transformer_depth": [1, 1, 1, 0], "transformer_depth_output": [1, 1, 1, 1, 1, 1, 0, 0]}
    config = SD15 | tiny | depths | {"use_linear_in_transformer": True, "num_head_channels": 64}

    class Velocity(host.comfy.supported_models.SD20):
        def model_type(self, state_dict: dict, prefix: str = "") -> Any:
            return host.comfy.model_base.ModelType.V_PREDICTION

    with torch.inference_mode():
        base = Velocity(config).get_model({}, device=CPU)
        base.diffusion_model.load_state_dict(random_state(base.diffusion_model, torch.float32))
        base.diffusion_model.eval()
    return host.comfy.model_patcher.ModelPatcher(base, CPU, CPU)


DEMO = "SD 1.x"
FAMILIES: dict[str, Callable[[SimpleNamespace], Any]] = {
    DEMO: lambda host: load_demo_model()[0],
    "SD 2.x (velocity)": tiny_sd2,
    "SDXL": tiny_sdxl,
}
