"""Faithfulness against realism: every method over its range of strengths, on hidden scenes.

What is measured is kept in `.host/benchmarks/painting` and not measured again; delete a file there to do so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks import study as ways
from benchmarks.realism import Measured, Realism
from benchmarks.study import Made, Study
from comfy_host.places import ROOT
from guided_synthesis.guidance.painting import blur_sigma, gaussian
from tiny_sd import classifier, data
from tiny_sd.world import draw, make_spec

KEPT = ROOT / ".host" / "benchmarks" / "painting"
REAL = 600  # real scenes that realism is measured against


@dataclass(frozen=True)
class Method:
    """A point of a method's curve: the method's name, what is turned, and how to make its pictures."""

    family: str
    setting: str
    make: Callable[..., Tensor]

    @property
    def name(self) -> str:
        """Return the name of the row."""
        return f"{self.family}, {self.setting}"


def methods() -> list[Method]:
    """Return all points, curve by curve."""
    found = [Method("SDEdit", f"denoise {d:g}", partial(ways.sdedit, denoise=d)) for d in SDEDIT]
    found += [
        Method("Loopback", f"3 x denoise {d:g}", partial(ways.looped, denoise=d, repeats=3)) for d in LOOPS
    ]
    found += [
        Method("ILVR", f"factor {f}, end {e:g}", partial(ways.low_pass, factor=f, end_percent=e))
        for f, e in ILVR
    ]
    found += [Method("GradOP", f"t0 {t:g}", partial(ways.constrained, t0=t)) for t in GRADOP]
    found += [
        Method("GradOP+ released", f"{n} iterations", partial(ways.guided, iterations=n, **RELEASED))
        for n in RELEASED_ITERATIONS
    ]
    found += [
        Method(
            "Painting guide", f"tolerance {t:g}, denoise {d:g}", partial(ways.guided, denoise=d, tolerance=t)
        )
        for d, t in GUIDE
    ]
    return found


SDEDIT = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0)
LOOPS = (0.3, 0.5, 0.7)
ILVR = ((16, 0.8), (16, 0.5), (32, 0.8), (32, 0.5))
GRADOP = (0.4, 0.6, 0.8)
RELEASED_ITERATIONS = (3,)
GUIDE = ((0.7, 0.1), (0.7, 0.05), (0.7, 0.2), (0.8, 0.15), (0.9, 0.2))
RELEASED = {
    "mode": "released code",
    "decoder": "vae",
    "start_percent": 0.2,
    "end_percent": 1.0,
    "steps_per_iteration": 12,
    "learning_rate": 0.1,
}


def measured(study: Study, method: Method) -> Made:
    """Return what `method` makes: from the file that keeps it, or made now."""
    file = KEPT / (method.name.replace(" ", "_") + ".pt")
    if not file.exists():
        made = study.make(method.make)
        KEPT.mkdir(parents=True, exist_ok=True)
        torch.save(vars(made) | {"images": (made.images * 255).round().byte()}, file)
    kept = torch.load(file, weights_only=True)
    return Made(**(kept | {"images": kept["images"].float() / 255}))


@dataclass(frozen=True)
class Point:
    """A method in the plane, with everything that the table says of it."""

    method: Method
    distance: float
    """Mean squared difference of picture and painting, both blurred, times 1000."""
    realism: Measured
    against: Measured
    """Realism minus that of the most realistic SDEdit; paired, so its error is smaller."""
    named: int
    """Pictures whose main object the classifier names."""
    made: Made


class Judge:
    """Looks at pictures, (scenes * seeds, 3, H, W) in order of the seeds."""

    def __init__(self, study: Study) -> None:
        self.study, self.classifier = study, classifier.load()
        real = [draw(make_spec(data.HELD_OUT + 100_000 + index)).image for index in range(REAL)]
        self.realism = Realism(torch.from_numpy(np.stack(real)).float().movedim(-1, 1) / 255)

    def distance(self, images: Tensor) -> float:
        """Return the painting distance, times 1000."""
        paintings = self._each(self.study.paintings, images)
        sigma = blur_sigma(7.0, *images.shape[-2:], 8)
        return 1000 * (gaussian(images, sigma) - gaussian(paintings, sigma)).square().mean().item()

    def numbers(self, images: Tensor) -> Tensor:
        """Return the scene that each picture shows."""
        scenes = len(self.study.specs)
        return torch.arange(scenes).repeat(len(images) // scenes)

    def named(self, images: Tensor) -> int:
        """Return in how many pictures the classifier names the main object."""
        specs = [self.study.specs[number] for number in self.numbers(images)]
        return sum(found[0] for found in self.classifier.recognised(images, specs))

    def real(self, images: Tensor) -> Measured:
        """Return the kernel distance to real scenes."""
        return self.realism.measure(images, self.numbers(images))

    def _each(self, of_scenes: Tensor, images: Tensor) -> Tensor:
        return of_scenes[self.numbers(images)]


def points(judge: Judge) -> list[Point]:
    """Measure every method."""
    made = {method: measured(judge.study, method) for method in methods()}
    rival = min(
        (judge.real(result.images).value, method.name, method)
        for method, result in made.items()
        if method.family == "SDEdit"
    )[2]
    found = []
    for method, result in made.items():
        images = result.images
        against = judge.realism.difference(images, made[rival].images, judge.numbers(images))
        seen = judge.distance(images), judge.real(images), against, judge.named(images)
        found.append(Point(method, *seen, result))
    return found


def references(judge: Judge) -> list[tuple[str, float, Measured, int]]:
    """Return what bounds the plane: the paintings, the hidden scenes, and these after the autoencoder."""
    study = judge.study
    with torch.inference_mode():
        latents = study.vae.encode(study.hidden.movedim(1, -1))
        rebuilt = study.vae.decode(latents).movedim(-1, 1)
    sets = {
        "the paintings themselves": study.paintings,
        "the hidden scenes": study.hidden,
        "the hidden scenes after the autoencoder": rebuilt.clone(),
    }
    return [(name, judge.distance(x), judge.real(x), judge.named(x)) for name, x in sets.items()]


def draw_plane(found: list[Point], bounds: list[tuple[str, float, Measured, int]]) -> None:
    """Draw the curves into docs/plane.png."""
    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for family in dict.fromkeys(point.method.family for point in found):
        own = sorted((p for p in found if p.method.family == family), key=lambda p: p.distance)
        ours = family == OURS
        axes.plot(
            [p.distance for p in own],
            [p.realism.value for p in own],
            marker="o",
            linewidth=3 if ours else 1.3,
            zorder=3 if ours else 2,
            label=family,
        )
    axes.axvline(bounds[1][1], color="grey", linestyle=":", label=bounds[1][0])
    axes.axhline(bounds[2][2].value, color="grey", linestyle="--", label=bounds[2][0])
    axes.set_xlabel("distance from the painting (mean squared error x 1000): left is more faithful")
    axes.set_ylabel("kernel distance to real scenes: down is more realistic")
    axes.set_ylim(top=TOP)
    axes.legend()
    figure.savefig(PLANE)


def table(found: list[Point], bounds: list[tuple[str, float, Measured, int]], scenes: int) -> str:
    """Return the table of RESULTS.md."""
    lines = [" | ".join(HEAD), " | ".join(["---"] + ["---:"] * (len(HEAD) - 1))]
    for name, distance, real, named in bounds:
        cells = [name, f"{distance:.2f}", _signed(real, ""), "", f"{named} of {scenes}", "", "", ""]
        lines.append(" | ".join(cells))
    for p in found:
        count = len(p.made.images)
        cells = [p.method.name, f"{p.distance:.2f}", _signed(p.realism, ""), _signed(p.against, "+")]
        cells += [f"{p.named} of {count}", f"{p.made.model_calls:.0f}", f"{p.made.decoder_calls:.0f}"]
        lines.append(" | ".join([*cells, f"{p.made.seconds / count:.2f}"]))
    return "\n".join(f"| {line} |" for line in lines)


def _signed(value: Measured, sign: str) -> str:
    return f"{value.value:{sign}.3f} +- {value.error:.3f}"


def run() -> str:
    """Run every method, draw the plane and return the section of RESULTS.md."""
    torch.set_num_threads(1)
    judge = Judge(Study())
    found, bounds = points(judge), references(judge)
    draw_plane(found, bounds)
    scenes = len(judge.study.specs)
    title = f"## Faithfulness and realism on {scenes} hidden scenes, {len(ways.SEEDS)} seeds each"
    return f"{title}\n\n`python run.py bench painting`\n\n{table(found, bounds, scenes)}\n\n{EXPLAINED}\n"


HEAD = (
    "method",
    "distance",
    "realism",
    "against SDEdit",
    "main object",
    "model calls",
    "decodes",
    "s / picture",
)
OURS, TOP = "Painting guide", 0.3
PLANE = ROOT / "docs" / "plane.png"
EXPLAINED = """Distance: mean squared difference of the blurred picture and the blurred painting, times 1000 (blur 6 px
at 128 px). Realism: kernel distance (KID) of AlexNet features (ImageNet weights) to 600 other real scenes, with the
standard error over scenes; lower is better. Against SDEdit: its difference to the most realistic SDEdit of the
table, paired by scene, so this error is the one to judge by. Main object: the classifier names it. Model calls:
UNet calls for a batch of pictures. Decodes: latents that the VAE turned into colours for the guide, per batch.
Seconds: one CPU thread, beside other work. All: euler, normal schedule, 20 steps, CFG 5, demo model, host's own
sampling. The picture is [docs/plane.png](../../docs/plane.png)."""
