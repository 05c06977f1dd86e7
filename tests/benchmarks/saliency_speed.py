"""How fast gradient matching goes down over pixels: the paper's own search against fewer, better steps.

The references and the curves of the paper's search are those of saliency.py. What else is searched is kept in
`.host/benchmarks/saliency_speed`, one file for each search and reference, and not made again; delete a file there to
do so.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from benchmarks import saliency
from guided_synthesis.guidance.gradient_matching import GradientMatching
from guided_synthesis.guidance.inverting import Descent, Inverter

FOLDER = saliency.FOLDER.with_name("saliency_speed")
REFERENCES = 5  # of saliency.py's, on which no setting was tried; each takes five minutes
SHARE = 5  # the goal: in a fifth of the seconds
TIMES = (1, 2, 4, 8, 16, 32, 64, 128)  # seconds of the table
Curve = dict[str, list[float]]
"""`seconds` and `objective` after so many steps, from 0 on; all layers' objective."""


@dataclass(frozen=True)
class Search:
    """A way down: from noise of this standard deviation around grey, `warming` on the last stages before `descent`."""

    name: str
    descent: Descent
    deviation: float = 0.5
    warming: Descent | None = None

    def curve(self, bench: saliency.Bench, number: int) -> Curve:
        """Return what the search reached when, for reference `number`; searches unless that is done."""
        file = FOLDER / f"{self.name} {number}.pt".replace(" ", "_").replace(",", "")
        if not file.exists():
            FOLDER.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            torch.save(self._made(bench, number), part)
            part.replace(file)
        return torch.load(file, weights_only=True)

    def _made(self, bench: saliency.Bench, number: int) -> Curve:
        scene, random_ = bench.scene(number), torch.Generator().manual_seed(100 + number)
        x = 0.5 + self.deviation * torch.randn(scene.reference.shape, generator=random_)
        made: Curve = {"seconds": [], "objective": []}
        with scene.classifier.opened() as network, torch.inference_mode(False), torch.enable_grad():
            seen = network, scene.classifier.prepare, scene.reference, scene.label
            whole, last = GradientMatching(*seen), GradientMatching(*seen, "last stages")
            began = time.process_time()
            if self.warming:
                x = _searched(x, last, self.warming, began, {"seconds": [], "objective": []})
            x = _searched(x, whole, self.descent, began, made)
            made["seconds"].append(time.process_time() - began)
            made["objective"].append(whole(x).item())
        return made


def _searched(x: Tensor, matching: GradientMatching, descent: Descent, began: float, curve: Curve) -> Tensor:
    """Go all the steps down from `x`, note in `curve` what was reached when, and return where that ends."""
    run = Inverter(x, lambda picture: picture, matching, descent)
    while run.done < descent.steps:
        curve["seconds"].append(time.process_time() - began)
        curve["objective"].append(run.step())
    return run.latent


GREY = 0.05
BETTER = Descent(500, 0.03, False, 1e-4, cosine=True)
HALF = Descent(250, 0.03, False, 1e-4, cosine=True)
SEARCHES = (
    Search("the paper's, 500 steps", Descent(500, **saliency.PAPER)),
    Search("not signed, 0.03, cosine, 500 steps", BETTER),
    Search("not signed, 0.03, cosine, 800 steps", Descent(800, 0.03, False, 1e-4, cosine=True)),
    Search("500 steps, last stages first", HALF, warming=HALF),
    Search("not signed, 0.03, cosine, 200 steps", Descent(200, 0.03, False, 1e-4, cosine=True)),
    Search("the same, from nearly grey", Descent(200, 0.03, False, 1e-4, cosine=True), GREY),
)


def published(bench: saliency.Bench, number: int) -> Curve:
    """Return the curve of the paper's search, 5000 steps, its seconds spread evenly over them."""
    saliency.inverted(bench, number)
    made = torch.load(saliency.FOLDER / f"inversion_{number}.pt", weights_only=True)
    count = len(made["objective"])
    return {
        "seconds": [made["seconds"] * step / count for step in range(count)],
        "objective": made["objective"],
    }


