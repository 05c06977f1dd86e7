"""Illusions on the demo world: are both readings of an anagram recognised, each in its view and not in the other?

Rows: the Anagram Guider in latents (mean, alternate) and in pixels, for every family of views. What is sampled is kept
in `.host/benchmarks/illusions`, one file for each row, and not made again; delete a file there to do so.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.inversion import KEPT
from benchmarks.study import CELLS, SAMPLER, SCHEDULER, defaults
from guided_synthesis.nodes import anagram
from tiny_sd import classifier
from tiny_sd.art import NOUNS
from tiny_sd.host_model import load_demo_model
from tiny_sd.world import SIZE, WALLS

FOLDER = KEPT.with_name("illusions")
PAIRS, CANDIDATES, SEEDS, CHOOSING = 24, 96, (1000, 2000, 3000, 4000), 1
STEPS, CFG, BATCH = 20, 3.0, 24
FAR = 4  # a hybrid is seen from afar by making it smaller by this
LATENT, ALTERNATE, PIXEL = "latent, mean", "latent, alternate", "pixel"
WAYS = {
    LATENT: {"domain": "latent", "reduction": "mean"},
    ALTERNATE: {"domain": "latent", "reduction": "alternate"},
    PIXEL: {"domain": "pixel", "reduction": "mean"},
}
Pair = tuple[str, str, str]  # two objects with their articles, and the place


@dataclass(frozen=True)
class Family:
    """Two views of a picture, and the ways in which it can be made."""

    name: str
    views: tuple[str, str]
    ways: tuple[str, ...]
    widgets: dict = field(default_factory=dict)
    places: tuple[str, str] | None = None
    """In the place of the pair's own, where the views need different ones."""

    def text(self, pair: Pair, reading: int) -> str:
        """Return the prompt of a reading."""
        place = self.places[reading] if self.places else pair[2]
        return f"a photo of {pair[reading]} {place}"

    @property
    def hybrid(self) -> bool:
        """Whether the readings are of two distances, not of two views."""
        return self.views[1] == "high pass"


FAMILIES = (
    *[
        Family(view, ("identity", view), (LATENT, ALTERNATE, PIXEL))
        for view in ("flip vertical", "rotate 90 clockwise", "rotate 180", "patch permutation")
    ],
    Family("inner circle", ("identity", "inner circle"), (PIXEL,)),
    Family("negate", ("identity", "negate"), (PIXEL,), places=("at night", "in front of a white wall")),
    Family("hybrid", ("low pass", "high pass"), (LATENT, PIXEL), {"sigma": 0.036}),
)
HALF_TURN = FAMILIES[2]  # it chooses the pairs for all, but for rows of other choices:
DRAWN, OWN = "pairs as drawn", "pairs chosen by it"
OWN_CHOICE = ("flip vertical", "rotate 90 clockwise", "inner circle", "negate")


def candidates(count: int) -> list[Pair]:
    """Return random pairs of objects before plain walls or at night."""
    rng, found = random.Random(3), []
    for _ in range(count):
        first, second = rng.sample(list(NOUNS), 2)
        place = f"in front of a {rng.choice(list(WALLS))} wall" if rng.random() < 0.8 else "at night"
        found.append((_with_article(first), _with_article(second), place))
    return found


def _with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def nouns(pairs: list[Pair], reading: int) -> Tensor:
    """Return the numbers of the nouns that the pairs have for a reading, (N,)."""
    return torch.tensor([classifier.NAMES.index(pair[reading].split()[1]) for pair in pairs])


