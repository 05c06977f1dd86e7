"""Saliency noise on the demo world: does the object of another prompt stand where the reference's object stood?

References show one object away from the middle, prompts ask for another one. What a picture shows is judged by the
demo classifier, whose network has nothing to do with the one that makes the noise; where it stands, by the demo model's
own attention to its word. What is made is kept in `.host/benchmarks/saliency`, one
file for each inversion and row, and not made again; delete a file there to do so.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import comfy.sample
import comfy.samplers
import numpy as np
import torch
from torch import Tensor

from benchmarks.inversion import KEPT
from benchmarks.realism import Measured, Realism
from benchmarks.study import CELLS, SAMPLER, SCHEDULER
from guided_synthesis.guidance.gradient_matching import GradientMatching
from guided_synthesis.guidance.inverting import Descent, Inverter
from guided_synthesis.guidance.noise_statistics import standardised
from guided_synthesis.nodes.host import saliency
from guided_synthesis.nodes.host.classifiers import load_classifier
from guided_synthesis.nodes.host.encoders import Encoder
from guided_synthesis.nodes.host.noises import StructuredNoise
from tiny_sd import classifier, data, measure, resnet
from tiny_sd.host_model import load_demo_model
from tiny_sd.world import PLACES, SIZE, Scene, draw, make_spec

FOLDER = KEPT.with_name("saliency")
REFERENCES, SEEDS, FIRST = 30, (1000, 2000, 3000, 4000), data.HELD_OUT + 150_000  # tried on others
INVERTED = 6  # of the references, for searches of minutes each: the paper's over pixels, and through the VAE
OFF = 0.1  # how far from the middle the reference's object is at least, of the width
STEPS, CFG, BATCH, REAL = 20, 5.0, 24, 400
TIMESTEP, LEAST = (
    100,
    0.3,
)  # of the attention maps; on 120 drawn scenes they are 0.03 of the side off the masks' centres
INVERSION, SEARCHED = (1000, 3000, 5000), 500  # steps of gradient inversion, over pixels and over the latent
PAPER = {"learning_rate": 0.1, "signed": True, "total_variation": 1e-4, "cosine": False}
SHAPE = (1, 4, CELLS, CELLS)


@cache
def references() -> list[Scene]:
    """Return drawn scenes of one object away from the middle, half of them on each side or nearly so."""
    found, seed = [], FIRST
    while len(found) < REFERENCES:
        spec = make_spec(seed, things=1)
        if abs(spec.things[0].x - 0.5) > OFF:
            found.append(draw(spec))
        seed += 1
    return found


def centres() -> Tensor:
    """Return where the references' objects are, (N, 2): x and y of their masks' centres, of the side."""
    places = [np.nonzero(scene.masks[0])[::-1] for scene in references()]
    return torch.tensor([[(axis.mean() + 0.5) / SIZE for axis in place] for place in places]).float()


@cache
def prompts() -> list[tuple[str, str]]:
    """Return for each reference the noun of the target, another one than its own, and the prompt."""
    rng, found = random.Random(5), []
    for scene in references():
        noun = rng.choice([name for name in classifier.NAMES if name != scene.spec.things[0].noun])
        article = "an" if noun[0] in "aeiou" else "a"
        found.append((noun, f"a photo of {article} {noun} {rng.choice(list(PLACES.values()))}"))
    return found


class Bench:
    """The demo model, its classifier, and what they make."""

    def __init__(self) -> None:
        self.model, self.clip, self.vae = load_demo_model()
        self.classifier = load_classifier(resnet.WEIGHTS, None)
        sampling = self.model.get_model_object("model_sampling")
        self.sigmas = comfy.samplers.calculate_sigmas(sampling, SCHEDULER, STEPS)

    def scene(self, number: int, decoder: str = "linear") -> saliency.Scene:
        """Return a reference as the node sees it."""
        scene = references()[number]
        label = self.classifier.index(scene.spec.things[0].noun)
        picture = classifier.pictures([scene.image])
        return saliency.Scene(self.model, self.vae, self.classifier, picture, label, decoder)

    def guider(self, texts: list[str]) -> Any:
        """Return a GUIDER that samples `texts`."""
        guider = comfy.samplers.CFGGuider(self.model)
        guider.set_conds(self._conditioning(texts), self._conditioning([""] * len(texts)))
        guider.set_cfg(CFG)
        return guider

    def _conditioning(self, texts: list[str]) -> list:
        return [[torch.cat([self.clip.encode_from_tokens(self.clip.tokenize(text)) for text in texts]), {}]]

    @torch.inference_mode()
    def sampled(self, noise: Tensor) -> Tensor:
        """Return latents of the first N prompts, seed by seed, from `noise` (seeds * N, C, h, w)."""
        count, made = len(noise) // len(SEEDS), []
        texts = [prompt for _, prompt in prompts()[:count]] * len(SEEDS)
        sampler = comfy.samplers.sampler_object(SAMPLER)
        for start in range(0, len(noise), BATCH):
            part = noise[start : start + BATCH]
            guider = self.guider(texts[start : start + BATCH])
            settings = (torch.zeros_like(part), sampler, self.sigmas)
            made.append(guider.sample(part, *settings, disable_pbar=True, seed=1).float())
        return torch.cat(made)

    def places(self, latents: Tensor, count: int) -> Tensor:
        """Return where the targets of the first `count` prompts are in `latents`, seed by seed, (B, 2): x and y.

        The mean of the cells that look at the target's word, of those above a share of the strongest.
        """
        clean = self.model.model.process_latent_in(latents)
        words = [(prompt, [noun]) for noun, prompt in prompts()[:count]] * len(SEEDS)
        host, cells = measure.Host(self.model, self.clip, self.vae), []
        for start in range(0, len(clean), BATCH):
            part = slice(start, start + BATCH)
            cells += [found[0] for found in measure.word_maps(host, clean[part], words[part], TIMESTEP)]
        maps = torch.stack(cells)
        maps = (maps - LEAST * maps.amax((1, 2), keepdim=True)).clamp(0)
        shares, at = (
            maps / maps.sum((1, 2), keepdim=True),
            (torch.arange(maps.shape[-1]) + 0.5) / maps.shape[-1],
        )
        return torch.stack([shares.sum(1) @ at, shares.sum(2) @ at], 1)

    @torch.inference_mode()
    def pictures(self, latents: Tensor) -> Tensor:
        """Return RGB (B, 3, H, W) of latents."""
        return self.vae.decode(latents).movedim(-1, 1).clone()


def kept(name: str, make: Callable[[], Any]) -> Any:
    """Return what `make()` returns, from the file if it was made before."""
    path = FOLDER / f"{name}.pt"
    if not path.exists():
        made = make()
        FOLDER.mkdir(parents=True, exist_ok=True)
        torch.save(made, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    return torch.load(path, weights_only=True)


def inverted(bench: Bench, number: int) -> dict[int, Tensor]:
    """Return the pictures (1, 3, H, W) that the paper's own search has after so many steps, for a reference."""

    def make() -> dict[str, Any]:
        began, scene, pictures, objective = time.process_time(), bench.scene(number), {}, []
        with scene.classifier.opened() as network, torch.inference_mode(False), torch.enable_grad():
            matching = GradientMatching(network, scene.classifier.prepare, scene.reference, scene.label)
            random_ = torch.Generator().manual_seed(100 + number)
            start = 0.5 + 0.5 * torch.randn(scene.reference.shape, generator=random_)
            run = Inverter(start, lambda x: x, matching, Descent(INVERSION[-1], **PAPER))
            while run.done < INVERSION[-1]:
                objective.append(run.step())
                if run.done in INVERSION:
                    pictures[run.done] = run.latent.half()
        return {"pictures": pictures, "objective": objective, "seconds": time.process_time() - began}

    return {steps: x.float() for steps, x in kept(f"inversion_{number}", make)["pictures"].items()}