def reached(curve: Curve, goal: float) -> tuple[int, float] | None:
    """Return after how many steps and seconds the objective is first at `goal` or below it; None if never."""
    for step, (seconds, objective) in enumerate(zip(curve["seconds"], curve["objective"], strict=True)):
        if objective <= goal:
            return step, seconds
    return None


def _after(curve: Curve, seconds: float) -> float | None:
    """Return the lowest objective within `seconds`; None if there is none yet, or the search was over before."""
    known = [o for s, o in zip(curve["seconds"], curve["objective"], strict=True) if s <= seconds]
    over = len(known) == len(curve["objective"])
    return min(known) if known and not over else None


def _cell(curves: list[Curve], seconds: float) -> str:
    found = [_after(curve, seconds) for curve in curves]
    known = [objective for objective in found if objective is not None]
    return f"{median(known):.3f}" if len(known) == len(curves) else ""


def line(name: str, curves: list[Curve], goals: list[float], whole: list[float]) -> str:
    """Return a line of the table; `goals` and `whole` are what the paper's search ends at, and its seconds."""
    ends = f"{median([min(curve['objective']) for curve in curves]):.3f}"
    spent = f"{median([curve['seconds'][-1] for curve in curves]):.0f}"
    hits = [reached(curve, goal) for curve, goal in zip(curves, goals, strict=True)]
    shares = [hit[1] / total for hit, total in zip(hits, whole, strict=True) if hit]
    met = sum(share <= 1 / SHARE for share in shares)
    slowest = f"{max(shares):.2f}" if len(shares) == len(curves) else "not all"
    cells = [*(_cell(curves, seconds) for seconds in TIMES), ends, spent, f"{met} of {len(curves)}", slowest]
    return f"| {name} | {' | '.join(cells)} |"


def section(bench: saliency.Bench, searches: tuple[Search, ...] = SEARCHES, count: int = REFERENCES) -> str:
    """Return the section of RESULTS.md."""
    first = [published(bench, number) for number in range(count)]
    goals = [min(curve["objective"]) for curve in first]
    whole = [curve["seconds"][-1] for curve in first]
    rows = [line("the paper's, 5000 steps", first, goals, whole)]
    for search in searches:
        curves = [search.curve(bench, number) for number in range(count)]
        rows.append(line(search.name, curves, goals, whole))
    head = (
        f"| search | {' | '.join(f'{seconds} s' for seconds in TIMES)} | lowest | s | in a fifth | slowest |"
    )
    rule = f"| --- |{' ---: |' * (len(TIMES) + 4)}"
    return (
        "\n".join(
            [
                TITLE,
                "",
                "`python run.py bench saliency_speed`",
                "",
                head,
                rule,
                *rows,
                "",
                LEGEND.format(count=count),
            ]
        )
        + "\n"
    )


@torch.inference_mode()
def run() -> str:
    """Search, and return the section of RESULTS.md."""
    torch.set_num_threads(1)
    return section(saliency.Bench())


TITLE = "## Gradient matching: the objective against seconds"
LEGEND = f"""1 - cosine of all layers' gradients over the pixels of the first {{count}} references of the saliency
benchmark (none of which any setting was tried on), the demo's ResNet at 128 px: the lowest so far, median over the
references; CPU seconds of one thread beside other work. The paper's: Inverting Gradients' settings, Adam 0.1 on the
gradient's sign, three drops. All have a total variation of 1e-4 and, but for the last row, start from noise of mean and
standard deviation 0.5; nearly grey is a deviation of {GREY:g}. Last stages first: half of the steps match only those.
Lowest: median of what each search reaches. s: what all its steps take. In a fifth: how many references get down to the
lowest objective of the paper's 5000 steps in a fifth of those steps' seconds. Slowest: the share of those seconds that
the slowest reference needs."""
