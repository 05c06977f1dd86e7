"""Attention maps as masks: how well a word's thresholded map covers its object, and what recording takes.

Where an object is, the generator of the demo world knows: a drawn scene is encoded, noised to a few levels and denoised
once from each, with its caption, by the recorder's model. The map of the object's noun is thresholded by the view and
compared with the object's mask at 128 px. A second row records an ordinary img2img run on the drawn scene.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import comfy.sample
import comfy.samplers
import nodes as host_nodes
import torch
from torch import Tensor

from benchmarks.study import CFG, SAMPLER, SCHEDULER, STEPS, defaults
from full_size import models
from guided_synthesis.attention.words import Prompt, Word
from guided_synthesis.nodes import attention_maps, prompt
from guided_synthesis.nodes.host.attention_hook import cross_attention_layers
from tiny_sd import data
from tiny_sd.host_model import load_demo_model
from tiny_sd.world import Spec, draw, make_spec

SCENES = 100
FIRST = data.HELD_OUT + 50_000  # the defaults of the nodes were chosen on scenes from HELD_OUT + 40_000
LEVELS = (0.1, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the schedule: 0 is the most noise
DENOISE = 0.6
SIDE, SLOW_STEPS, WORDS = 512, 2, 8  # px, steps and words of the full-size model
MIB = 2**20
Run = Callable[["Bench", Any, list, Tensor, int], Tensor]


class Bench:
    """The demo model and the share of each object that its map covers."""

    def __init__(self) -> None:
        self.model, self.clip, self.vae = load_demo_model()
        self.negative = host_nodes.CLIPTextEncode().encode(self.clip, "")[0]

    @torch.inference_mode()
    def overlaps(self, run: Run, scenes: list[Spec], **widgets: Any) -> dict[str, list[float]]:
        """Return the intersection over union of map and mask of every object: in scenes of one, in scenes of two."""
        found: dict[str, list[float]] = {"one": [], "two": []}
        for index, spec in enumerate(scenes):
            scene = draw(spec)
            positive, words = prompt.PromptWords.execute(self.clip, spec.caption).args
            settings = defaults(attention_maps.AttentionRecorder) | widgets
            model, maps = attention_maps.AttentionRecorder.execute(self.model, words, **settings).args
            latent = self.vae.encode(torch.from_numpy(scene.image).float()[None] / 255)
            made = run(self, model, positive, latent, index)
            nouns = ", ".join(thing.noun for thing in spec.things)
            threshold = defaults(attention_maps.AttentionMapView)["threshold"]
            masks = attention_maps.AttentionMapView.execute(maps, {"samples": made}, nouns, threshold).args[1]
            for mask, true in zip(masks > 0, map(torch.from_numpy, scene.masks), strict=True):
                share = (mask & true).sum() / (mask | true).sum()
                found["one" if len(spec.things) == 1 else "two"].append(share.item())
        return found


def passes(bench: Bench, model: Any, positive: list, latent: Tensor, seed: int) -> Tensor:
    """Denoise the picture once from each of a few noise levels, without CFG."""

    def visit(network, x, sigmas, extra_args=None, callback=None, disable=None):
        for sigma in sigmas[:-1]:
            network(network.latent_image + sigma * network.noise, sigma.expand(len(x)), **extra_args)
        return network.latent_image

    sampling = model.get_model_object("model_sampling")
    sigmas = torch.tensor([*map(sampling.percent_to_sigma, LEVELS), 0.0])
    noise, sampler = comfy.sample.prepare_noise(latent, seed), comfy.samplers.KSAMPLER(visit)
    texts = (positive, bench.negative)
    return comfy.sample.sample_custom(
        model, noise, 1.0, sampler, sigmas, *texts, latent, disable_pbar=True, seed=seed
    )


def img2img(bench: Bench, model: Any, positive: list, latent: Tensor, seed: int) -> Tensor:
    """Sample from the picture with the host's KSampler."""
    settings = (seed, STEPS, CFG, SAMPLER, SCHEDULER, positive, bench.negative, {"samples": latent})
    return host_nodes.common_ksampler(model, *settings, denoise=DENOISE)[0]["samples"]


