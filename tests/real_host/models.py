"""Small models of other classes than the demo model's, with random weights or its own: arithmetic, no pictures."""

from __future__ import annotations

from typing import Any

import torch

CPU = torch.device("cpu")


def tiny_sdxl(host: Any) -> Any:
    """Return a MODEL of SDXL's class, with random weights and tiny widths; its pooled text has 64 numbers."""
    from full_size.models import SDXL, random_state

    config = SDXL | {
        "model_channels": 64,
        "num_res_blocks": [1, 1, 1],
        "transformer_depth": [0, 1, 2],
        "transformer_depth_output": [0, 0, 1, 1, 2, 2],
        "transformer_depth_middle": 2,
        "context_dim": 64,
        "adm_in_channels": 64 + 6 * 256,  # a pooled text of 64, and the sizes
    }
    with torch.inference_mode():
        base = host.comfy.supported_models.SDXL(config).get_model({}, device=CPU)
        base.diffusion_model.load_state_dict(random_state(base.diffusion_model, torch.float32))
        base.diffusion_model.eval()
    return host.comfy.model_patcher.ModelPatcher(base, CPU, CPU)


def control_net(host: Any, model: Any, size: float = 0.5) -> Any:
    """Return a ControlNet of MODEL's shape with random weights of `size`."""
    import comfy.cldm.cldm
    import comfy.controlnet

    config = dict(model.model.model_config.unet_config) | {"hint_channels": 3}
    config.pop("out_channels")
    config.pop("transformer_depth_output", None)
    config |= {"operations": host.comfy.ops.disable_weight_init, "dtype": torch.float32}
    with torch.inference_mode():
        network = comfy.cldm.cldm.ControlNet(**config)
        for index, parameter in enumerate(network.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter.data = noise * size / max(1, parameter[0].numel()) ** 0.5
    return comfy.controlnet.ControlNet(network, load_device=CPU, manual_cast_dtype=None)


def as_v_prediction(host: Any, model: Any) -> Any:
    """Return MODEL with its output taken for a velocity: the arithmetic of SD 2.x at 768 px."""
    sampling = host.comfy.model_sampling

    class VPrediction(sampling.ModelSamplingDiscrete, sampling.V_PREDICTION):
        pass

    patched = model.clone()
    patched.add_object_patch("model_sampling", VPrediction(model.model.model_config))
    return patched
