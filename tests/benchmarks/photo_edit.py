"""Edited photos: a noun of the source prompt is exchanged, and the picture that it should give is known.

Photo and true target are drawn from the same spec but for one object. The background is where both drawings are equal,
outside of the object's masks in both and a rim around all that. What is made is kept in
`.host/benchmarks/photo_edit`, one file for each method, and not made again; delete a file there to do so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.samplers
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from benchmarks.inversion import (
    BATCH,
    KEPT,
    MOST,
    SCHEDULER,
    Photos,
    Setting,
    Start,
    exact,
    fitted,
    install_lpips,
    pictures,
    pivot,
    psnr,
)
from benchmarks.prompt_to_prompt import Swap, replaced, swaps, with_blend
from benchmarks.study import SAMPLER
from guided_synthesis.guidance.inversion import IMPLICIT
from guided_synthesis.nodes import prompt
from guided_synthesis.nodes.host.inversion import InvertedNoise
from guided_synthesis.nodes.host.perceptual import open_lpips
from guided_synthesis.nodes.prompt_to_prompt import PromptToPromptGuider
from tiny_sd import classifier, data
from tiny_sd.world import draw

FOLDER = KEPT.with_name("photo_edit")
PHOTOS, FIRST = 40, data.HELD_OUT + 90_000
SETTING = Setting(20, 7.5)
RIM = 3  # px around an object that are not background


def texts_found(photos: Photos, part: slice, setting: Setting) -> Start:
    """Null-text optimisation of the one photo of `part`; it is made in batches, and several methods share it."""
    first = part.start - part.start % BATCH
    start = photos.once(fitted, slice(first, min(first + BATCH, len(photos))), setting)
    one = slice(part.start - first, part.stop - first)
    path = start.trajectory
    alone = replace(
        path,
        latents=path.latents[:, one],
        residuals=path.residuals[:, one],
        null_text=path.null_text[:, one],
    )
    return Start(start.latent[one], alone, [[text[one], settings] for text, settings in start.negative])


@dataclass(frozen=True)
class Method:
    """How a photo is inverted, and what of that the guider is given."""

    name: str
    find: Callable[[Photos, slice, Setting], Start]
    follows: bool = False
    """Whether the guider gets the trajectory."""
    source_as_negative: bool = False
    blend: dict | None = None
    """Widgets of Local Blend; None: none."""

    @property
    def file(self) -> Path:
        """Return where the result is kept."""
        return FOLDER / (self.name.replace(", ", "_").replace(" ", "-") + ".pt")


FINE = {"scale": "1/2", "threshold": 0.4}
METHODS = (
    Method("ddim", pivot),
    Method("negative-prompt", pivot, source_as_negative=True),
    Method("implicit", exact(IMPLICIT)),
    Method("null-text", texts_found),
    Method("direct", pivot, follows=True),
    Method("direct + null-text", texts_found, follows=True),
    Method("ddim, Local Blend", pivot, blend={}),
    Method("null-text, Local Blend", texts_found, blend={}),
    Method("direct, Local Blend", pivot, follows=True, blend={}),
    Method("ddim, finer Local Blend", pivot, blend=FINE),
    Method("null-text, finer Local Blend", texts_found, blend=FINE),
    Method("direct, finer Local Blend", pivot, follows=True, blend=FINE),
)


class Bench:
    """The photos, the swaps and what a perfect edit would give."""

    def __init__(self) -> None:
        self.swaps = swaps(FIRST, PHOTOS)
        self.photos = Photos([swap.spec for swap in self.swaps], [swap.spec.caption for swap in self.swaps])
        self.classifier = classifier.load()
        with torch.inference_mode():
            wanted = self.photos.vae.encode(pictures([swap.edited for swap in self.swaps]))
            self.wanted = self.photos.vae.decode(wanted)
        self.background = torch.stack([background(swap) for swap in self.swaps])

    @torch.inference_mode()
    def edited(self, method: Method, index: int) -> Tensor:
        """Return the latents of source and target, (2, C, h, w)."""
        photos, swap, part = self.photos, self.swaps[index], slice(index, index + 1)
        start = method.find(photos, part, SETTING)
        texts = [
            swap.spec.caption,
            swap.edited.caption,
            swap.spec.caption if method.source_as_negative else "",
        ]
        source, target, negative = (prompt.PromptWords.execute(photos.clip, text).args[0] for text in texts)
        if start.negative is not None and not method.follows:
            negative = start.negative
        trajectory = start.trajectory if method.follows else None
        edits = replaced(swap) if method.blend is None else with_blend(swap, method.blend)
        guider = PromptToPromptGuider.execute(
            photos.model, source, target, negative, SETTING.cfg, edits, trajectory
        ).args[0]
        empty = torch.zeros_like(photos.latents[part])
        noise = InvertedNoise(photos.model, start.trajectory).generate_noise({"samples": empty})
        sampler = comfy.samplers.sampler_object(SAMPLER)
        return guider.sample(noise, empty, sampler, photos.sigmas(SETTING.steps), disable_pbar=True).float()

    def keep(self, method: Method) -> None:
        """Edit all photos, unless that is done."""
        if not method.file.exists():
            made = torch.stack([self.edited(method, index) for index in range(len(self.swaps))])
            FOLDER.mkdir(parents=True, exist_ok=True)
            partial_file = method.file.with_suffix(".part")
            torch.save(made, partial_file)
            partial_file.replace(method.file)

    @torch.inference_mode()
    def pair(self, method: Method) -> tuple[Tensor, Tensor]:
        """Return source and target pictures, (N, H, W, 3) each."""
        made = torch.load(method.file, weights_only=True)
        return self.photos.vae.decode(made[:, 0]), self.photos.vae.decode(made[:, 1])

    def recognised(self, images: Tensor, nouns: list[str]) -> float:
        """Return the share of pictures (N, H, W, 3) whose noun is among the classifier's two best."""
        best = self.classifier.names(images.movedim(-1, 1), 2)
        return sum(noun in names for noun, names in zip(nouns, best, strict=True)) / len(nouns)