class Bench:
    """The demo model, and what it makes of pairs."""

    def __init__(self) -> None:
        self.model, self.clip, self.vae = load_demo_model()
        sampling = self.model.get_model_object("model_sampling")
        self.sigmas = comfy.samplers.calculate_sigmas(sampling, SCHEDULER, STEPS)

    def text(self, texts: list[str]) -> list:
        """Return CONDITIONING of texts, one for each picture."""
        return [[torch.cat([self.clip.encode_from_tokens(self.clip.tokenize(text)) for text in texts]), {}]]

    def views(self, family: Family, pairs: list[Pair] | None = None) -> Any:
        """Return VIEWS of the family, with prompts for `pairs` if there are any."""
        chain: Any = ()
        for reading, view in enumerate(family.views):
            settings = defaults(anagram.View) | family.widgets | {"view": view, "views": chain}
            if pairs is not None:
                settings["conditioning"] = self.text([family.text(pair, reading) for pair in pairs])
            chain = anagram.View.execute(**settings).args[0]
        return chain

    @torch.inference_mode()
    def sampled(self, family: Family, way: str, pairs: list[Pair], seed: int) -> Tensor:
        """Return latents (N, C, h, w) of the pairs."""
        settings = defaults(anagram.AnagramGuider) | WAYS[way] | {"cfg": CFG}
        if family.hybrid:
            settings["reduction"] = "sum"
        guider = anagram.AnagramGuider.execute(
            self.model, self.views(family, pairs), self.text([""] * len(pairs)), vae=self.vae, **settings
        ).args[0]
        empty = torch.zeros(len(pairs), 4, CELLS, CELLS)
        noise = comfy.sample.prepare_noise(empty, seed)
        sampler = comfy.samplers.sampler_object(SAMPLER)
        return guider.sample(noise, empty, sampler, self.sigmas, disable_pbar=True, seed=seed).float()

    @torch.inference_mode()
    def readings(self, family: Family, latents: Tensor) -> list[Tensor]:
        """Return what each reader sees: (N, 3, H, W) in [0, 1]."""
        images = self.vae.decode(latents).movedim(-1, 1)
        if family.hybrid:
            small = interpolate(images, scale_factor=1 / FAR, mode="bilinear", antialias=True)
            return [interpolate(small, size=(SIZE, SIZE), mode="bilinear"), images]
        return [reading.view.reading(images) for reading in self.views(family)]


def path_of(name: str) -> Path:
    """Return the file of what is kept under `name`."""
    return FOLDER / f"{name}.pt"


