"""pix2pix-zero on the demo world: one object becomes another, and the rest shall stay as it was.

Every pair is a scene's caption and the same caption with another noun; both are sampled from the same seed (euler,
normal, 20 steps, CFG 5). Against plain re-prompting: how often the classifier names the new object, how much changes
where the old one was not, and how much the structure changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import nodes as host_nodes
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

from benchmarks.study import defaults
from guided_synthesis.nodes.cross_attention_guidance import CrossAttentionGuidance
from guided_synthesis.nodes.edit_direction import EditDirection
from imagenet.features import Features
from tiny_sd import classifier, data
from tiny_sd.host_model import load_demo_model
from tiny_sd.world import COLOURED, Spec, make_spec

PAIRS, BATCH, SEED, STEPS, CFG = 40, 10, 500, 20, 5.0
NOUNS = [noun for noun in classifier.NAMES if noun not in COLOURED]
TEMPLATE = "\n".join(
    f"a {style} of {{}} {place}"
    for style in ("photo", "drawing", "watercolour")
    for place in ("in a green field", "at night", "on a beach", "in the snow", "in front of a white wall")
)
STRENGTHS = (0.1, 0.3, 1.0)
HEAD = "| method | target named | PSNR outside the object, dB | over re-prompting | structure distance | CPU s each |\n"
HEAD += "| --- |" + " ---: |" * 5
EXPLAINED = """{chosen} of {pairs} pairs, one seed each, count: those whose source picture shows the source object (to
the classifier). Target named: the target is the classifier's best noun. The object: cells of the classifier's 8x8 grid
that vote for the source noun in the source picture, and their neighbours; {area:.0%} of the picture on average.
Structure distance: mean squared difference of the cosine similarities between all places of a picture (AlexNet, third
ReLU), times 1000; lower is closer. Edit Direction: {sentences} sentences each for source and target. Guidance: scales 2
and 4, which is what the demo model has of the default scales."""

Method = Callable[["Study", slice], tuple[Any, list]]


@dataclass(frozen=True)
class Pair:
    """A scene and what it becomes."""

    source: Spec
    target: Spec


class Study:
    """The demo model and the pairs, with the source pictures."""

    def __init__(self, pairs: int = PAIRS) -> None:
        self.model, self.clip, self.vae = load_demo_model()
        self.classifier = classifier.load()
        self.pairs = [_pair(number) for number in range(pairs)]
        with torch.inference_mode():
            self.before = self.texts([pair.source.caption for pair in self.pairs])
            self.after = self.texts([pair.target.caption for pair in self.pairs])
            self.moved = torch.cat([self._directed(pair) for pair in self.pairs])
        self.sources, _ = self.made(original)

    def texts(self, texts: list[str]) -> Tensor:
        """Return the conditions (B, T, D) of `texts`."""
        return torch.cat([self.clip.encode_from_tokens(self.clip.tokenize(text)) for text in texts])

    @torch.inference_mode()
    def made(self, method: Method) -> tuple[Tensor, float]:
        """Return the pictures (pairs, 3, 128, 128) of `method`, and the CPU seconds that each took."""
        began, found = time.process_time(), []
        for start in range(0, len(self.pairs), BATCH):
            model, positive = method(self, slice(start, start + BATCH))
            count = len(positive[0][0])
            negative, latent = [[self.texts([""] * count), {}]], {"samples": torch.zeros(count, 4, 16, 16)}
            settings = (SEED + start, STEPS, CFG, "euler", "normal", positive, negative, latent)
            latents = host_nodes.common_ksampler(model, *settings)[0]["samples"]
            found.append(self.vae.decode(latents).movedim(-1, 1).clone())
        return torch.cat(found), (time.process_time() - began) / len(self.pairs)

    def _directed(self, pair: Pair) -> Tensor:
        words = (spec.things[0].words for spec in (pair.source, pair.target))
        given = [[self.texts([pair.source.caption]), {}]]
        return EditDirection.execute(self.clip, given, *words, TEMPLATE, 1.0).args[0][0][0]


def original(study: Study, batch: slice) -> tuple[Any, list]:
    """The source itself."""
    return study.model, [[study.before[batch], {}]]


def reprompted(study: Study, batch: slice) -> tuple[Any, list]:
    """The host alone: the caption with the other noun, the same seed."""
    return study.model, [[study.after[batch], {}]]


def directed(study: Study, batch: slice) -> tuple[Any, list]:
    """The Edit Direction on the source's caption."""
    return study.model, [[study.moved[batch], {}]]


