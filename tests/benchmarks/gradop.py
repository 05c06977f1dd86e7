"""GradOP+ against SDEdit on hidden scenes: closeness to the painting, recognition, cost.

For 40 held-out scenes the method sees only a stroke painting of the scene (median strokes, 8 colours) and its caption.
All methods: euler, normal schedule, 20 steps, CFG 5, the same seeds, through the host's own sampling.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import nodes as host_nodes
import numpy as np
import torch
from torch import Tensor

from guided_synthesis.guidance.painting import blur_sigma, gaussian
from guided_synthesis.nodes import painting_guide
from tiny_sd import classifier, data
from tiny_sd.host_model import load_demo_model
from tiny_sd.world import draw, make_spec, stroke_painting

SCENES, BATCH, STEPS, CFG, SEED = 40, 8, 20, 5.0, 1000
SDEDIT = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
GUIDES = {
    "GradOP+ released code, vae": {
        "mode": "released code",
        "decoder": "vae",
        "start": 0.2,
        "end": 1.0,
        "iterations": 3,
    },
    "GradOP+ denoised, vae": {"decoder": "vae"},
    "GradOP+ denoised, taesd": {"decoder": "taesd"},
    "GradOP+ denoised, linear": {"decoder": "linear"},
}


@dataclass
class Row:
    """The figures of one method, summed over the batches."""

    name: str
    images: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0
    model_calls: int = 0
    decoder_calls: int = 0


class Study:
    """The scenes, the model and the two ways to make a picture from a painting."""

    def __init__(self, scenes: int = SCENES) -> None:
        self.model, self.clip, self.vae = load_demo_model()
        self.specs = [make_spec(data.HELD_OUT + 5000 + index) for index in range(scenes)]
        paintings = np.stack([stroke_painting(draw(spec).image) for spec in self.specs])
        self.paintings = torch.from_numpy(paintings).float() / 255  # (N, H, W, 3)

    def conditioning(self, texts: list[str]) -> list:
        """Return one CONDITIONING with a row for each text."""
        with torch.inference_mode():
            encoded = [self.clip.encode_from_tokens(self.clip.tokenize(text)) for text in texts]
        return [[torch.cat(encoded), {}]]

    @torch.inference_mode()
    def run(self, name: str, denoise: float = 1.0, **guide) -> Row:
        """Make a picture for every painting, by SDEdit (`denoise` < 1) or by the guide node; count and time it."""
        row = Row(name)
        for start in range(0, len(self.specs), BATCH):
            specs, painting = self.specs[start : start + BATCH], self.paintings[start : start + BATCH]
            positive = self.conditioning([spec.caption for spec in specs])
            negative = self.conditioning([""] * len(specs))
            began = time.perf_counter()
            model = _counting(self.model, row)
            if guide:
                with _counted_decoder(row):
                    model = _guided(model, self.vae, painting, **guide)
                    latent = {"samples": torch.zeros(len(specs), 4, 16, 16)}
                    out = _sample(model, positive, negative, latent, start, denoise)
            else:
                latent = {"samples": self.vae.encode(painting)}
                out = _sample(model, positive, negative, latent, start, denoise)
            row.images.append(self.vae.decode(out["samples"]).movedim(-1, 1).clone())
            row.seconds += time.perf_counter() - began
        return row

    def figures(self, row: Row) -> list[str]:
        """Return the cells of one line of the table."""
        images, paintings = torch.cat(row.images), self.paintings.movedim(-1, 1)
        sigma = blur_sigma(7.0, images.shape[-2], images.shape[-1], 8)
        seen = gaussian(images, sigma)
        distance = (seen - paintings).square().mean().item()
        both = (seen - gaussian(paintings, sigma)).square().mean().item()
        main = np.mean([found[0] for found in classifier.load().recognised(images, self.specs)])
        count = len(self.specs)
        return [
            row.name,
            f"{1000 * distance:.2f}",
            f"{1000 * both:.2f}",
            f"{100 * main:.0f} %",
            f"{row.model_calls / (count / BATCH):.0f}",
            f"{row.decoder_calls / (count / BATCH):.0f}",
            f"{row.seconds / count:.2f}",
        ]


def _sample(model, positive, negative, latent, start: int, denoise: float) -> dict:
    sampler, scheduler = "euler", "normal"
    return host_nodes.common_ksampler(
        model, SEED + start, STEPS, CFG, sampler, scheduler, positive, negative, latent, denoise=denoise
    )[0]


def _counting(model, row: Row):
    def wrapper(apply_model, args):
        row.model_calls += 1
        return apply_model(args["input"], args["timestep"], **args["c"])

    patched = model.clone()
    patched.set_model_unet_function_wrapper(wrapper)
    return patched


class _counted_decoder:  # noqa: N801 - a context manager, used like a function
    """Adds the calls of every decoder that the guide opens to `row.decoder_calls`."""

    def __init__(self, row: Row) -> None:
        self.row, self.original = row, painting_guide.open_decoder

    def __enter__(self) -> None:
        from contextlib import contextmanager

        @contextmanager
        def counted(*args):
            with self.original(*args) as decoder:
                yield decoder
                self.row.decoder_calls += decoder.calls

        painting_guide.open_decoder = counted

    def __exit__(self, *_) -> None:
        painting_guide.open_decoder = self.original


def _guided(model, vae, painting, **guide):
    inputs = painting_guide.PaintingGuide.define_schema().inputs
    settings = {entry.id: entry.default for entry in inputs if hasattr(entry, "default")}
    rename = {"start": "start_percent", "end": "end_percent"}
    settings |= {rename.get(key, key): value for key, value in guide.items()}
    return painting_guide.PaintingGuide.execute(model, vae, painting, **settings).args[0]


def run() -> str:
    """Run every method and return the section of RESULTS.md."""
    study = Study()
    rows = [study.run(f"SDEdit, denoise {denoise}", denoise) for denoise in SDEDIT]
    rows += [study.run(name, **guide) for name, guide in GUIDES.items()]
    head = [
        "method",
        "painting distance",
        "both blurred",
        "main object",
        "model calls",
        "decoder calls",
        "s / picture",
    ]
    lines = [head, ["---"] + ["---:"] * 6, *(study.figures(row) for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## GradOP+ and SDEdit on {len(study.specs)} hidden scenes\n\n{table}\n"
