"""Words tied to regions: are two objects where their masks are, do the pictures look real, what does a step take?

A prompt names two objects of the demo world; the masks are the halves of the picture, for the first noise of a prompt
in the order of mention, for the second against it. The judge sees one half only (beside its mirror image, since it
wants square pictures): the object is found if it is the noun that the classifier finds likeliest there.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import nodes as host_nodes
import numpy as np
import torch
from torch import Tensor

from benchmarks.realism import Measured, Realism
from benchmarks.study import CELLS, CFG, SAMPLER, SCHEDULER, STEPS, defaults
from full_size import models
from guided_synthesis.attention.words import Prompt, Word
from guided_synthesis.nodes import attention_regions, prompt
from memory import MIB, PeakMemory
from tiny_sd import classifier, data
from tiny_sd.host_model import load_demo_model
from tiny_sd.world import SIZE, Spec, draw, make_spec

PROMPTS, UPRIGHT = 100, 30  # prompts with left/right masks; of these with up/down masks as well
FIRST = data.HELD_OUT + 20_000  # the defaults of the node were chosen on scenes from HELD_OUT + 30_000
REAL = 600  # real scenes that realism is measured against
SIDE, SLOW_STEPS = 512, 2  # px and steps of the full-size model
Method = Callable[["Bench", Spec, Tensor, int], Tensor]


def specs(first: int, count: int) -> list[Spec]:
    """Return scenes of two objects, named with `and`: the caption does not say which is where."""
    return [replace(make_spec(first + index, things=2), relation="and") for index in range(count)]


def halves(upright: bool = False) -> Tensor:
    """Return masks (2 pictures, 2 objects, H, W): left and right (or up and down); then the other way round."""
    first = torch.zeros(SIZE, SIZE)
    first[: SIZE // 2] = 1
    first = first if upright else first.T
    return torch.stack([torch.stack([first, 1 - first]), torch.stack([1 - first, first])])


def noun_phrase(words: str) -> str:
    """Return a thing's words without the article."""
    return words.split(" ", 1)[1]


class Bench:
    """The demo model and the judges."""

    def __init__(self) -> None:
        self.model, self.clip, self.vae = load_demo_model()
        self.classifier = classifier.load()

    @torch.inference_mode()
    def make(self, method: Method, scenes: list[Spec], masks: Tensor) -> Tensor:
        """Return a picture for each of the scenes and masks: (scenes, 2, 3, H, W)."""
        latents = [method(self, spec, masks, 1000 + index) for index, spec in enumerate(scenes)]
        return torch.stack([self.vae.decode(latent).movedim(-1, 1).clone() for latent in latents])

    def sample(self, model: Any, positive: list, seed: int) -> Tensor:
        """Return two latents of the host's KSampler."""
        latent = {"samples": torch.zeros(2, 4, CELLS, CELLS)}
        settings = (seed, STEPS, CFG, SAMPLER, SCHEDULER, positive, self.encode(""), latent)
        return host_nodes.common_ksampler(model, *settings)[0]["samples"]

    def encode(self, text: str) -> list:
        """Return CONDITIONING."""
        return host_nodes.CLIPTextEncode().encode(self.clip, text)[0]

    def found(self, images: Tensor, scenes: list[Spec], masks: Tensor) -> Tensor:
        """Tell for images (scenes, 2, 3, H, W) which objects are in their masks: bool (scenes, 2 pictures, 2)."""
        upright = bool((masks[0, 0, 0] == 1).all())
        parts = images.unflatten(-2 if upright else -1, (2, -1)).movedim(-3 if upright else -2, 2)
        whole = torch.cat([parts, parts.flip(-2 if upright else -1)], -2 if upright else -1)
        best = self.classifier.names(whole.flatten(0, 2))
        names = np.array(best)[:, 0].reshape(len(scenes), 2, 2)  # scene, picture, half
        wanted = np.array([[thing.noun for thing in spec.things] for spec in scenes])
        return torch.from_numpy(np.stack([names[:, 0] == wanted, names[:, 1] == wanted[:, ::-1]], 1))


def plain(bench: Bench, spec: Spec, masks: Tensor, seed: int) -> Tensor:
    """The prompt alone."""
    return bench.sample(bench.model, bench.encode(spec.caption), seed)


def by_the_host(bench: Bench, spec: Spec, masks: Tensor, seed: int) -> Tensor:
    """The host's regional prompting: a condition of each object with its mask, and the prompt for the whole."""
    positive = bench.encode(spec.caption)
    for index, thing in enumerate(spec.things):
        alone = bench.encode(replace(spec, things=(thing,), relation="").caption)
        masked = host_nodes.ConditioningSetMask().append(alone, masks[:, index], "default", 1.0)[0]
        positive = host_nodes.ConditioningCombine().combine(positive, masked)[0]
    return bench.sample(bench.model, positive, seed)


def injected(bench: Bench, spec: Spec, masks: Tensor, seed: int, weight: float | None = None, **widgets: Any):
    """Our regions: one of each object, and the injector."""
    positive, words = prompt.PromptWords.execute(bench.clip, spec.caption).args
    weight = defaults(attention_regions.AttentionRegion)["weight"] if weight is None else weight
    regions: Any = ()
    for index, thing in enumerate(spec.things):
        where = noun_phrase(thing.words), masks[:, index], weight
        regions = attention_regions.AttentionRegion.execute(words, *where, regions).args[0]
    settings = defaults(attention_regions.CrossAttentionInjector) | widgets
    model = attention_regions.CrossAttentionInjector.execute(bench.model, regions, **settings).args[0]
    return bench.sample(model, positive, seed)