def background(swap: Swap) -> Tensor:
    """Return (H, W), bool: what an edit should leave alone."""
    scenes = draw(swap.spec), draw(swap.edited)
    changed = np.any(scenes[0].image != scenes[1].image, -1)  # the object, its shadow, soft edges
    for scene in scenes:
        changed |= scene.masks[swap.number]
    wide = max_pool2d(torch.from_numpy(changed).float()[None], 2 * RIM + 1, 1, RIM)[0]
    return wide == 0


@dataclass(frozen=True)
class Row:
    """What the table says of a method; tensors are (N,)."""

    name: str
    outside: Tensor
    """PSNR of the background against the autoencoder's reconstruction of the photo, dB."""
    lpips: Tensor
    """Of the same."""
    target: Tensor
    """PSNR against the true target's reconstruction, dB."""
    new: float
    old: float
    source: Tensor | None
    """PSNR of the source against the reconstruction, dB."""


def judged(
    bench: Bench,
    name: str,
    source: Tensor | None,
    images: Tensor,
    distance: Callable[[Tensor, Tensor], Tensor],
) -> Row:
    """Return the row of edited `images` (N, H, W, 3)."""
    photo, mask = bench.photos.rebuilt, bench.background.unsqueeze(-1)
    error = ((images - photo).square() * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3)))
    only_background = torch.where(mask, images, photo)
    return Row(
        name,
        (-10 * error.log10()).clamp(max=MOST),
        distance(only_background.movedim(-1, 1), photo.movedim(-1, 1)),
        psnr(images, bench.wanted),
        bench.recognised(images, [swap.noun for swap in bench.swaps]),
        bench.recognised(images, [swap.old for swap in bench.swaps]),
        None if source is None else psnr(source, photo),
    )


