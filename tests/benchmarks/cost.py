"""What the painting guide costs on SD 1.5 at full size (random weights): time, calls, and memory of the decoder `vae`.

Sampling is the host's own (euler, normal schedule, CFG 5, batch 1); all runs of a table are made in one process, one
after the other. A quarter of an hour on one free core.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import nodes as host_nodes
import torch
from torch import Tensor

from benchmarks.study import defaults
from full_size import models
from guided_synthesis.nodes import painting_guide
from guided_synthesis.nodes.host import gradients
from memory import MIB, PeakMemory

SIZE, STEPS, CFG, SEED = 512, 20, 5.0, 7  # px
SHORT = 3  # steps of the runs with the decoder vae
SHORT_GUIDE = {"decoder": "vae", "iterations": 1, "steps_per_iteration": 2}
HEAD = "| run | steps | UNet calls | optimiser steps | VAE encodes | VAE decodes | of these with gradient "
HEAD += "| CPU s | CPU s outside the UNet | over plain |\n|" + " --- |" + " ---: |" * 9
EXPLAINED = """SD 1.5's UNet and VAE with random weights, float32, {size} px, batch 1, {threads} CPU thread(s). UNet
calls: batches (text and empty text together). CPU seconds are those of this process. Over plain: against the time of
plain sampling with the same UNet calls, which is this run's own time in the UNet and the little that plain sampling
takes outside it ({rest:.4f} of that): so other work on the machine weighs on both alike (goal for `linear`: 1.10). The
first run with `linear` fits the linear map to the VAE (an encode and a decode at 256 px); the map stays with the VAE.
For `vae` the sum to compare with is plain sampling and {encodes} encodes, {decodes} decodes and {gradients} backward
passes at the time that each takes alone: {apart:.1f} CPU s; the guided run takes {over:.2f} of it (goal 1.15)."""
MEMORY = """| decoder vae, {size} px, batch 1, float32 | peak, MiB | over a plain decode |
| --- | ---: | ---: |
| decode alone | {plain:.0f} | 1.00 |
| forwards and backwards, checkpointed | {checkpointed:.0f} | {few:.2f} |
| forwards and backwards | {whole:.0f} | {many:.2f} |

