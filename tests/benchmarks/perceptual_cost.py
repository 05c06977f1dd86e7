"""What Perceptual Guidance costs on SD 1.5 at full size (random weights): time and peak memory of a guided step.

Every second step of a run is guided, so each guided step is timed beside a plain one of the same run; what a run opens
once is timed by itself. About ten minutes on one free core.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import nodes as host_nodes
import torch
from comfy.patcher_extension import WrappersMP
from torch.nn.functional import interpolate

from benchmarks.inversion import install_lpips
from benchmarks.study import defaults
from full_size import models
from guided_synthesis.nodes import perceptual_guidance
from guided_synthesis.nodes.host import gradients
from guided_synthesis.nodes.host import perceptual_guidance as inner
from memory import MIB, PeakMemory
from tiny_sd.host_model import install_taesd

SIZE, CFG, SEED = 512, 5.0, 7  # px
LIGHT = {"net": "alex", "decoder": "linear"}


@dataclass(frozen=True)
class Row:
    """A line of the table: the widgets and the goal."""

    widgets: dict[str, str]
    goal: str = ""

    @property
    def name(self) -> str:
        """Return the line's name."""
        return ", ".join(self.widgets[key] for key in ("gradient", "decoder", "net"))


ROWS = (
    Row({"gradient": inner.TO_X0, "decoder": "linear", "net": "alex"}, "1.3"),
    Row({"gradient": inner.TO_X0, "decoder": "taesd", "net": "alex"}, "1.3"),
    Row({"gradient": inner.TO_X0, "decoder": "vae", "net": "vgg"}),
    Row({"gradient": inner.THROUGH_MODEL, "decoder": "linear", "net": "alex"}, "3.2"),
)


@dataclass
class Steps:
    """What the steps of a run took; the first and every second from there is guided."""

    seconds: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    opening: float = 0.0

    def line(self, row: Row) -> str:
        """Return the line of the table."""
        guided, plain = self.seconds
        cells = [f"{plain:.1f}", f"{guided:.1f}", f"{guided / plain:.2f}", row.goal, f"{self.opening:.1f}"]
        return f"| {' | '.join([row.name, *cells])} |"


class Bench:
    """The models, a reference, and measured runs at `size` px."""

    def __init__(self, size: int = SIZE) -> None:
        install_taesd()
        install_lpips("alexnet", "vgg16")
        self.model, self.vae, self.size = models.sd15_unet(), models.sd_vae(), size
        self.texts = [models.conditioning(self.model, seed) for seed in (1, 2)]
        blobs = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(SEED))
        self.reference = interpolate(blobs, (size, size)).movedim(1, -1)

    @torch.inference_mode()
    def run(self, steps: int, memory: str = "", **widgets: Any) -> Steps:
        """Sample `steps` steps, every second one guided, and return what each took.

        `memory` is the attention of plain steps while memory is measured, `host` or `torch`; guided ones need torch's.
        """
        found = Steps()
        settings = defaults(perceptual_guidance.PerceptualGuidance) | {"every": 2} | widgets
        model = perceptual_guidance.PerceptualGuidance.execute(
            _watched(self.model, found, memory), self.vae, self.reference, **settings
        ).args[0]
        latent = {"samples": torch.zeros(1, 4, self.size // 8, self.size // 8)}
        with _opening_timed(found):
            host_nodes.common_ksampler(model, SEED, steps, CFG, "euler", "normal", *self.texts, latent)
        return found


def _watched(model: Any, found: Steps, memory: str) -> Any:
    """Return a clone of `model` (MODEL) that notes what each call of a sampler takes, all guidance included."""

    def around_call(executor, *args):
        opened, began = found.opening, time.process_time()
        with PeakMemory() if memory else nullcontext() as counted:
            out = executor(*args)
        found.seconds.append(time.process_time() - began - (found.opening - opened))
        found.peaks.append(counted.peak / MIB if counted else 0.0)
        return out

    watched = model.clone()
    if memory == "torch":
        options = watched.model_options["transformer_options"]
        watched.model_options["transformer_options"] = gradients.with_plain_attention(options)
    watched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "clock", around_call)
    return watched


@contextmanager
def _opening_timed(found: Steps) -> Iterator[None]:
    """Note what it takes to open decoder and LPIPS."""
    opened = inner._Run.opened

    def timed(*args: Any) -> Any:
        began = time.process_time()
        objective = opened(*args)
        found.opening += time.process_time() - began
        return objective

    with patch.object(inner._Run, "opened", timed):
        yield


def of_memory(bench: Bench) -> str:
    """Return the table of peak memory: of the third step, when all is open, and of plain ones."""
    through = {"gradient": inner.THROUGH_MODEL, **LIGHT}
    _, host, guided = bench.run(3, "host", **through).peaks
    torch_attention = bench.run(2, "torch", **LIGHT, gradient=inner.TO_X0).peaks[1]
    plain = {"the host's own": host, "torch's": torch_attention}
    return "\n".join(
        f"| {name} | {peak:.0f} | {guided:.0f} | {guided / peak:.2f} |" for name, peak in plain.items()
    )


def run(rows: tuple[Row, ...] = ROWS) -> str:
    """Measure time and memory and return the section of RESULTS.md."""
    torch.set_num_threads(1)
    bench = Bench()
    lines = [bench.run(2, **row.widgets).line(row) for row in rows]
    return SECTION.format(size=bench.size, rows="\n".join(lines), memory=of_memory(bench))


SECTION = """## What Perceptual Guidance costs on SD 1.5

`python run.py bench perceptual_cost`

| gradient, decoder, net | plain step, CPU s | guided step, CPU s | over plain | goal | opening, CPU s |
| --- | ---: | ---: | ---: | ---: | ---: |
{rows}

SD 1.5's UNet and VAE with random weights, float32, {size} px, batch 1, CFG, one CPU thread; CPU seconds of this
process. A guided and a plain step, one after the other, in one run. Opening, once a run: the networks, and for linear
the encode of the reference.

| attention of the plain step | plain step, MiB | through model, linear, alex, MiB | over plain (goal 2) |
| --- | ---: | ---: | ---: |
{memory}

Peak of all tensors that a step makes, counted by storage, beside the weights; blocks are checkpointed. Gradients need
torch's attention; plain sampling takes the host's own, which on a CPU has a larger peak.
"""