def guided(method: Method, **widgets: Any) -> Method:
    """The conditions of `method` under Cross-Attention Guidance."""

    def made(study: Study, batch: slice) -> tuple[Any, list]:
        model, positive = method(study, batch)
        settings = defaults(CrossAttentionGuidance) | widgets
        return CrossAttentionGuidance.execute(model, original(study, batch)[1], **settings).args[0], positive

    return made


def methods() -> dict[str, Method]:
    """Return the rows of the table."""
    found: dict[str, Method] = {"re-prompting": reprompted, "Edit Direction": directed}
    for strength in STRENGTHS:
        found[f"Edit Direction, guidance {strength:g}"] = guided(directed, strength=strength)
    found["re-prompting, guidance 0.3"] = guided(reprompted, strength=0.3)
    return found


def _pair(number: int) -> Pair:
    """Return a scene of one object without a colour word, and the same with the next noun but ten."""
    spec = make_spec(data.HELD_OUT + 9000 + number, things=1)
    index = (7 * number) % len(NOUNS)
    nouns = NOUNS[index], NOUNS[(index + 10) % len(NOUNS)]
    specs = (
        replace(spec, things=(replace(spec.things[0], noun=noun, colour=None),), art=spec.art)
        for noun in nouns
    )
    return Pair(*specs)


def object_areas(network: Any, images: Tensor, nouns: list[str]) -> Tensor:
    """Return masks (B, 1, 128, 128) of the cells that vote for each picture's noun, and their neighbours."""
    with torch.no_grad():
        cells = network.head(network.body(avg_pool2d(images.clamp(0, 1), 2) * 2 - 1))
    index = torch.tensor([classifier.NAMES.index(noun) for noun in nouns])
    votes = cells[torch.arange(len(images)), index][:, None]  # (B, 1, 8, 8)
    own = (votes >= votes.amax((1, 2, 3), keepdim=True).clamp(max=0)).float()
    return interpolate(max_pool2d(own, 3, 1, 1), images.shape[-2:])


def _named(network: Any, images: Tensor, nouns: list[str]) -> Tensor:
    """Tell of each picture whether its noun is the classifier's best (B,)."""
    return torch.tensor([best[0] == noun for best, noun in zip(network.names(images), nouns, strict=True)])


def psnr(images: Tensor, others: Tensor, where: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio (B,) in dB of pictures in [0, 1] within masks (B, 1, H, W)."""
    errors = (images - others).square().mean(1, keepdim=True)
    return -10 * ((errors * where).sum((1, 2, 3)) / where.sum((1, 2, 3))).log10()


class Structure:
    """How differently two pictures are built: self-similarities of a network's features (arXiv 2201.00424)."""

    def __init__(self) -> None:
        self.network = Features("alex")

    @torch.no_grad()
    def __call__(self, images: Tensor, others: Tensor) -> Tensor:
        """Return the distance (B,), times 1000."""
        first, second = (self._similarities(pictures) for pictures in (images, others))
        return 1000 * (first - second).square().mean((1, 2))

    def _similarities(self, images: Tensor) -> Tensor:
        seen = self.network(images)[2].flatten(2)
        seen = seen / seen.norm(dim=1, keepdim=True).clamp(min=1e-6)
        return seen.mT @ seen


def _row(name: str, named: Tensor, kept: float, plain: float, built: float, seconds: float) -> str:
    hits = f"{int(named.sum())} of {len(named)}"
    return f"| {name} | {hits} | {kept:.2f} | {kept - plain:+.2f} | {built:.2f} | {seconds:.1f} |"


def run() -> str:
    """Edit all pairs in every way and return the section of RESULTS.md."""
    study, structure = Study(), Structure()
    before, after = ([getattr(p, end).things[0].noun for p in study.pairs] for end in ("source", "target"))
    shown = _named(study.classifier, study.sources, before)
    areas = object_areas(study.classifier, study.sources, before)
    rows, plain = [HEAD], None
    for name, method in methods().items():
        images, seconds = study.made(method)
        kept = psnr(images, study.sources, 1 - areas)[shown].mean().item()
        plain = kept if plain is None else plain
        named = _named(study.classifier, images, after)[shown]
        rows.append(
            _row(name, named, kept, plain, structure(images, study.sources)[shown].mean().item(), seconds)
        )
    about = {
        "pairs": len(study.pairs),
        "chosen": int(shown.sum()),
        "area": areas[shown].mean().item(),
        "sentences": len(TEMPLATE.splitlines()),
    }
    title = "## pix2pix-zero: edit directions and cross-attention guidance"
    return (
        f"{title}\n\n`python run.py bench pix2pix_zero`\n\n"
        + "\n".join(rows)
        + f"\n\n{EXPLAINED.format(**about)}\n"
    )