Peak of all tensors that the pass makes, counted by storage, beside the weights (goal with checkpointing: 2.2)."""


@dataclass
class Cost:
    """What a run took."""

    cpu: float = 0.0
    cpu_in_unet: float = 0.0
    unet: int = 0
    optimiser: int = 0
    encodes: int = 0
    decodes: int = 0
    gradients: int = 0

    def as_plain(self, plain: Cost) -> float:
        """Return what plain sampling would take with the UNet calls of this run, if `plain` is such a run."""
        return self.cpu_in_unet * plain.cpu / plain.cpu_in_unet

    def row(self, name: str, steps: int, plain: Cost) -> str:
        """Return the run as a line of the table."""
        counts = (steps, self.unet, self.optimiser, self.encodes, self.decodes, self.gradients)
        seconds = (self.cpu, self.cpu - self.cpu_in_unet)
        over = self.cpu / self.as_plain(plain)
        return f"| {' | '.join([name, *map(str, counts), *(f'{s:.1f}' for s in seconds), f'{over:.3f}'])} |"


class Bench:
    """The models, a painting, and measured runs at `size` px."""

    def __init__(self, size: int = SIZE) -> None:
        self.model, self.vae, self.size = models.sd15_unet(), models.sd_vae(), size
        self.positive, self.negative = (models.conditioning(self.model, seed) for seed in (1, 2))
        blobs = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(SEED))
        self.painting = torch.nn.functional.interpolate(blobs, (size, size)).movedim(1, -1)
        self.latent = torch.zeros(1, 4, size // 8, size // 8)
        self.run(1)  # loads the model

    @torch.inference_mode()
    def run(self, steps: int, **widgets: Any) -> Cost:
        """Sample `steps` steps, guided if there are `widgets`, which go to the node beside its defaults."""
        cost = Cost()
        with _counted(cost, self.vae), _timed(cost):
            model = _watched(self.model, cost)
            if widgets:
                widgets = defaults(painting_guide.PaintingGuide) | widgets
                model = painting_guide.PaintingGuide.execute(model, self.vae, self.painting, **widgets).args[
                    0
                ]
            texts = (self.positive, self.negative, {"samples": self.latent})
            host_nodes.common_ksampler(model, SEED, steps, CFG, "euler", "normal", *texts)
        return cost

    def encode(self) -> None:
        """Encode a picture, as the guide does with the painting."""
        with torch.inference_mode():
            gradients.load([self.vae.patcher], 0)
            gradients.encode(self.vae, self.painting.movedim(-1, 1))

    def decode(self, backward: bool = True, checkpointing: bool = False) -> None:
        """Decode a latent, and go back to it if `backward`."""
        latent = torch.randn(self.latent.shape, generator=torch.Generator().manual_seed(SEED))
        network = self.vae.first_stage_model
        with torch.inference_mode():
            gradients.load([self.vae.patcher], 0)
            with gradients.differentiable(), torch.set_grad_enabled(backward):
                leaf = latent.clone().requires_grad_(backward)
                with gradients.checkpointed(network) if checkpointing else nullcontext():
                    picture = gradients.decode(self.vae, leaf)
                if backward:
                    torch.autograd.grad(picture.square().mean(), leaf)


def cpu_seconds(work: Callable[[], None]) -> float:
    """Return the CPU seconds of `work`."""
    began = time.process_time()
    work()
    return time.process_time() - began


def peak(work: Callable[[], None]) -> float:
    """Return the peak memory of `work` in MiB."""
    with PeakMemory() as memory:
        work()
    return memory.peak / MIB


@contextmanager
def _timed(cost: Cost) -> Iterator[None]:
    began = time.process_time()
    yield
    cost.cpu = time.process_time() - began


def _watched(model: Any, cost: Cost) -> Any:
    """Return a clone of `model` (MODEL) that notes the calls of its UNet and their time."""

    def wrapper(apply_model, args):
        cost.unet, began = cost.unet + 1, time.process_time()
        out = apply_model(args["input"], args["timestep"], **args["c"])
        cost.cpu_in_unet += time.process_time() - began
        return out

    watched = model.clone()
    watched.set_model_unet_function_wrapper(wrapper)
    return watched


@contextmanager
def _counted(cost: Cost, vae: Any) -> Iterator[None]:
    """Count the passes of `vae` (VAE), whoever calls it, and the guide's optimiser steps."""
    network, tick = vae.first_stage_model, painting_guide.check_interrupt
    encode, decode = network.encode, network.decode

    def encoding(picture: Tensor) -> Tensor:
        cost.encodes += 1
        return encode(picture)

    def decoding(latent: Tensor) -> Tensor:
        cost.decodes += 1
        cost.gradients += latent.requires_grad
        return decode(latent)

    def ticking() -> None:
        cost.optimiser += 1  # the guide looks for an interrupt before each of its steps
        tick()

    with (
        patch.object(network, "encode", encoding),
        patch.object(network, "decode", decoding),
        patch.object(painting_guide, "check_interrupt", ticking),
    ):
        yield


def of_time(bench: Bench, steps: int = STEPS) -> str:
    """Return the table of times and calls."""
    plain = bench.run(SHORT)
    linear, by_vae = bench.run(steps, decoder="linear"), bench.run(SHORT, **SHORT_GUIDE)
    backward, forward = cpu_seconds(bench.decode), cpu_seconds(lambda: bench.decode(backward=False))
    apart = by_vae.as_plain(plain) + by_vae.encodes * cpu_seconds(bench.encode) + by_vae.gradients * backward
    apart += (by_vae.decodes - by_vae.gradients) * forward
    rows = [
        plain.row("plain sampling", SHORT, plain),
        linear.row("guided, linear, first run", steps, plain),
        by_vae.row("guided, vae, 1 guided step", SHORT, plain),
    ]
    about = {
        "size": bench.size,
        "threads": torch.get_num_threads(),
        "apart": apart,
        "over": by_vae.cpu / apart,
        "rest": plain.cpu / plain.cpu_in_unet - 1,
    }
    return "\n".join([HEAD, *rows]) + "\n\n" + EXPLAINED.format(**about, **vars(by_vae))


def of_memory(bench: Bench) -> str:
    """Return the table of peak memory."""
    plain = peak(lambda: bench.decode(backward=False))
    few, many = (peak(lambda c=c: bench.decode(checkpointing=c)) for c in (True, False))
    over = {"few": few / plain, "many": many / plain}
    return MEMORY.format(size=bench.size, plain=plain, checkpointed=few, whole=many, **over)


def run() -> str:
    """Measure time and memory and return the section of RESULTS.md."""
    bench = Bench()
    title = "## What the painting guide costs on SD 1.5"
    return f"{title}\n\n`python run.py bench cost`\n\n{of_time(bench)}\n\n{of_memory(bench)}\n"