Source = Callable[[Bench, int], Tensor]


def from_pixels(bench: Bench, number: int, steps: int) -> Tensor:
    """Return gradient inversion over pixels, encoded: the paper's closest analogue."""
    return standardised(Encoder(bench.vae, bench.model)(inverted(bench, number)[steps]))


def from_default(bench: Bench, number: int, space: str, decoder: str) -> Tensor:
    """Return gradient inversion as the node does it by default."""
    matching = saliency.Matching(Descent(), "all", space, number)

    def make() -> Tensor:
        return saliency.from_gradients(bench.scene(number, decoder), matching, lambda *_: None).noise.clone()

    return kept(f"default_{space}_{decoder}_{number}", make)


def from_latent(bench: Bench, number: int, steps: int) -> Tensor:
    """Return gradient inversion over the latent, seen through the linear decoder, by the paper's search."""
    matching = saliency.Matching(Descent(steps, **PAPER), "all", saliency.LATENT, number)

    def make() -> Tensor:
        return saliency.from_gradients(bench.scene(number), matching, lambda *_: None).noise.clone()

    return kept(f"latent_{steps}_{number}", make)


def from_features(bench: Bench, number: int) -> Tensor:
    """Return the classifier's last features, the same in every channel."""
    return saliency.from_features(bench.scene(number)).noise


def from_saliency(bench: Bench, number: int) -> Tensor:
    """Return Grad-CAM, the same in every channel."""
    return saliency.from_saliency(bench.scene(number)).noise


def from_sign(bench: Bench, number: int) -> Tensor:
    """Return the sign of the gradient at the encoded reference."""
    return saliency.from_sign(bench.scene(number, "vae")).noise


