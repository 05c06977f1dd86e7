"""Composition on the demo world: two and three objects by AND, an object taken out by NOT.

A prompt of several objects stands against one prompt for each. What is sampled is kept in
`.host/benchmarks/composition`, one file for each method, and not made again; delete a file there to do so.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from benchmarks.inversion import KEPT
from benchmarks.study import BATCH, CELLS, CFG, SAMPLER, SCHEDULER
from guided_synthesis.guidance import composition as formula
from guided_synthesis.nodes import composition
from tiny_sd import classifier
from tiny_sd.art import NOUNS
from tiny_sd.host_model import load_demo_model
from tiny_sd.world import PLACES, WALLS

FOLDER = KEPT.with_name("composition")
SCENES, STEPS = 60, 15
SURE = 0.5  # the classifier's score from which on an object is there


@dataclass(frozen=True)
class Scene:
    """What a picture shall show: nouns with their articles, and a place."""

    objects: tuple[str, ...]
    place: str

    @property
    def nouns(self) -> list[str]:
        """Return the nouns alone."""
        return [words.split()[1] for words in self.objects]


def scenes(count: int, objects: int, seed: int) -> list[Scene]:
    """Return random scenes."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        nouns, place = rng.sample(list(NOUNS), objects), rng.choice([*PLACES] * 2 + [*WALLS])
        words = tuple(("an " if noun[0] in "aeiou" else "a ") + noun for noun in nouns)
        found.append(Scene(words, PLACES.get(place) or f"in front of a {place} wall"))
    return found


Text = Callable[[Scene], str]


def sentence(scene: Scene) -> str:
    """All objects in one sentence, the grammar of the training captions."""
    return f"a photo of {' and '.join(scene.objects)} {scene.place}"


def chained(scene: Scene) -> str:
    """The prompts of the objects, one after the other."""
    return ", ".join(one(number)(scene) for number in range(len(scene.objects)))


def one(number: int, where: str = "") -> Text:
    """The prompt of one object."""
    return lambda scene: f"a photo of {scene.objects[number]}{where} {scene.place}"


def thing(number: int) -> Text:
    """The prompt of one object, without the place."""
    return lambda scene: f"a photo of {scene.objects[number]}"


class Bench:
    """The demo model and its classifier."""

    def __init__(self) -> None:
        self.model, self.clip, self.vae = load_demo_model()
        self.classifier = classifier.load()
        sampling = self.model.get_model_object("model_sampling")
        self.sigmas = comfy.samplers.calculate_sigmas(sampling, SCHEDULER, STEPS)

    def text(self, text: Text, batch: list[Scene]) -> list:
        """Return CONDITIONING of the batch."""
        tokens = [self.clip.tokenize(text(scene)) for scene in batch]
        return [[torch.cat([self.clip.encode_from_tokens(each) for each in tokens]), {}]]

    def empty(self, batch: list[Scene]) -> list:
        """Return CONDITIONING of no words."""
        return self.text(lambda scene: "", batch)

    @torch.inference_mode()
    def sampled(self, guider: Callable[[Bench, list[Scene]], Any], chosen: list[Scene]) -> Tensor:
        """Return latents (N, C, h, w) of the scenes."""
        made = []
        for start in range(0, len(chosen), BATCH):
            batch, seed = chosen[start : start + BATCH], 1000 + start
            empty = torch.zeros(len(batch), 4, CELLS, CELLS)
            noise = comfy.sample.prepare_noise(empty, seed)
            sampler = comfy.samplers.sampler_object(SAMPLER)
            own = guider(self, batch)
            made.append(own.sample(noise, empty, sampler, self.sigmas, disable_pbar=True, seed=seed))
        return torch.cat(made)

    def scores(self, images: Tensor, chosen: list[Scene]) -> Tensor:
        """Return how surely each object of its scene is in each picture, (N, objects)."""
        found = self.classifier.scores(images)
        columns = [[classifier.NAMES.index(noun) for noun in scene.nouns] for scene in chosen]
        return found.gather(1, torch.tensor(columns))

    def named(self, images: Tensor, chosen: list[Scene]) -> Tensor:
        """Return which objects of its scene are among the best nouns of each picture, (N, objects), bool."""
        best = self.classifier.names(images, len(chosen[0].objects))
        return torch.tensor(
            [[noun in names for noun in scene.nouns] for scene, names in zip(chosen, best, strict=True)]
        )