def rows(bench: Bench) -> str:
    """Return the lines of the table."""
    scenes = [make_spec(FIRST + index) for index in range(SCENES)]
    runs: dict[str, tuple[Run, dict[str, Any]]] = {
        "single passes, defaults": (passes, {}),
        "single passes, scale 1 as well": (passes, {"scale_1": True}),
        f"img2img, denoise {DENOISE:g}, CFG {CFG:g}": (img2img, {}),
    }
    lines = []
    for name, (run, widgets) in runs.items():
        found = bench.overlaps(run, scenes, **widgets)
        every = found["one"] + found["two"]
        shares = [sum(each) / len(each) for each in (every, found["one"], found["two"])]
        good = sum(share >= 0.5 for share in every) / len(every)
        lines.append(f"| {' | '.join([name, str(len(every)), *(f'{s:.3f}' for s in (*shares, good))])} |")
    return "\n".join(lines)


def memory(model: Any, words: int) -> dict[int, int]:
    """Return the bytes kept for a picture of `SIDE` px by scale: float32, a number for each position and word."""
    found: dict[int, int] = {}
    for layer in cross_attention_layers(model.model.diffusion_model).values():
        positions = (-(-SIDE // 8 // layer.scale)) ** 2
        found[layer.scale] = found.get(layer.scale, 0) + 4 * words * positions
    return found


def kept(maps: Any, latent: Tensor) -> int:
    """Return the bytes that a recording holds."""
    return sum(sums.total.untyped_storage().nbytes() for sums in maps.of(latent).sums.values())


@torch.inference_mode()
def cost() -> str:
    """Return sentences about memory and time with SD 1.5's UNet (random weights)."""
    gc.collect()
    model = models.sd15_unet()
    positive, negative = models.conditioning(model, 1), models.conditioning(model, 2)
    words = Prompt("", tuple(Word(f"word{n}", (n,)) for n in range(1, WORDS + 1)), models.TOKENS)
    settings = defaults(attention_maps.AttentionRecorder)
    recorded, maps = attention_maps.AttentionRecorder.execute(model, words, **settings).args
    latent, took, made = {"samples": torch.zeros(1, 4, SIDE // 8, SIDE // 8)}, [], []
    for each, steps in ((model, 1), (model, SLOW_STEPS), (recorded, SLOW_STEPS)):  # the first loads the model
        began = time.process_time()
        widgets = (7, steps, CFG, SAMPLER, SCHEDULER, positive, negative, latent)
        made.append(host_nodes.common_ksampler(each, *widgets)[0]["samples"])
        took.append((time.process_time() - began) / steps)
    size = memory(model, WORDS)
    if kept(maps, made[2]) != sum(size[scale] for scale in attention_maps.RECORDED):
        raise ValueError("The recording does not hold what its shapes say.")
    if not torch.equal(made[1], made[2]):
        raise ValueError("The recorder changed the picture.")
    return EXPLAINED.format(
        levels=len(LEVELS),
        words=WORDS,
        side=SIDE,
        memory=", ".join(f"{size[scale] / MIB:.3f} at scale {scale}" for scale in sorted(size)),
        default=sum(size[scale] for scale in attention_maps.RECORDED) / MIB,
        plain=took[1],
        recorded=took[2],
        ratio=took[2] / took[1],
    )


def run() -> str:
    """Measure everything and return the section of RESULTS.md."""
    torch.set_num_threads(1)
    table = rows(Bench())
    return f"{TITLE}\n\n`python run.py bench attention_maps`\n\n{HEAD}\n{table}\n\n{cost()}\n"


TITLE = f"## Attention maps as masks: {SCENES} drawn scenes of one or two objects"
HEAD = """| recorded | objects | mean IoU | in scenes of one | in scenes of two | share with IoU >= 0.5 |
| --- | ---: | ---: | ---: | ---: | ---: |"""
EXPLAINED = """IoU: the thresholded map of the object's noun and the object's own mask, as the generator drew it, at 128
px (goal 0.5). Single passes: the drawn scene, encoded, noised to {levels} levels and denoised once from each with its
caption. Img2img may move the object, its mask stays the drawn one.

A recording of SD 1.5 keeps for a picture of {side} px and {words} words, in MiB: {memory}; with the node's defaults
(scales 2 and 4) {default:.3f}, however many steps there are. The bytes held were compared with these and are equal. A
step at full size (random weights, {side} px, CFG) takes {plain:.1f} CPU seconds, recorded {recorded:.1f}: {ratio:.3f};
the latents were compared and are equal to the bit."""