def from_reference(bench: Bench, number: int) -> Tensor:
    """Return the reference's own latent: no classifier at all."""
    return standardised(Encoder(bench.vae, bench.model)(bench.scene(number).reference))


def with_contrast(bench: Bench, number: int, source: Source) -> Tensor:
    """Return the structure of `source` in the contrast of what the prompt paints, as with a guider at the node."""
    structure, guider = source(bench, number), bench.guider([prompts()[number][1]])
    made = saliency.Structure(structure, structure)
    return saliency.with_contrast(made, bench.scene(number), guider, number).noise


MOVES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "": (lambda noise: noise, lambda at: at),
    "mirrored": (lambda noise: noise.flip(-1), lambda at: torch.stack([1 - at[:, 0], at[:, 1]], 1)),
    "half turn": (lambda noise: noise.rot90(2, (-2, -1)), lambda at: 1 - at),
    "quarter turn": (
        lambda noise: noise.rot90(-1, (-2, -1)),
        lambda at: torch.stack([1 - at[:, 1], at[:, 0]], 1),
    ),
}


@dataclass(frozen=True)
class Row:
    """A way to make the noise."""

    name: str
    source: Source | None = None
    blend: float = 0.5
    contrast: bool = False
    move: str = ""
    count: int = REFERENCES
    """Of the references, the first ones."""

    @property
    def title(self) -> str:
        """Return what the table calls it."""
        few = f"first {self.count}" if self.count < REFERENCES else ""
        parts = [self.name, "contrast of the prompt" * self.contrast, self.move, few]
        return ", ".join(part for part in parts if part)

    @property
    def file(self) -> str:
        """Return the name under which its latents are kept."""
        return f"{self.title}_{self.blend:g}".replace(", ", "_").replace(" ", "-").replace("'", "")

    @property
    def made(self) -> bool:
        """Tell whether they are kept already."""
        return (FOLDER / f"{self.file}.pt").exists()

    def latents(self, bench: Bench) -> Tensor:
        """Return the sampled latents, seed by seed."""
        return kept(self.file, lambda: bench.sampled(MOVES[self.move][0](self._noise(bench))))

    @torch.inference_mode()
    def _noise(self, bench: Bench) -> Tensor:
        latent = {"samples": torch.zeros(SHAPE)}
        runs = [(seed, number) for seed in SEEDS for number in range(self.count)]
        if self.source is None:
            empty = [comfy.sample.prepare_noise(latent["samples"], seed + number) for seed, number in runs]
            return torch.cat(empty)
        source = partial(with_contrast, source=self.source) if self.contrast else self.source
        structures = [source(bench, number) for number in range(self.count)]
        made = [
            StructuredNoise(structures[n], seed + n, self.blend).generate_noise(latent) for seed, n in runs
        ]
        return torch.cat(made)


def _inversion(steps: int, contrast: bool = False) -> Row:
    name = f"gradient inversion, pixels, {steps} steps"
    return Row(name, partial(from_pixels, steps=steps), contrast=contrast, count=INVERTED)


def _default(space: str, decoder: str = "linear", contrast: bool = False) -> Row:
    name = f"gradient inversion, {space}{f' ({decoder})' * (space == saliency.LATENT)}, default"
    source = partial(from_default, space=space, decoder=decoder)
    return Row(name, source, contrast=contrast, count=INVERTED if decoder == "vae" else REFERENCES)


def _searched(contrast: bool = False) -> Row:
    name = f"gradient inversion, latent, {SEARCHED} steps"
    return Row(name, partial(from_latent, steps=SEARCHED), contrast=contrast)


DEFAULTS = ((saliency.PIXELS,), (saliency.LATENT, "linear"), (saliency.LATENT, "vae"))
PLAIN = Row("plain noise", blend=1.0)
BLENDS, BEST = (0.0, 0.25, 0.5, 0.8, 0.9, 0.97), 0.8
ROWS = (
    PLAIN,
    Row("the reference's own latent", from_reference),
    _searched(),
    *[_default(*way) for way in DEFAULTS],
    Row("feature map", from_features),
    Row("FGSM", from_sign),
    Row("the reference's own latent", from_reference, contrast=True),
    _searched(contrast=True),
    *[_default(*way, contrast=True) for way in DEFAULTS],
    Row("FGSM", from_sign, contrast=True),
    Row("saliency", from_saliency),
    *[Row("saliency", from_saliency, blend, contrast=True) for blend in (0.5, BEST)],
    *[Row("feature map", from_features, blend, contrast=True) for blend in BLENDS],
    Row(PLAIN.name, blend=1.0, count=INVERTED),
    *[_inversion(steps) for steps in INVERSION],
    *[_inversion(steps, contrast=True) for steps in INVERSION],
    Row("feature map", from_features, contrast=True, count=INVERTED),
)
MOVED = (
    *[Row("saliency", from_saliency, BEST, True, move) for move in MOVES],
    *[Row(PLAIN.name, None, 1.0, False, move) for move in MOVES],
)


