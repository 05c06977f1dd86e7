"""Photos edited by text and perceptual guidance: the table of the paper in kind, on edits with known targets.

A noun of the source caption is exchanged in photos of the demo world (see photo_edit.py). Rows: the inversion alone
with the edited caption, then text optimisation, then perceptual guidance, then its masks. What is made is kept in
`.host/benchmarks/perceptual`, one file for each method, and not made again; delete a file there to do so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from benchmarks import photo_edit
from benchmarks.inversion import (
    BATCH,
    KEPT,
    MOST,
    SCHEDULER,
    Photos,
    Setting,
    Start,
    fitted,
    install_lpips,
    parts,
    pivot,
    psnr,
)
from benchmarks.photo_edit import RIM, SETTING, background
from benchmarks.prompt_to_prompt import swaps
from benchmarks.study import SAMPLER, defaults
from guided_synthesis.nodes import inversion, perceptual_guidance, text_guidance
from guided_synthesis.nodes.host import perceptual_guidance as inner
from guided_synthesis.nodes.host.inversion import InvertedNoise
from guided_synthesis.nodes.host.perceptual import open_lpips
from tiny_sd import classifier, data

FOLDER = KEPT.with_name("perceptual")
# Text guidance's defaults were chosen on edits from HELD_OUT + 150_000, Direct Inversion's threshold on those from
# HELD_OUT + 160_000, Perceptual Guidance's defaults on scenes below HELD_OUT.
EDITS, FIRST = 60, data.HELD_OUT + 140_000

Find = Callable[[Photos, slice, Setting], Start]


AUTO, TRUE, DIRECT = "auto mask", "true mask", "direct inversion auto mask"
INVERSIONS = ("ddim", "null-text")


@dataclass(frozen=True)
class Method:
    """How a photo is inverted, and which nodes guide the edit."""

    name: str
    find: Find
    text: dict | None = None
    """Widgets of the Text Guidance Guider beside its defaults; None: plain CFG on the edited caption."""
    perceptual: dict | None = None
    """Widgets of Perceptual Guidance beside its defaults; None: none."""
    true_mask: bool = False
    """Whether the background is given as the mask, which nobody knows in practice."""
    kept: bool = False
    """Whether Direct Inversion keeps the photo outside of its automatic mask."""

    @property
    def file(self) -> Path:
        """Return where the result is kept."""
        return FOLDER / (self.name.replace(", ", "_").replace(" ", "-") + ".pt")


def _methods(start: str, find: Find, text: dict) -> tuple[Method, ...]:
    """Return the rows of one inversion: plain, with text guidance, and what may be added to that."""
    name = f"{start}, text, perceptual"
    return (
        Method(start, find),
        Method(f"{start}, text", find, text),
        Method(name, find, text, KEEP),
        Method(f"{name}, {AUTO}", find, text, KEEP | {"auto_mask": True}),
        Method(f"{name}, {TRUE}", find, text, KEEP, true_mask=True),
        Method(f"{start}, text, {DIRECT}", find, text, kept=True),
    )


def null_texts(photos: Photos, part: slice, setting: Setting) -> Start:
    """Null-text optimisation along the pivot, made once for all methods."""
    return photos.once(fitted, part, setting)


KEEP = {"net": "alex", "decoder": "linear", "gradient": "through model", "strength": 1.0}
FITTED = {"gamma": SETTING.cfg}  # null-texts are for one scale of the source
METHODS = (*_methods(INVERSIONS[0], pivot, {}), *_methods(INVERSIONS[1], null_texts, FITTED))


class Bench(photo_edit.Bench):
    """Photos, edits, and the demo model."""

    def __init__(self, first: int = FIRST, count: int = EDITS) -> None:
        self.swaps = swaps(first, count)
        self.photos = Photos([swap.spec for swap in self.swaps], [swap.spec.caption for swap in self.swaps])
        self.classifier = classifier.load()
        self.background = torch.stack([background(swap) for swap in self.swaps])

    def edits(self, part: slice) -> list:
        """Return CONDITIONING of the captions after the edit."""
        clip, chosen = self.photos.clip, self.swaps[part]
        texts = [clip.encode_from_tokens(clip.tokenize(swap.edited.caption)) for swap in chosen]
        return [[torch.cat(texts), {}]]

    def guided(self, method: Method, part: slice, start: Start) -> Any:
        """Return MODEL with Perceptual Guidance or Direct Inversion, if the method has it."""
        photos = self.photos
        if method.kept:
            node, chosen = inversion.DirectInversion, {"auto_mask": True}
            return node.execute(photos.model, start.trajectory, **defaults(node) | chosen).args[0]
        if method.perceptual is None:
            return photos.model
        node = perceptual_guidance.PerceptualGuidance
        settings = defaults(node) | method.perceptual
        mask = self.background[part].float() if method.true_mask else None
        return node.execute(photos.model, photos.vae, photos.images[part], mask=mask, **settings).args[0]

    def guider(self, method: Method, part: slice, start: Start) -> Any:
        """Return the GUIDER of a method."""
        photos, model = self.photos, self.guided(method, part, start)
        null = start.negative or photos.text(part, empty=True)
        if method.text is None:
            plain = comfy.samplers.CFGGuider(model)
            plain.set_conds(self.edits(part), null)
            plain.set_cfg(SETTING.cfg)
            return plain
        node = text_guidance.TextGuidanceGuider
        conditions = photos.text(part), self.edits(part), null
        return node.execute(model, *conditions, **defaults(node) | method.text).args[0]

    @torch.inference_mode()
    def made(self, method: Method, part: slice) -> tuple[Tensor, Tensor]:
        """Return latents (B, C, h, w) of the edits of `part`; CPU seconds of sampling and decoder calls, (2,)."""
        photos, start = self.photos, method.find(self.photos, part, SETTING)
        empty = torch.zeros_like(photos.latents[part])
        noise = InvertedNoise(photos.model, start.trajectory).generate_noise({"samples": empty})
        sampler, decoders = comfy.samplers.sampler_object(SAMPLER), []
        began = time.process_time()
        with _noting_decoders(decoders):
            guider = self.guider(method, part, start)
            found = guider.sample(
                noise, empty, sampler, photos.sigmas(SETTING.steps), disable_pbar=True, seed=0
            )
        calls = sum(decoder.calls for decoder in decoders)
        return found.float(), torch.tensor([time.process_time() - began, calls])

    def keep(self, method: Method) -> None:
        """Edit all photos, unless that is done: latents (N, C, h, w), and CPU seconds and decoder calls (P, 2)."""
        if method.file.exists():
            return
        batches = [self.made(method, part) for part in parts(0, len(self.swaps), BATCH)]
        FOLDER.mkdir(parents=True, exist_ok=True)
        partial = method.file.with_suffix(".part")
        torch.save(
            (torch.cat([one[0] for one in batches]), torch.stack([one[1] for one in batches])), partial
        )
        partial.replace(method.file)


@contextmanager
def _noting_decoders(found: list[Any]) -> Iterator[None]:
    """Collect the decoders that Perceptual Guidance opens in the block."""
    original = inner.open_decoder

    @contextmanager
    def noted(*arguments: Any) -> Iterator[Any]:
        with original(*arguments) as decoder:
            found.append(decoder)
            yield decoder

    inner.open_decoder = noted
    try:
        yield
    finally:
        inner.open_decoder = original


@dataclass(frozen=True)
class Row:
    """What the table says of a method; tensors are (N,)."""

    name: str
    psnr: Tensor
    """Of the whole picture against the photo, dB."""
    alex: Tensor
    """LPIPS of the same."""
    vgg: Tensor
    new: int
    """In how many pictures the new noun is recognised."""
    old: int
    outside: Tensor
    """PSNR of the background against the autoencoder's reconstruction of the photo, dB."""
    outside_alex: Tensor
    outside_vgg: Tensor
    seconds: float
    """CPU seconds of sampling for a picture."""
    decodes: float
    """Decoder calls for a batch."""


