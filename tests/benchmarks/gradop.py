"""GradOP+ against SDEdit on hidden scenes: closeness to the painting, recognition, cost.

For 40 held-out scenes a method sees only a stroke painting of the scene (wide median strokes, 5 colours) and the
scene's caption. All methods: euler, normal schedule, 20 steps, CFG 5, the same seeds, through the host's own sampling.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import nodes as host_nodes
import numpy as np
import torch
from torch import Tensor

from guided_synthesis.guidance.painting import blur_sigma, gaussian
from guided_synthesis.nodes import painting_guide
from tiny_sd import classifier, data
from tiny_sd.host_model import install_taesd, load_demo_model
from tiny_sd.world import draw, make_spec, stroke_painting

SCENES, BATCH, STEPS, CFG, SEED = 40, 8, 20, 5.0, 1000
SDEDIT = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
# The VAE costs this CPU two seconds a decode and backward pass of eight pictures: the decoders are compared on little.
SHORT = {"start_percent": 0.5, "steps_per_iteration": 6, "iterations": 2}
PAPER = {
    "start_percent": 0.2,
    "end_percent": 1.0,
    "steps_per_iteration": 12,
    "learning_rate": 0.1,
    "iterations": 3,
}
GUIDES: dict[str, dict[str, Any]] = {
    "GradOP+ `released code`, the paper's settings, vae": {
        **PAPER,
        "mode": "released code",
        "decoder": "vae",
    },
    "GradOP+ `denoised`, the paper's settings, linear": {**PAPER, "decoder": "linear"},
    "GradOP+ `denoised`, 2 late steps, vae": {**SHORT, "decoder": "vae"},
    "GradOP+ `denoised`, 2 late steps, taesd": {**SHORT, "decoder": "taesd"},
    "GradOP+ `denoised`, 2 late steps, linear": {**SHORT, "decoder": "linear"},
    "GradOP+, the node's defaults (linear)": {"decoder": "linear"},
    "GradOP+, the node's defaults, end_percent 0.9": {"decoder": "linear", "end_percent": 0.9},
    "GradOP+, the node's defaults, on SDEdit 0.8": {"decoder": "linear", "denoise": 0.8},
    "GradOP+, end_percent 0.9, on SDEdit 0.6": {"decoder": "linear", "end_percent": 0.9, "denoise": 0.6},
}
HEAD = (
    "method",
    "distance",
    "distance, both blurred",
    "main object",
    "model calls",
    "decodes",
    "s / picture",
)
EXPLAINED = """Distance: mean squared difference between the blurred picture and the painting, times 1000 (blur 6 px at
128 px: 0.75 latent cells); "both blurred": the painting is blurred as well. Main object: the classifier names it (of
40). Model calls: UNet batches for a batch of 8, guided or not. Decodes: how often latents become colours for the guide
(vae, taesd: with a backward pass; linear: matrix products + decodes of the VAE without one). Seconds: {threads} CPU
thread(s). The hidden scenes' own row is the distance that a perfect picture of the scene keeps. The demo autoencoder
is of TAESD's class, so `taesd` runs the same network as `vae` here."""


@dataclass
class Row:
    """The pictures of one method and what they took."""

    name: str
    images: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0
    model_calls: int = 0
    decoders: list[Any] = field(default_factory=list)