def host(*texts: Text, negative: Text | None = None, average: bool = False) -> Callable:
    """The host's CFG; of several texts its Conditioning (Combine), or (Average) at one half."""

    def make(bench: Bench, batch: list[Scene]) -> Any:
        positive = [bench.text(text, batch)[0] for text in texts]
        if average:
            positive = [[torch.stack([text for text, _ in positive]).mean(0), {}]]
        guider = comfy.samplers.CFGGuider(bench.model)
        guider.set_conds(positive, bench.text(negative, batch) if negative else bench.empty(batch))
        guider.set_cfg(CFG)
        return guider

    return make


def ours(*terms: tuple[Text, float], halves: bool = False) -> Callable:
    """The Compose Guider; with `halves` each of two terms has the left or the right half of the picture."""

    def make(bench: Bench, batch: list[Scene]) -> Any:
        chain = None
        for number, (text, weight) in enumerate(terms):
            conditioning = bench.text(text, batch)
            if halves:
                conditioning[0][1] = {"mask": half(number), "mask_strength": 1.0}
            chain = composition.Compose.execute(conditioning, weight, chain).args[0]
        return composition.ComposeGuider.execute(bench.model, chain, bench.empty(batch), CFG).args[0]

    return make


def half(number: int) -> Tensor:
    """Return a MASK (1, h, w) of the left (0) or right (1) half."""
    mask = torch.zeros(1, CELLS, CELLS)
    mask[..., number * CELLS // 2 : (number + 1) * CELLS // 2] = 1
    return mask


def raw(unwanted: Tensor, wanted: Tensor) -> Tensor:
    """Composable diffusion as published: NOT without a bound."""
    return unwanted


def perpendicular(unwanted: Tensor, wanted: Tensor) -> Tensor:
    """Perp-Neg (arXiv 2304.04968): what NOT has in common with AND is taken out of it, sample by sample."""
    axes = tuple(range(1, wanted.ndim))
    shared = (unwanted * wanted).sum(axes, keepdim=True) / wanted.square().sum(axes, keepdim=True)
    return unwanted - shared * wanted


@dataclass(frozen=True)
class Method:
    """A row of a table."""

    name: str
    guider: Callable[[Bench, list[Scene]], Any]
    bound: Callable[[Tensor, Tensor], Tensor] | None = None
    """In the place of our own."""

    def __call__(self, bench: Bench, chosen: list[Scene], table: str) -> Tensor:
        """Return the latents of the scenes, from the file if they were made before."""
        name = f"{table}_{self.name}".replace(", ", "_").replace(" ", "-").replace("/", "-")
        file = FOLDER / f"{name}.pt"
        if not file.exists():
            with self.bounding():
                made = bench.sampled(self.guider, chosen)
            FOLDER.mkdir(parents=True, exist_ok=True)
            torch.save(made, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
        return torch.load(file, weights_only=True)

    def bounding(self) -> AbstractContextManager:
        """Put another bound in the place of ours while a block runs."""
        return patch.object(formula, "bounded", self.bound) if self.bound else nullcontext()


TWO = (
    Method("one sentence", host(sentence)),
    Method("prompts in a row", host(chained)),
    Method("Conditioning (Average)", host(one(0), one(1), average=True)),
    Method("Conditioning (Combine)", host(one(0), one(1))),
    Method("AND, weights 0.5", ours((one(0), 0.5), (one(1), 0.5))),
    Method("AND, weights 0.7", ours((one(0), 0.7), (one(1), 0.7))),
    Method(
        "AND, a mask each", ours((one(0, " on the left"), 1.0), (one(1, " on the right"), 1.0), halves=True)
    ),
)
THREE = (
    Method("one sentence", host(sentence)),
    Method("AND, weights 0.5", ours(*[(one(number), 0.5) for number in range(3)])),
)
WITH, NOT = (sentence, 1.0), thing(1)
WITHOUT = (
    Method("no NOT", host(sentence)),
    Method("negative prompt of the host", host(sentence, negative=NOT)),
    Method("NOT -1, no bound", ours(WITH, (NOT, -1.0)), raw),
    Method("NOT -1, Perp-Neg", ours(WITH, (NOT, -1.0)), perpendicular),
    Method("NOT -1", ours(WITH, (NOT, -1.0))),
    Method("NOT -3, no bound", ours(WITH, (NOT, -3.0)), raw),
    Method("NOT -3", ours(WITH, (NOT, -3.0))),
)


@torch.inference_mode()
def together(bench: Bench, methods: tuple[Method, ...], table: str, objects: int) -> str:
    """Return the table of AND."""
    chosen, lines = scenes(SCENES, objects, objects), []
    for method in methods:
        latents = method(bench, chosen, table)
        images = bench.vae.decode(latents).movedim(-1, 1)
        named, sure = bench.named(images, chosen), bench.scores(images, chosen) > SURE
        cells = [f"{named.all(1).float().mean():.2f}", f"{sure.all(1).float().mean():.2f}"]
        cells += [f"{named.float().sum(1).mean():.2f}", *spread(latents, images)]
        lines.append(f"| {' | '.join([method.name, *cells])} |")
    return "\n".join([AND_HEAD.format(count=objects), *lines])


@torch.inference_mode()
def taken_out(bench: Bench) -> str:
    """Return the table of NOT: objects that were there without it."""
    chosen, lines, there = scenes(SCENES, 2, 7), [], None
    for method in WITHOUT:
        latents = method(bench, chosen, "not")
        images = bench.vae.decode(latents).movedim(-1, 1)
        named, sure = bench.named(images, chosen), bench.scores(images, chosen) > SURE
        there = sure.all(1) if there is None else there
        gone, stays = ~sure[there, 1], sure[there, 0]
        cells = [f"{int(there.sum())}", f"{gone.float().mean():.2f}", f"{stays.float().mean():.2f}"]
        cells += [f"{(gone & stays).float().mean():.2f}", f"{(~named[there, 1]).float().mean():.2f}"]
        lines.append(f"| {' | '.join([method.name, *cells, *spread(latents, images)])} |")
    return "\n".join([NOT_HEAD, *lines])


def spread(latents: Tensor, images: Tensor) -> list[str]:
    """Return the root mean square of the latents and the share of colours at an end of their range."""
    ends = (images <= 0.5 / 255) | (images >= 254.5 / 255)
    return [f"{latents.square().mean().sqrt():.1f}", f"{ends.float().mean():.1%}"]


def run() -> str:
    """Make all tables and return the section of RESULTS.md."""
    torch.set_num_threads(1)
    bench = Bench()
    tables = together(bench, TWO, "two", 2), together(bench, THREE, "three", 3), taken_out(bench)
    return "\n\n".join([TITLE, "`python run.py bench composition`", *tables, LEGEND]) + "\n"


TITLE = f"## Composition: AND and NOT, {SCENES} pictures a row"
AND_HEAD = """| {count} objects | all named | all sure | named, mean | rms of latents | colours at an end |
| --- | ---: | ---: | ---: | ---: | ---: |"""
NOT_HEAD = """| taken out | of | gone | other stays | both | not even named | rms of latents | colours at an end |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""
LEGEND = f"""{STEPS} steps of {SAMPLER}, {SCHEDULER}, CFG {CFG:g}, the same seeds in each row. Named: among the
classifier's best nouns, as many as the prompt has. Sure: the classifier's score is above {SURE:g}. One
sentence: "a photo of a fox and an apple in the snow", the very captions that the model was trained on (for
three objects: their grammar, but it has never seen three). Prompts in a row: "a photo of a fox in the snow, a
photo of an apple in the snow". All others have these two prompts as two conditions; a mask each: "on the
left" and "on the right", each in its half.

NOT: the sentence of two objects, and "a photo of an apple" against it. Of: pictures in which both are sure
without NOT. Gone, other stays, both: their shares in which the one is not sure any more, the other still is,
and both of that. Not even named: the share in which it is not among the two best nouns either; one object
alone leaves the second best open. Goals: gone in at least 0.80; AND finds both at least 1.3 times as often as
plain concatenation."""