Distance = Callable[[Tensor, Tensor], Tensor]


class Judge:
    """What is said of pictures of `bench`; LPIPS with both networks."""

    def __init__(self, bench: Bench, alex: Distance, vgg: Distance) -> None:
        self.bench, self.alex, self.vgg = bench, alex, vgg

    def row(self, name: str, images: Tensor, cost: Tensor | None = None) -> Row:
        """Return the row of `images` (N, H, W, 3)."""
        bench, photo = self.bench, self.bench.photos.images
        rebuilt, mask = bench.photos.rebuilt, bench.background.unsqueeze(-1)
        error = ((images - rebuilt).square() * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3)))
        only_background = torch.where(mask, images, rebuilt)
        named = [
            round(len(images) * bench.recognised(images, [getattr(swap, noun) for swap in bench.swaps]))
            for noun in ("noun", "old")
        ]
        return Row(
            name,
            psnr(images, photo),
            _apart(self.alex, images, photo),
            _apart(self.vgg, images, photo),
            *named,
            (-10 * error.log10()).clamp(max=MOST),
            _apart(self.alex, only_background, rebuilt),
            _apart(self.vgg, only_background, rebuilt),
            0.0 if cost is None else cost[:, 0].sum().item() / len(images),
            0.0 if cost is None else cost[:, 1].mean().item(),
        )


def _apart(distance: Distance, images: Tensor, others: Tensor) -> Tensor:
    """Return LPIPS (N,) of pictures (N, H, W, 3), ten at a time."""
    pairs = zip(images.movedim(-1, 1).split(10), others.movedim(-1, 1).split(10), strict=True)
    return torch.cat([distance(*pair) for pair in pairs])


@torch.inference_mode()
def rows(bench: Bench) -> list[Row]:
    """Return the rows of all methods that are made so far, after the one that bounds them."""
    install_lpips("alexnet", "vgg16")
    with open_lpips("alex") as alex, open_lpips("vgg") as vgg:
        judge, decode = Judge(bench, alex, vgg), bench.photos.vae.decode
        found = [judge.row("no edit: the autoencoder's photo", bench.photos.rebuilt)]
        for method in METHODS:
            if method.file.exists():
                latents, cost = torch.load(method.file, weights_only=True)
                found.append(judge.row(method.name, decode(latents), cost))
        return found