@torch.inference_mode()
def rows(bench: Bench) -> list[Row]:
    """Return the rows of what is made so far, after those that bound them."""
    install_lpips("alexnet")
    with open_lpips("alex") as distance:
        found = [
            judged(bench, "no edit: the autoencoder's photo", None, bench.photos.rebuilt, distance),
            judged(bench, "the true target after the autoencoder", None, bench.wanted, distance),
        ]
        made = [method for method in METHODS if method.file.exists()]
        return found + [judged(bench, method.name, *bench.pair(method), distance) for method in made]


def table(found: list[Row]) -> str:
    """Return the table of RESULTS.md."""
    base = next((row.outside for row in found if row.name == "ddim"), None)
    lines = [HEAD, "| --- " + "| ---: " * (HEAD.count("|") - 2) + "|"]
    for row in found:
        above = "" if base is None else f"{(row.outside - base).mean():+.1f}"
        cells = [row.name, f"{row.outside.mean():.1f}", above, f"{row.outside.median():.1f}"]
        cells += [f"{row.lpips.mean():.4f}", f"{row.target.mean():.1f}", f"{row.new:.2f}", f"{row.old:.2f}"]
        cells += ["" if row.source is None else f"{row.source.mean():.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def goal(found: list[Row]) -> str:
    """Return the goal of the issue with what was measured."""
    named = {row.name: row for row in found}
    lines = ["| at least 6 dB above ddim, at no loss of recognition | over ddim | new noun | |"]
    lines.append("| --- | ---: | ---: | --- |")
    for blend in ("", ", Local Blend", ", finer Local Blend"):
        for method in ("direct", "null-text", "direct + null-text"):
            row, base = named.get(method + blend), named.get("ddim" + blend)
            if row is not None and base is not None:
                lines.append(_against(row, base))
    return "\n".join(lines)


def _against(row: Row, base: Row) -> str:
    above = (row.outside - base.outside).mean().item()
    error = (row.outside - base.outside).std().item() / len(row.outside) ** 0.5
    nouns = [round(share * len(row.outside)) for share in (row.new, base.new)]
    met = "met" if above >= 6 and nouns[0] >= nouns[1] else "missed"
    return f"| {row.name} | {above:+.2f} +- {error:.2f} dB | {nouns[0]} against {nouns[1]} | {met} |"


def section(bench: Bench) -> str:
    """Return the section of RESULTS.md from what is made so far."""
    found, share = rows(bench), bench.background.float().mean()
    legend = LEGEND.format(share=share)
    return f"{TITLE}\n\n`python run.py bench photo_edit`\n\n{table(found)}\n\n{legend}\n\n{goal(found)}\n"


def run() -> str:
    """Edit with all methods and return the section of RESULTS.md."""
    torch.set_num_threads(1)
    bench = Bench()
    for method in METHODS:
        bench.keep(method)
    return section(bench)


TITLE = f"## Edited photos: a word swapped in {PHOTOS} of them"
HEAD = (
    "| method | background PSNR | over ddim | median | LPIPS | PSNR to the true target | new noun | old noun "
    "| source |"
)
LEGEND = f"""Held-out scenes of two objects, one of them exchanged; {SETTING.steps} steps of euler, {SCHEDULER}, CFG
{SETTING.cfg:g}, Prompt-to-Prompt Guider with Attention Edit (replace) and Local Blend at their defaults. Background:
where the drawings before and after the swap are equal, {RIM} px or more from either object ({{share:.0%}} of the
pixels; it holds the other object); PSNR in dB and LPIPS (AlexNet, ImageNet weights) against the autoencoder's
reconstruction of the photo. PSNR to the true target: of the whole picture, against the autoencoder's reconstruction
of the drawn target. New and old noun: share of pictures in which it is among the classifier's two best. Source: PSNR
of the pair's first picture against the reconstruction. All invert at CFG 1, implicit at {SETTING.cfg:g}."""