@dataclass(frozen=True)
class Verdict:
    """What the judge says of a row; the order is that of the pictures."""

    at: Tensor
    """(B, 2): where the target is."""
    named: Tensor
    """(B,): is the target what it sees first."""
    distance: Measured
    """To real scenes."""


@cache
def _realism() -> Realism:
    scenes = [draw(make_spec(FIRST + 50_000 + index, things=1)).image for index in range(REAL)]
    return Realism(classifier.pictures(scenes))


@torch.inference_mode()
def judged(bench: Bench, row: Row) -> Verdict:
    """Return what the judge says of the pictures of a row."""
    judge, latents = classifier.load(), row.latents(bench)
    pictures = bench.pictures(latents).clamp(0, 1)
    nouns = [noun for noun, _ in prompts()[: row.count]] * len(SEEDS)
    named = torch.tensor([found[0] == noun for found, noun in zip(judge.names(pictures), nouns, strict=True)])
    scenes = torch.arange(row.count).repeat(len(SEEDS))
    return Verdict(bench.places(latents, row.count), named, _realism().measure(pictures, scenes))


def expected(row: Row) -> Tensor:
    """Return where the object is to be, (B, 2)."""
    return MOVES[row.move][1](centres()[: row.count]).repeat(len(SEEDS), 1)


def correlation(first: Tensor, second: Tensor) -> float:
    """Return Pearson's correlation of two (B,)."""
    return torch.corrcoef(torch.stack([first, second]))[0, 1].item()


def line(bench: Bench, row: Row) -> str:
    """Return the line of the first table."""
    seen, want = judged(bench, row), expected(row)
    away = (seen.at - want).norm(dim=1).mean()
    cells = [f"{correlation(seen.at[:, axis], want[:, axis]):.2f}" for axis in (0, 1)]
    share = seen.named.float().mean()
    distance = f"{seen.distance.value:.3f} +- {seen.distance.error:.3f}"
    return f"| {row.title} | {row.blend:g} | {' | '.join(cells)} | {away:.3f} | {share:.2f} | {distance} |"


def moved_line(bench: Bench, row: Row) -> str:
    """Return the line of the second table: does the object follow the noise?"""
    seen, want = judged(bench, row), expected(row)
    axis = 1 if row.move == "quarter turn" else 0  # along which the references differ
    one, other = seen.at[:, axis], want[:, axis]
    side = ((one > one.median()) == (other > other.median())).float().mean()
    share = seen.named.float().mean()
    name = f"{row.name}, as made" if not row.move else f"{row.name}, {row.move}"
    return f"| {name} | {'xy'[axis]} | {side:.2f} | {correlation(one, other):.2f} | {share:.2f} |"


def section(bench: Bench) -> str:
    """Return the section of RESULTS.md, with the rows that are made so far."""
    first = "\n".join([HEAD, *(line(bench, row) for row in ROWS if row.made)])
    second = "\n".join([MOVED_HEAD, *(moved_line(bench, row) for row in MOVED if row.made)])
    missing = "; ".join(row.title for row in (*ROWS, *MOVED) if not row.made)
    left = [f"Not made yet: {missing}."] if missing else []
    parts = [TITLE, "`python run.py bench saliency`", first, LEGEND, second, MOVED_LEGEND, *left]
    return "\n\n".join(parts) + "\n"


def run() -> str:
    """Sample all rows and return the section of RESULTS.md."""
    torch.set_num_threads(1)
    bench = Bench()
    for row in (*ROWS, *MOVED):
        row.latents(bench)
    return section(bench)


TITLE = f"## Saliency noise: {REFERENCES} references, {len(SEEDS)} seeds each"
HEAD = """| structure | blend | x | y | distance | named | to real scenes |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |"""
LEGEND = f"""{STEPS} steps of {SAMPLER}, {SCHEDULER}, CFG {CFG:g}; the prompt names another object and no place ("a
photo of a fox in the snow"), which in this model means the middle. x, y: correlation of where the target is with where
the reference's object was; distance: between the two, of the side. Where: the centre of the cross-attention map of the
target's word at t = {TIMESTEP} (on drawn scenes 0.03 off the centre of the object's mask). Named: the target is the
classifier's first noun. To real scenes: kernel distance of
AlexNet's features."""
MOVED_HEAD = """| noise | axis | on the side | correlation | named |
| --- | --- | ---: | ---: | ---: |"""
MOVED_LEGEND = """The same noise, mirrored or turned before it is sampled. On the side: the share of pictures in which
the target is on that side of the median, along the axis in which the references differ, on which the moved noise says
it is (chance 0.50)."""
