"""What artists put beside the pack in a graph: nodes of the host, and others' packs in their usual form."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from compatibility.runs import Run, left_half, outputs, photo, text
from real_host.models import CPU, control_net

WIDTH = 64  # of a token of the demo model's text
BESIDE = "a photo of a sailboat at night"


def _of_host(module: str, node: str, **widgets: Any) -> Callable[[Run], Run]:
    """Return the change that puts a MODEL -> MODEL node of the host into the chain."""

    def change(run: Run) -> Run:
        found = getattr(importlib.import_module(f"comfy_extras.{module}"), node)
        return run.changed(model=outputs(found, model=run.model, **widgets)[0])

    return change


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def image_prompt(run: Run) -> Run:
    """Put tokens of a picture into the replace slot of every cross-attention, as IPAdapter does."""
    from comfy.ldm.modules.attention import optimized_attention

    def replace(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        heads = options["n_heads"]
        found = optimized_attention(q, k, v, heads, attn_precision=options["attn_precision"])
        image = tokens.to(q)[:, :, : q.shape[-1]].expand(len(q), -1, -1)
        return found + 0.5 * optimized_attention(q, image, image, heads)

    model = run.model.clone()
    with torch.inference_mode():  # as nodes run
        tokens = _random(1, 4, 1024)
        for block, number in (
            [("input", i) for i in range(12)] + [("middle", 0)] + [("output", i) for i in range(12)]
        ):
            model.set_model_attn2_replace(replace, block, number)
    return run.changed(model=model)


def lora_weights(model: Any) -> dict[str, Tensor]:
    """Return a LoRA file of rank 2 with random weights for every attention of MODEL's network."""
    weights = {}
    for index, (name, module) in enumerate(model.model.diffusion_model.named_modules()):
        if name.endswith(("to_q", "to_k", "to_v")):
            key, (rows, columns) = "lora_unet_" + name.replace(".", "_"), module.weight.shape
            weights[f"{key}.lora_up.weight"] = _random(rows, 2, seed=index) * 0.2
            weights[f"{key}.lora_down.weight"] = _random(2, columns, seed=index + 1000) * columns**-0.5
    return weights


def lora(run: Run) -> Run:
    """Load a LoRA into the model."""
    import comfy.sd

    with torch.inference_mode():
        weights = lora_weights(run.model)
        return run.changed(model=comfy.sd.load_lora_for_models(run.model, None, weights, 1.0, 0.0)[0])


def _to_texts(run: Run, change: Callable[[list], list]) -> Run:
    """Change both positives alike."""
    return run.changed(positive=change(run.positive), other=change(run.other))


def hook_lora(run: Run) -> Run:
    """Load a LoRA for the positive condition only."""
    import comfy.hooks

    with torch.inference_mode():
        hooks = comfy.hooks.create_hook_lora(lora_weights(run.model), 1.0, 0.0)
    return _to_texts(run, lambda texts: comfy.hooks.set_hooks_for_conditioning(texts, hooks))


def control(run: Run) -> Run:
    """Apply a ControlNet to the positive and, where nothing else is said, to the negative."""
    with torch.inference_mode():
        net = control_net(run.host, run.model)
    node = run.host.nodes.ControlNetApply
    given = {"control_net": net, "image": photo(), "strength": 1.0}
    return _to_texts(run, lambda texts: outputs(node, conditioning=texts, **given)[0])


def gligen(run: Run) -> Run:
    """Put a text box (GLIGEN) into the positive condition."""
    from comfy.gligen import GatedSelfAttentionDense, Gligen, PositionNet

    with torch.inference_mode():
        widths = [layer.weight.shape[0] for layer in _queries(run.model)]
        fusers = [GatedSelfAttentionDense(width, WIDTH, 4, width // 4) for width in widths]
        network = Gligen(fusers, PositionNet(WIDTH, WIDTH), WIDTH)
        for index, weight in enumerate(network.parameters()):
            fan_in = weight[0].numel() if weight.ndim else 1
            weight.data = _random(*weight.shape, seed=index) / max(1, fan_in) ** 0.5
    box = run.host.comfy.model_patcher.ModelPatcher(network, CPU, CPU)
    given = {"gligen_textbox_model": box, "clip": run.clip, "text": "an apple", "width": 32, "height": 32}
    node = run.host.nodes.GLIGENTextBoxApply
    return _to_texts(run, lambda texts: outputs(node, conditioning_to=texts, x=0, y=16, **given)[0])


def _queries(model: Any) -> list[Any]:
    modules = model.model.diffusion_model.named_modules()
    return [module for name, module in modules if name.endswith("attn2.to_q")]


def area(run: Run) -> Run:
    """Combine the positive with another text for the right half's area."""
    node, other = run.host.nodes.ConditioningSetArea, text(run, BESIDE)
    part = outputs(node, conditioning=other, width=32, height=64, x=32, y=0, strength=1.0)[0]
    return _to_texts(run, lambda texts: [*texts, *part])


def mask(run: Run) -> Run:
    """Let the positive count in the left half, another text in the right."""
    node, settings = run.host.nodes.ConditioningSetMask, {"set_cond_area": "default", "strength": 1.0}

    def within(texts: list, where: Tensor) -> list:
        return outputs(node, conditioning=texts, mask=where, **settings)[0]

    rest = within(text(run, BESIDE), 1 - left_half())
    return _to_texts(run, lambda texts: [*within(texts, left_half()), *rest])


COMPANIONS: dict[str, Callable[[Run], Run]] = {
    "FreeU": _of_host("nodes_freelunch", "FreeU", b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "FreeU_V2": _of_host("nodes_freelunch", "FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "PerturbedAttentionGuidance": _of_host("nodes_pag", "PerturbedAttentionGuidance", scale=15.0),
    "SelfAttentionGuidance": _of_host("nodes_sag", "SelfAttentionGuidance", scale=2.0),
    "HyperTile": _of_host("nodes_hypertile", "HyperTile", tile_size=32),
    "TomePatchModel": _of_host("nodes_tomesd", "TomePatchModel", ratio=0.5),
    "RescaleCFG": _of_host("nodes_model_advanced", "RescaleCFG", multiplier=0.7),
    "PatchModelAddDownscale": _of_host("nodes_model_downscale", "PatchModelAddDownscale", end_percent=0.5),
    "ModelSamplingDiscrete (v_prediction)": _of_host(
        "nodes_model_advanced", "ModelSamplingDiscrete", sampling="v_prediction", zsnr=False
    ),
    "ModelSamplingDiscrete (lcm)": _of_host(
        "nodes_model_advanced", "ModelSamplingDiscrete", sampling="lcm", zsnr=False
    ),
    "image prompt": image_prompt,
    "LoRA": lora,
    "hook LoRA": hook_lora,
    "ControlNet": control,
    "GLIGEN": gligen,
    "area": area,
    "mask": mask,
}