class Study:
    """The scenes, the model, and the ways to make a picture from a painting."""

    def __init__(self, scenes: int = SCENES) -> None:
        self.model, self.clip, self.vae = load_demo_model()
        install_taesd()
        self.judge = classifier.load()
        self.specs = [make_spec(data.HELD_OUT + 5000 + index) for index in range(scenes)]
        self.scenes = [draw(spec).image for spec in self.specs]
        paintings = np.stack([stroke_painting(scene) for scene in self.scenes])
        self.paintings = torch.from_numpy(paintings).float() / 255  # (N, H, W, 3)

    def given(self, name: str, images: Tensor) -> Row:
        """Return pictures (N, 3, H, W) that nothing was made for as a row."""
        return Row(name, [images])

    @torch.inference_mode()
    def run(self, name: str, denoise: float = 1.0, **widgets: Any) -> Row:
        """Make a picture of every painting: with `widgets` guided, from img2img where `denoise` < 1."""
        row = Row(name)
        for start in range(0, len(self.specs), BATCH):
            painting = self.paintings[start : start + BATCH]
            began = time.perf_counter()
            with _noting_decoders(row):
                model = _counting(self.model, row)
                if widgets:
                    model = _guided(model, self.vae, painting, widgets)
                row.images.append(self._picture(model, painting, start, denoise))
            row.seconds += time.perf_counter() - began
        return row

    def _picture(self, model: Any, painting: Tensor, start: int, denoise: float) -> Tensor:
        captions = [spec.caption for spec in self.specs[start : start + BATCH]]
        positive, negative = self._conditioning(captions), self._conditioning([""] * len(captions))
        empty = torch.zeros(len(captions), 4, 16, 16)
        latent = {"samples": self.vae.encode(painting) if denoise < 1 else empty}
        settings = (SEED + start, STEPS, CFG, "euler", "normal", positive, negative, latent)
        out = host_nodes.common_ksampler(model, *settings, denoise=denoise)[0]
        return self.vae.decode(out["samples"]).movedim(-1, 1).clone()

    def _conditioning(self, texts: list[str]) -> list:
        return [[torch.cat([self.clip.encode_from_tokens(self.clip.tokenize(text)) for text in texts]), {}]]

    def cells(self, row: Row) -> list[str]:
        """Return the cells of the row's line in the table."""
        images, paintings = torch.cat(row.images), self.paintings.movedim(-1, 1)
        sigma = blur_sigma(7.0, images.shape[-2], images.shape[-1], 8)
        seen, count = gaussian(images, sigma), len(self.specs)
        named = sum(found[0] for found in self.judge.recognised(images, self.specs))
        return [
            row.name,
            f"{1000 * (seen - paintings).square().mean():.2f}",
            f"{1000 * (seen - gaussian(paintings, sigma)).square().mean():.2f}",
            f"{named} of {count}",
            f"{row.model_calls * BATCH / count:.0f}",
            _decodes(row.decoders[0]) if row.decoders else "0",
            f"{row.seconds / count:.2f}",
        ]


def _decodes(decoder: Any) -> str:
    exact = getattr(decoder, "exact", None)
    return f"{decoder.calls} + {exact.calls}" if exact else f"{decoder.calls}"


def _counting(model: Any, row: Row) -> Any:
    def wrapper(apply_model, args):
        row.model_calls += 1
        return apply_model(args["input"], args["timestep"], **args["c"])

    patched = model.clone()
    patched.set_model_unet_function_wrapper(wrapper)
    return patched


@contextmanager
def _noting_decoders(row: Row) -> Iterator[None]:
    """Collect every decoder that the guide opens in the block."""
    original = painting_guide.open_decoder

    @contextmanager
    def noted(*arguments: Any) -> Iterator[Any]:
        with original(*arguments) as decoder:
            row.decoders.append(decoder)
            yield decoder

    painting_guide.open_decoder = noted
    try:
        yield
    finally:
        painting_guide.open_decoder = original


def _guided(model: Any, vae: Any, painting: Tensor, widgets: dict[str, Any]) -> Any:
    inputs = painting_guide.PaintingGuide.define_schema().inputs
    defaults = {entry.id: entry.default for entry in inputs if hasattr(entry, "default")}
    return painting_guide.PaintingGuide.execute(model, vae, painting, **(defaults | widgets)).args[0]


def run() -> str:
    """Run every method and return the section of RESULTS.md."""
    study = Study()
    hidden = torch.from_numpy(np.stack(study.scenes)).float().movedim(-1, 1) / 255
    lines = [" | ".join(HEAD), " | ".join(["---"] + ["---:"] * (len(HEAD) - 1))]
    methods = [
        lambda: study.given("the paintings themselves", study.paintings.movedim(-1, 1)),
        lambda: study.given("the hidden scenes themselves", hidden),
        lambda: study.run("text only"),
        *(partial(study.run, f"SDEdit, denoise {denoise:g}", denoise) for denoise in SDEDIT),
        *(partial(study.run, name, **widgets) for name, widgets in GUIDES.items()),
    ]
    for method in methods:
        lines.append(" | ".join(study.cells(method())))
        print(lines[-1], flush=True)
    table = "\n".join(f"| {line} |" for line in lines)
    title = f"## GradOP+ and SDEdit on {len(study.specs)} hidden scenes"
    explained = EXPLAINED.format(threads=torch.get_num_threads())
    return f"{title}\n\n`python run.py bench gradop`\n\n{table}\n\n{explained}\n"