def kept(name: str, make: Callable[[], Any]) -> Any:
    """Return what `make()` returns, from the file if it was made before."""
    path = path_of(name)
    if not path.exists():
        made = make()
        FOLDER.mkdir(parents=True, exist_ok=True)
        torch.save(made, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    return torch.load(path, weights_only=True)


def chosen(bench: Bench, family: Family) -> list[Pair]:
    """Return the pairs that suit a family best, of random ones, with a seed that is not judged."""
    pairs, judge = candidates(CANDIDATES), classifier.load()

    def scores() -> Tensor:
        found = []
        for start in range(0, CANDIDATES, BATCH):
            batch = pairs[start : start + BATCH]
            latents = bench.sampled(family, family.ways[0], batch, CHOOSING)
            seen = [judge.scores(picture) for picture in bench.readings(family, latents)]
            own = [each.gather(1, nouns(batch, at)[:, None]) for at, each in enumerate(seen)]
            found.append(torch.minimum(*own).squeeze(1))
        return torch.cat(found)

    best = kept(f"choice_{family.name}".replace(" ", "-"), scores).topk(PAIRS).indices.sort().values
    return [pairs[number] for number in best.tolist()]


@dataclass(frozen=True)
class Row:
    """A family made in one way, of pairs that were chosen by a half turn or in another way."""

    family: Family
    way: str
    choice: str = ""

    @property
    def name(self) -> str:
        """Return what the table calls it."""
        return f"{self.family.name}{self.choice and ', '}{self.choice} | {self.way}"

    @property
    def file(self) -> str:
        """Return the name under which its latents are kept."""
        return self.name.replace(" | ", "_").replace(", ", "_").replace(" ", "-")

    def pairs(self, bench: Bench) -> list[Pair]:
        """Return its pairs."""
        if self.choice == DRAWN:
            return candidates(CANDIDATES)[:PAIRS]
        return chosen(bench, self.family if self.choice == OWN else HALF_TURN)

    def made(self, bench: Bench) -> tuple[Tensor, float]:
        """Return latents (seeds * pairs, C, h, w), seed by seed, and the CPU seconds of one picture."""

        def make() -> tuple[Tensor, float]:
            pairs, began = self.pairs(bench), time.process_time()
            latents = torch.cat([bench.sampled(self.family, self.way, pairs, seed) for seed in SEEDS])
            return latents, (time.process_time() - began) / len(latents)

        return kept(self.file, make)

    def line(self, bench: Bench) -> str:
        """Return the line of the table."""
        latents, seconds = self.made(bench)
        verdict = judged(bench, self.family, latents, self.pairs(bench))
        both, hidden = verdict.both, verdict.both & verdict.hidden
        cells = [f"{share.float().mean():.2f}" for share in (verdict.first, verdict.second, both, hidden)]
        cells += [f"{share.any(0).float().mean():.2f}" for share in (both, hidden)]
        return f"| {' | '.join([self.name, *cells, f'{seconds:.2f}'])} |"


ROWS = (
    *[Row(family, way) for family in FAMILIES for way in family.ways],
    Row(HALF_TURN, LATENT, DRAWN),
    *[Row(family, family.ways[0], OWN) for family in FAMILIES if family.name in OWN_CHOICE],
)


@dataclass(frozen=True)
class Verdict:
    """What was seen in the pictures of a row; tensors are (seeds, pairs), bool."""

    first: Tensor
    """The first object in the first view."""
    second: Tensor
    hidden: Tensor
    """Neither object in the view of the other, for a judge that knows them in any position."""

    @property
    def both(self) -> Tensor:
        """Return where both readings are recognised."""
        return self.first & self.second


@torch.inference_mode()
def judged(bench: Bench, family: Family, latents: Tensor, pairs: list[Pair]) -> Verdict:
    """Return what the judges say: recognised is what is the classifier's best noun in its own view."""
    upright, turned = classifier.load(), classifier.load(classifier.TURNED)
    own = [nouns(pairs, reading).repeat(len(latents) // len(pairs)) for reading in (0, 1)]
    seen = bench.readings(family, latents)

    def best(judge: classifier.Classifier, order: list[Tensor]) -> list[Tensor]:
        return [judge.scores(view).argmax(1) == noun for view, noun in zip(seen, order, strict=True)]

    first, second = best(upright, own)
    hidden = ~torch.stack(best(turned, own[::-1])).any(0)
    return Verdict(*(each.view(-1, len(pairs)) for each in (first, second, hidden)))


def section(bench: Bench) -> str:
    """Return the section of RESULTS.md, with the rows that are made so far."""
    there = [row for row in ROWS if path_of(row.file).exists()]
    table = "\n".join([HEAD, *(row.line(bench) for row in there)])
    missing = "; ".join(row.name.replace(" | ", ", ") for row in ROWS if row not in there)
    left = [f"Not made yet: {missing}."] if missing else []
    return "\n\n".join([TITLE, "`python run.py bench illusions`", table, *left, LEGEND]) + "\n"


def run() -> str:
    """Sample all rows and return the section of RESULTS.md."""
    torch.set_num_threads(1)
    bench = Bench()
    for row in ROWS:
        row.made(bench)
    return section(bench)


TITLE = f"## Illusions: {PAIRS} pairs of prompts, {len(SEEDS)} seeds each"
HEAD = """| views | domain | first | second | both | hidden | best of 4 | best of 4, hidden | s |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""
LEGEND = f"""{STEPS} steps of {SAMPLER}, {SCHEDULER}, CFG {CFG:g}. The prompts of a pair are "a photo of a fox in front
of a red wall", "a photo of an owl in front of a red wall": two nouns drawn at random, one place (negate: at night, and
before a white wall). Of {CANDIDATES} such pairs those {PAIRS} are taken whose picture for a half turn is best with
another seed, as an artist tries which prompts go together; as drawn: the first {PAIRS}, not chosen; chosen by it: by
the view of the row in the place of the half turn. First, second, both: share of the pictures in which the noun is the
best of the classifier's {len(NOUNS)} in its own view (chance {1 / len(NOUNS):.2f}; for both
{1 / len(NOUNS) ** 2:.3f}). Hidden: both, and neither noun is the best one in the view of the other for a second
classifier, which knows things upright, on their sides and upside down: it sees through a turn where the shape is clear.
Best of 4: of a pair's four seeds one at least. A hybrid is judged at its size, and small (1/{FAR}) for what is seen
from afar. s: CPU seconds of sampling for a picture, one thread, in batches of {BATCH}, on a machine at work with other
things."""
