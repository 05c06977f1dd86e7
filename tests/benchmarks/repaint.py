"""RePaint against the host's own masked sampling, at equal model calls and at equal steps, on scenes of the demo world.

Two kinds of holes: the box of one of two objects, and the right half of a picture of one object, which mostly cuts the
object in two. They are filled under the caption of the scene; the half also under an empty prompt at CFG 1, so that
only the known half tells what belongs there. What is made is kept in `.host/benchmarks/repaint`, one file for each
method and hole, and not made again; delete a file there to do so.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from benchmarks.inversion import KEPT, install_lpips
from benchmarks.study import BATCH, CELLS, CFG, SAMPLER, SCHEDULER, STEPS
from guided_synthesis.nodes import repaint
from guided_synthesis.nodes.host.perceptual import open_lpips
from tiny_sd import classifier, data
from tiny_sd.host_model import load_demo_model
from tiny_sd.world import SIZE, Scene, draw, make_spec

FOLDER = KEPT.with_name("repaint")
SCENES, FIRST = 60, data.HELD_OUT + 120_000  # defaults were tried on scenes from HELD_OUT + 130_000
CELL, STRIP = SIZE // CELLS, 2  # px of a latent cell, and of the strips that a seam is measured between
BOX, HALF, BLIND = "box of an object", "half of the picture", "half of the picture, without a prompt"


@dataclass(frozen=True)
class Method:
    """The host's sampler over so many steps; resampled where `resamplings` is above 1."""

    steps: int = STEPS
    resamplings: int = 1
    jump_length: int = 1
    end_percent: float = 1.0

    @property
    def name(self) -> str:
        """Return what the table calls it."""
        if self.resamplings == 1:
            return f"host, {self.steps} steps"
        return f"RePaint, {self.resamplings} x, jump {self.jump_length}, end {self.end_percent:g}"

    def sampler(self) -> Any:
        """Return the SAMPLER."""
        inner = comfy.samplers.sampler_object(SAMPLER)
        settings = (self.resamplings, self.jump_length, 0.0, self.end_percent)
        return repaint.RePaintSampler.execute(inner, *settings).args[0]


FEW = (Method(), Method(steps=52), Method(resamplings=3, jump_length=5, end_percent=0.8))
MANY = (
    Method(),
    Method(steps=52),
    Method(steps=164),
    *(Method(resamplings=times, jump_length=5, end_percent=0.8) for times in (3, 5, 10)),
    Method(resamplings=3, jump_length=10, end_percent=0.8),
)
METHODS = {BLIND: MANY, HALF: FEW, BOX: FEW}


class Holes:
    """Scenes with a hole in each, and the demo model."""

    @torch.inference_mode()
    def __init__(self, kind: str, scenes: int = SCENES, first: int = FIRST) -> None:
        self.kind, self.first = kind, first
        self.specs = [make_spec(first + index, things=2 if kind == BOX else 1) for index in range(scenes)]
        drawn = [draw(spec) for spec in self.specs]
        self.images = classifier.pictures([scene.image for scene in drawn])
        self.cells = torch.stack([hole(kind, scene) for scene in drawn])[:, None].float()
        self.model, self.clip, self.vae = load_demo_model()
        self.latents = self.vae.encode(self.images.movedim(1, -1))
        self.rebuilt = self.vae.decode(self.latents).movedim(-1, 1)

    @torch.inference_mode()
    def filled(self, method: Method) -> dict[str, Any]:
        """Return the pictures, (N, 3, H, W), model calls for each and seconds; makes them unless that is done."""
        file = FOLDER / (re_named(f"{self.kind} {self.first} {len(self.specs)} {method.name}") + ".pt")
        if not file.exists():
            FOLDER.mkdir(parents=True, exist_ok=True)
            partial_file = file.with_suffix(".part")
            torch.save(self._made(method), partial_file)
            partial_file.replace(file)
        made = torch.load(file, weights_only=True)
        return made | {"images": self.vae.decode(made["latents"]).movedim(-1, 1)}

    def _made(self, method: Method) -> dict[str, Any]:
        calls, model = [], self.model.clone()
        model.set_model_unet_function_wrapper(
            lambda apply_model, args: (
                calls.append(1) or apply_model(args["input"], args["timestep"], **args["c"])
            )
        )
        sigmas = comfy.samplers.calculate_sigmas(
            model.get_model_object("model_sampling"), SCHEDULER, method.steps
        )
        latents, began = [], time.process_time()
        for start in range(0, len(self.specs), BATCH):
            part = slice(start, start + BATCH)
            known = self.latents[part]
            noise = comfy.sample.prepare_noise(known, 1000 + start)
            empty = [""] * len(known)
            captions = empty if self.kind == BLIND else [spec.caption for spec in self.specs[part]]
            texts, cfg = (self._text(captions), self._text(empty)), 1.0 if self.kind == BLIND else CFG
            arguments = (model, noise, cfg, method.sampler(), sigmas, *texts, known)
            settings = {"noise_mask": self.cells[part], "disable_pbar": True, "seed": 1000 + start}
            latents.append(comfy.sample.sample_custom(*arguments, **settings).float())
        took = (time.process_time() - began) / len(self.specs)
        return {"latents": torch.cat(latents), "calls": len(calls) / len(latents), "seconds": took}

    def _text(self, texts: list[str]) -> list:
        return [[torch.cat([self.clip.encode_from_tokens(self.clip.tokenize(text)) for text in texts]), {}]]