def table(found: list[Row]) -> str:
    """Return the table of RESULTS.md."""
    lines = [HEAD, "| --- " + "| ---: " * (HEAD.count("|") - 2) + "|"]
    for row in found:
        count = len(row.psnr)
        cells = [row.name, f"{row.psnr.mean():.2f}", f"{row.alex.mean():.4f}", f"{row.vgg.mean():.4f}"]
        cells += [f"{row.new / count:.2f}", f"{row.old / count:.2f}", f"{row.outside.mean():.1f}"]
        cells += [f"{row.outside_alex.mean():.4f}", f"{row.outside_vgg.mean():.4f}"]
        cells += [f"{row.seconds:.2f}" if row.seconds else "", f"{row.decodes:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def goals(found: list[Row]) -> str:
    """Return the goal of the issue with what was measured, for each inversion."""
    named = {row.name: row for row in found}
    lines = [GOAL_HEAD, "| --- | ---: | ---: | ---: | --- |"]
    for start in INVERSIONS:
        for masked in (f"perceptual, {AUTO}", f"perceptual, {TRUE}", DIRECT):
            row, base = named.get(f"{start}, text, {masked}"), named.get(f"{start}, text")
            if row is not None and base is not None:
                lines.append(_goal(row, base))
    return "\n".join(lines)


def _goal(row: Row, base: Row) -> str:
    alex = (row.outside_alex.mean() / base.outside_alex.mean()).item()
    vgg = (row.outside_vgg.mean() / base.outside_vgg.mean()).item()
    met = "met" if max(alex, vgg) <= 0.5 and row.new >= base.new else "missed"
    return f"| {row.name} | {alex:.2f} | {vgg:.2f} | {row.new} against {base.new} | {met} |"


def section(found: list[Row]) -> str:
    """Return the section of RESULTS.md, with what is not made yet."""
    names = {row.name for row in found}
    missing = "; ".join(method.name for method in METHODS if method.name not in names)
    left = f"Not made yet: {missing}.\n\n" if missing else ""
    head = f"{TITLE}\n\n`python run.py bench perceptual`\n\n{table(found)}\n\n"
    return f"{head}{left}{LEGEND}\n\n{PAPER}\n\n{goals(found)}\n"


def run() -> str:
    """Edit with all methods and return the section of RESULTS.md."""
    torch.set_num_threads(1)
    bench = Bench()
    for method in METHODS:
        bench.keep(method)
    return section(rows(bench))


TITLE = f"## Text and perceptual guidance: a word swapped in {EDITS} photos"
HEAD = (
    "| method | PSNR | LPIPS alex | LPIPS vgg | new noun | old noun | background PSNR | its LPIPS alex | its LPIPS vgg "
    "| s | decodes |"
)
GOAL_HEAD = "| background LPIPS at most half of text's, at no loss of recognition | alex | vgg | new noun | |"
LEGEND = f"""Held-out photos of two objects, one of them exchanged in the caption; inverted by DDIM at CFG 1, sampled
with {SETTING.steps} steps of euler, {SCHEDULER}. `ddim`: plain CFG {SETTING.cfg:g} on the edited caption from that
noise, with an empty negative; `null-text`: with texts fitted for {SETTING.cfg:g} as the negative. `text`: the Text
Guidance Guider at its defaults, with null-texts at gamma {FITTED["gamma"]:g}.
`perceptual`: Perceptual Guidance with the photo, gradient {KEEP["gradient"]}, decoder {KEEP["decoder"]}, net
{KEEP["net"]}, strength {KEEP["strength"]:g}, at every step: so LPIPS alex is what it minimises, and LPIPS vgg the judge
that it has not seen.
`{DIRECT}`: no perceptual guidance; the photo's own path outside of what the edit changes.
`{AUTO}`: found from the guider's two predictions. `{TRUE}`: the background of the drawn scenes, which nobody knows: a
bound. PSNR (dB) and LPIPS (ImageNet weights) of the whole picture are against the photo, and the edited object counts
as an error, as in the paper; those of the background are against the autoencoder's reconstruction, where the drawings
before and after the edit are equal, {RIM} px or more from either object. Nouns: share of pictures in which they are
among the classifier's two best. s: CPU seconds of sampling for a picture, one thread, in batches of {BATCH}; inverting
takes 0.3 s, null-texts 6.3 s. Decodes: for a batch; `linear` is a product of matrices, not a network."""
PAPER = """The paper, on Flickr8k with Stable Diffusion, for direction (CLIPScore in the place of recognition):

| | PSNR | LPIPS | CLIPScore |
| --- | ---: | ---: | ---: |
| null-text | 20.26 | 0.1857 | 28.58 |
| text optimisation | 20.02 | 0.1919 | 30.43 |
| text optimisation, perceptual | 20.12 | 0.1894 | 30.57 |"""