METHODS: dict[str, Method] = {
    "plain": plain,
    "ConditioningSetMask of the host": by_the_host,
    "Cross-Attention Injector": injected,
}


def real_scenes(first: int, count: int) -> Tensor:
    """Return drawn scenes of two objects (N, 3, H, W)."""
    drawn = [draw(spec).image for spec in specs(first, count)]
    return torch.from_numpy(np.stack(drawn)).float().movedim(-1, 1) / 255


@dataclass(frozen=True)
class Row:
    """What is said of a method with one kind of masks."""

    name: str
    found: Tensor
    """bool (scenes, 2 pictures, 2 objects)."""
    realism: Measured
    against: float
    """Realism over that of plain pictures."""

    def line(self) -> str:
        """Return the row of the table."""
        shares = [self.found, self.found[:, 0], self.found[:, 1], self.found.all(-1)]
        cells = [self.name, *(f"{share.float().mean():.3f}" for share in shares)]
        cells += [f"{self.realism.value:.3f} +- {self.realism.error:.3f}", f"{self.against:.2f}"]
        return f"| {' | '.join(cells)} |"


def rows(bench: Bench, realism: Realism, count: int, upright: bool) -> list[Row]:
    """Make and judge the pictures of every method with one kind of masks."""
    scenes, masks = specs(FIRST, count), halves(upright)
    numbers, found, base = torch.arange(count).repeat_interleave(2), [], None
    for name, method in METHODS.items():
        images = bench.make(method, scenes, masks)
        real = realism.measure(images.flatten(0, 1), numbers)
        base = real.value if base is None else base
        label = f"{name}, {'up/down' if upright else 'left/right'}"
        found.append(Row(label, bench.found(images, scenes, masks), real, real.value / base))
    return found


def bound(bench: Bench) -> float:
    """Return the share of objects of drawn scenes that the judge finds in their half."""
    scenes = specs(FIRST + REAL, PROMPTS)
    images = real_scenes(FIRST + REAL, PROMPTS)[:, None].expand(-1, 2, -1, -1, -1)
    seen = bench.found(images, scenes, halves())
    in_order = torch.tensor([spec.things[0].x < spec.things[1].x for spec in scenes])
    return torch.where(in_order[:, None], seen[:, 0], seen[:, 1]).float().mean().item()


@torch.inference_mode()
def step_cost() -> dict[str, float]:
    """Return CPU seconds and peak MiB of a step of SD 1.5 at full size (random weights), plain and with regions."""
    gc.collect()
    model = models.sd15_unet()
    (text, settings), negative = models.conditioning(model, 1)[0], models.conditioning(model, 2)
    words = Prompt(
        "a fox and a cat", tuple(Word(w, (i + 1,)) for i, w in enumerate(["a", "fox"])), models.TOKENS
    )
    regions: Any = ()
    for index, name in enumerate(("a", "fox")):
        regions = attention_regions.AttentionRegion.execute(
            words, name, halves()[0, index], 1.5, regions
        ).args[0]
    settings_of_node = defaults(attention_regions.CrossAttentionInjector) | {"end_percent": 1.0}
    guided = attention_regions.CrossAttentionInjector.execute(model, regions, **settings_of_node).args[0]
    latent = {"samples": torch.zeros(1, 4, SIDE // 8, SIDE // 8)}
    took = []
    for each, steps in ((model, 1), (model, SLOW_STEPS), (guided, SLOW_STEPS)):  # the first loads the model
        began = time.process_time()
        widgets = (7, steps, CFG, SAMPLER, SCHEDULER, [[text, settings]], negative, latent)
        with PeakMemory() as memory:
            host_nodes.common_ksampler(each, *widgets)
        took.append(((time.process_time() - began) / steps, memory.peak / MIB))
    (alone, plain), (regions_time, regions_peak) = took[1:]
    return {"alone": alone, "regions": regions_time, "plain": plain, "peak": regions_peak}


def run() -> str:
    """Judge every method, measure the step time, and return the section of RESULTS.md."""
    torch.set_num_threads(1)
    bench, realism = Bench(), Realism(real_scenes(data.HELD_OUT + 100_000, REAL))
    found = rows(bench, realism, PROMPTS, upright=False) + rows(bench, realism, UPRIGHT, upright=True)
    lines = "\n".join(row.line() for row in found)
    best = bound(bench)
    del bench, realism
    about = EXPLAINED.format(best=best) + "\n\n" + COST.format(side=SIDE, **step_cost())
    return f"{TITLE}\n\n`python run.py bench regions`\n\n{HEAD}\n{lines}\n\n{about}\n"


TITLE = f"## Two objects in two regions: {PROMPTS} prompts, two pictures each ({UPRIGHT} prompts for up/down)"
HEAD = """| method, masks | in own mask | in order of mention | against it | both objects | realism | over plain |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |"""
EXPLAINED = """In own mask: share of objects that are the classifier's first noun in their own half (goal 0.9; of drawn
scenes it finds {best:.3f}). Realism: kernel distance (KID) of AlexNet features to 600 real scenes of two objects, lower
is better (goal: at most 1.1 of plain). The demo model has seen objects side by side only: up/down is new to it."""
COST = """A step of SD 1.5 at full size (random weights, {side} px, CFG) takes {alone:.1f} CPU seconds, with two regions
{regions:.1f} (goal: at most 1.10 times as much). Its tensors take {plain:.0f} MiB at their peak, with two regions
{peak:.0f} MiB."""