def re_named(name: str) -> str:
    """Return `name` as a file's."""
    return name.replace(", ", "_").replace(" ", "-")


def hole(kind: str, scene: Scene) -> Tensor:
    """Return the latent cells (16, 16) to be filled, bool: those that the object's box touches, or the right half."""
    cells = torch.zeros(CELLS, CELLS, dtype=torch.bool)
    if kind != BOX:
        cells[:, CELLS // 2 :] = True
    else:
        left, top, right, bottom = scene.boxes[0]
        cells[top // CELL : -(-bottom // CELL), left // CELL : -(-right // CELL)] = True
    return cells


def seams(images: Tensor, cells: Tensor, strip: int = STRIP) -> Tensor:
    """Return (N,): how much larger the step across a hole's border is than the slopes on both sides let expect.

    |(c - b) - ((b - a) + (d - c)) / 2| of the means a, b | c, d of strips `strip` px wide and as long, mean over all
    places of the border and over colours. Images are (N, 3, H, W), cells (N, 1, 16, 16).
    """
    small = avg_pool2d(images, strip)
    mask = interpolate(cells, scale_factor=CELL // strip) > 0
    jumps = [_jumps(small, mask), _jumps(small.mT, mask.mT)]
    total, places = (sum(part) for part in zip(*jumps, strict=True))
    return total / places


def _jumps(small: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the jumps at vertical borders, and their number, (N,) each."""
    a, b, c, d = (small[..., start : small.shape[-1] - 3 + start] for start in range(4))
    jump = ((c - b) - ((b - a) + (d - c)) / 2).abs().mean(1)
    border = (mask[..., 1:-2] != mask[..., 2:-1]).squeeze(1)
    return (jump * border).sum((1, 2)), border.sum((1, 2))


@torch.inference_mode()
def measured(holes: Holes, images: Tensor, judge: Any) -> dict[str, Tensor]:
    """Return per scene: the seam (x 1000), whether the object is recognised, PSNR and LPIPS of the hole."""
    mask = interpolate(holes.cells, scale_factor=CELL)
    error = ((images - holes.rebuilt).square() * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3)))
    with open_lpips("alex") as lpips:
        distance = lpips(torch.lerp(holes.rebuilt, images, mask), holes.rebuilt)
    return {
        "seam": 1000 * seams(images, holes.cells),
        "named": torch.tensor([float(found[0]) for found in judge.recognised(images, holes.specs)]),
        "psnr": -10 * error.clamp(min=1e-8).log10(),
        "lpips": distance,
    }


def row(
    holes: Holes, method: Method, judge: Any, base: dict[str, Tensor], host: Tensor | None
) -> tuple[str, Tensor]:
    """Return a line of the table and the seams; `base` measures the scenes themselves, `host` is the first row's."""
    made = holes.filled(method)
    found = measured(holes, made["images"], judge)
    seam = found["seam"]
    cells = [
        method.name,
        f"{made['calls']:.0f}",
        f"{(seam - base['seam']).mean():.1f}",
        "" if host is None else with_error(seam - host),
        f"{int(found['named'].sum())} of {len(seam)}",
        f"{found['psnr'].mean():.1f}",
        f"{found['lpips'].mean():.3f}",
        f"{made['seconds']:.1f}",
    ]
    return f"| {' | '.join(cells)} |", seam


def with_error(values: Tensor) -> str:
    """Return the mean of `values` (N,) and its standard error."""
    return f"{values.mean():+.1f} +- {values.std() / len(values) ** 0.5:.1f}"


def table(kind: str, judge: Any) -> str:
    """Return the table of one kind of hole."""
    holes, lines, host = Holes(kind), [], None
    base = measured(holes, holes.rebuilt, judge)
    for method in METHODS[kind]:
        line, seam = row(holes, method, judge, base, host)
        host = seam if host is None else host
        lines.append(line)
    return TABLE.format(kind=kind[0].upper() + kind[1:], true=base["seam"].mean(), rows="\n".join(lines))


def run() -> str:
    """Return the section of RESULTS.md."""
    install_lpips("alexnet")
    judge = classifier.load()
    tables = "\n\n".join(table(kind, judge) for kind in METHODS)
    return TEXT.format(tables=tables, scenes=SCENES, cfg=CFG, strip=STRIP)


TABLE = """### {kind}

The seam of the scenes themselves is {true:.1f}.

| method | model calls | seam above the scene's | against the first row | object | PSNR | LPIPS | s / picture |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{rows}"""

TEXT = """## RePaint Sampler against masked sampling, {scenes} scenes for each kind of hole

`python run.py bench repaint`

{tables}

Euler, normal schedule, 20 steps where nothing else is said, CFG {cfg:g} (1 without a prompt); the same scenes and seeds
in all rows. Seam: how much larger the step across the border of the hole is than the slopes on both sides let expect,
in strips of {strip} px, times 1000, mean over the border, above that of the scene (after the autoencoder); beside it
the difference to the first row, scene by scene, with its standard error. Object: the classifier names the masked
object. PSNR and LPIPS (alex) of the hole compare with the scene that was there, for information only: another good
filling is as right. Seconds are those of one CPU thread.
"""
