"""The scenes of the painting benchmark, and every way to make a picture of one from its painting and its caption.

A method sees a stroke painting of a hidden scene (wide median strokes, few colours) and the scene's caption. All sample
with euler, the normal schedule, 20 steps and CFG 5, with the same seeds, through the host's own sampling.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import comfy.sample
import comfy.samplers
import nodes as host_nodes
import numpy as np
import torch
from torch import Tensor

from guided_synthesis.nodes import gradop, loopback, low_pass_guide, painting_guide
from tiny_sd import data
from tiny_sd.host_model import install_taesd, load_demo_model
from tiny_sd.world import draw, make_spec, stroke_painting

SCENES, SEEDS, BATCH, STEPS, CFG = 60, (1000, 2000), 20, 20, 5.0
SAMPLER, SCHEDULER = "euler", "normal"
CELLS = 16  # latent cells along a side


@dataclass
class Made:
    """The pictures of one method, (scenes * seeds, 3, H, W) in order of the seeds, and what they took."""

    images: Tensor
    seconds: float
    model_calls: float
    """UNet batches for each batch of pictures."""
    decoder_calls: float
    """Latents turned into colours for the guide, networks only, for each batch of pictures."""


@dataclass
class _Counts:
    model: int = 0
    decoders: list[Any] = field(default_factory=list)

    def decodes(self) -> int:
        """Return how often a network decoded: a linear decoder counts with the VAE passes that it takes."""
        return sum(getattr(decoder, "exact", decoder).calls for decoder in self.decoders)


class Study:
    """The hidden scenes, their paintings and the demo model."""

    def __init__(self, scenes: int = SCENES, seeds: tuple[int, ...] = SEEDS) -> None:
        self.model, self.clip, self.vae = load_demo_model()
        install_taesd()
        self.seeds = seeds
        self.specs = [make_spec(data.HELD_OUT + 5000 + index) for index in range(scenes)]
        drawn = [draw(spec).image for spec in self.specs]
        self.hidden = _pictures(drawn)
        self.paintings = _pictures([stroke_painting(image) for image in drawn])

    @torch.inference_mode()
    def make(self, method: Callable[[Study, Any, slice, int], Tensor]) -> Made:
        """Return a picture for every painting and seed: `method(study, model, batch, seed)` gives latents."""
        counts, images, began = _Counts(), [], time.perf_counter()
        with _noting_decoders(counts):
            for seed in self.seeds:
                for start in range(0, len(self.specs), BATCH):
                    batch = slice(start, start + BATCH)
                    latent = method(self, _counting(self.model, counts), batch, seed + start)
                    images.append(self.vae.decode(latent).movedim(-1, 1).clone())
        batches = len(images)
        took = time.perf_counter() - began
        return Made(torch.cat(images), took, counts.model / batches, counts.decodes() / batches)

    def painting(self, batch: slice) -> Tensor:
        """Return the paintings of a batch as IMAGE (B, H, W, 3)."""
        return self.paintings[batch].movedim(1, -1)

    def texts(self, batch: slice) -> tuple[list, list]:
        """Return positive and negative CONDITIONING of a batch."""
        captions = [spec.caption for spec in self.specs[batch]]
        return self._conditioning(captions), self._conditioning([""] * len(captions))

    def _conditioning(self, texts: list[str]) -> list:
        return [[torch.cat([self.clip.encode_from_tokens(self.clip.tokenize(text)) for text in texts]), {}]]

    def ksampler(self, model: Any, batch: slice, seed: int, denoise: float = 1.0) -> Tensor:
        """Return latents of the host's KSampler, from the encoded painting where `denoise` < 1."""
        painting = self.painting(batch)
        empty = torch.zeros(len(painting), 4, CELLS, CELLS)
        latent = {"samples": self.vae.encode(painting) if denoise < 1 else empty}
        settings = (seed, STEPS, CFG, SAMPLER, SCHEDULER, *self.texts(batch), latent)
        return host_nodes.common_ksampler(model, *settings, denoise=denoise)[0]["samples"]


def sdedit(study: Study, model: Any, batch: slice, seed: int, denoise: float) -> Tensor:
    """The host's img2img (arXiv 2108.01073); at denoise 1 the text alone."""
    return study.ksampler(model, batch, seed, denoise)


def looped(study: Study, model: Any, batch: slice, seed: int, denoise: float, repeats: int) -> Tensor:
    """Img2img, then again on its own result: the Loopback Sampler in SamplerCustomAdvanced."""
    sampler = comfy.samplers.sampler_object(SAMPLER)
    sampler = loopback.Loopback.execute(sampler, repeats, denoise, 1.0, seed).args[0]
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, SCHEDULER, STEPS)
    level = sampling.percent_to_sigma(1 - denoise)
    sigmas = sigmas[int((sigmas > level).sum()) :]
    latent = study.vae.encode(study.painting(batch))
    noise = comfy.sample.prepare_noise(latent, seed)
    texts = study.texts(batch)
    return comfy.sample.sample_custom(model, noise, CFG, sampler, sigmas, *texts, latent, seed=seed)


def low_pass(study: Study, model: Any, batch: slice, seed: int, **widgets: Any) -> Tensor:
    """ILVR (arXiv 2108.02938): the Low-Pass Guide, from an empty latent."""
    guided = low_pass_guide.LowPassGuide.execute(
        model, study.vae, study.painting(batch), **(defaults(low_pass_guide.LowPassGuide) | widgets)
    )
    return study.ksampler(guided.args[0], batch, seed)


def constrained(study: Study, model: Any, batch: slice, seed: int, **widgets: Any) -> Tensor:
    """GradOP (arXiv 2211.17084): the constrained problem, relaxed and projected back."""
    settings = defaults(gradop.GradOP) | {"steps": STEPS, "cfg": CFG, "seed": seed} | widgets
    made = gradop.GradOP.execute(model, study.vae, *study.texts(batch), study.painting(batch), **settings)
    return made.args[0]["samples"]


def guided(study: Study, model: Any, batch: slice, seed: int, denoise: float = 1.0, **widgets: Any) -> Tensor:
    """GradOP+ and what became of it: the GradOP Painting Guide."""
    settings = defaults(painting_guide.PaintingGuide) | widgets
    made = painting_guide.PaintingGuide.execute(model, study.vae, study.painting(batch), **settings)
    return study.ksampler(made.args[0], batch, seed, denoise)


def defaults(node: Any) -> dict[str, Any]:
    """Return the defaults of a node's widgets."""
    return {
        entry.id: entry.default
        for entry in node.define_schema().inputs
        if getattr(entry, "default", None) is not None
    }


def _pictures(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).float().movedim(-1, 1) / 255


def _counting(model: Any, counts: _Counts) -> Any:
    def wrapper(apply_model, args):
        counts.model += 1
        return apply_model(args["input"], args["timestep"], **args["c"])

    patched = model.clone()
    patched.set_model_unet_function_wrapper(wrapper)
    return patched


@contextmanager
def _noting_decoders(counts: _Counts) -> Iterator[None]:
    """Collect every decoder that a node opens in the block."""
    modules = (painting_guide, gradop, low_pass_guide)
    original = painting_guide.open_decoder

    @contextmanager
    def noted(*arguments: Any) -> Iterator[Any]:
        with original(*arguments) as decoder:
            counts.decoders.append(decoder)
            yield decoder

    for module in modules:
        module.open_decoder = noted
    try:
        yield
    finally:
        for module in modules:
            module.open_decoder = original
