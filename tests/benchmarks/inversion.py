"""Round trips: 50 photos of the demo world are inverted and sampled again, by every method, steps and CFG.

Forty photos have their true caption, ten that of another scene. What is measured is kept in
`.host/benchmarks/inversion`, one file for each cell, and not measured again; delete a file there to do so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import folder_paths
import torch
from torch import Tensor

from benchmarks.study import SAMPLER, defaults
from comfy_host.places import ROOT
from guided_synthesis.guidance.inversion import BELM, DDIM, IMPLICIT
from guided_synthesis.guidance.trajectory import Trajectory
from guided_synthesis.nodes import inversion, null_text
from guided_synthesis.nodes.host.inversion import invert
from guided_synthesis.nodes.host.perceptual import open_lpips
from guided_synthesis.nodes.host.sampling import NEARLY_ZERO
from imagenet.weights import install
from tiny_sd import data
from tiny_sd.host_model import load_demo_model
from tiny_sd.world import Spec, draw, make_spec

KEPT = ROOT / ".host" / "benchmarks" / "inversion"
RIGHT, WRONG, FIRST = 40, 10, data.HELD_OUT + 80_000
STEPS, CFGS, SCHEDULER = (50, 20, 10), (7.5, 1.0, 3.0), "karras"
BATCH = 10
MOST = 80.0  # dB: what equal pictures count as


@dataclass(frozen=True)
class Setting:
    """How a photo is sampled again."""

    steps: int
    cfg: float


@dataclass(frozen=True)
class Start:
    """What an inversion of B photos found, for sampling."""

    latent: Tensor
    """(B, C, h, w): the noise, as samples of a LATENT."""
    trajectory: Trajectory | None = None
    negative: list | None = None
    """CONDITIONING; None: an empty prompt."""


class Meter:
    """Counts passes of a model and CPU seconds."""

    def __init__(self) -> None:
        self.passes = torch.zeros(3, dtype=torch.float64)

    def read(self) -> Tensor:
        """Return (3,): forward passes and backward passes so far, and CPU seconds."""
        return self.passes + torch.tensor([0.0, 0.0, time.process_time()])

    def counted(self, model: Any) -> Any:
        """Return a clone of MODEL whose passes are counted, each for a whole batch, with both halves of CFG."""

        def wrapper(apply_model, args):
            self.passes[0] += 1
            self.passes[1] += args["c"]["c_crossattn"].requires_grad
            return apply_model(args["input"], args["timestep"], **args["c"])

        clone = model.clone()
        clone.set_model_unet_function_wrapper(wrapper)
        return clone


class Photos:
    """Drawn scenes as photos, what their captions are said to be, and the demo model."""

    @torch.inference_mode()
    def __init__(self, specs: list[Spec], captions: list[str]) -> None:
        model, self.clip, self.vae = load_demo_model()
        self.meter, self.captions = Meter(), captions
        self.model = self.meter.counted(model)
        self.images = pictures(specs)
        self.latents = self.vae.encode(self.images)
        self.rebuilt = self.vae.decode(self.latents)
        self._found: dict[Any, tuple[Start, Tensor]] = {}
        self.inverted(DDIM, slice(0, 1), Setting(2, 1.0))  # loads the model

    def __len__(self) -> int:
        return len(self.captions)

    def sigmas(self, steps: int) -> Tensor:
        """Return the schedule of sampling."""
        sampling = self.model.get_model_object("model_sampling")
        return comfy.samplers.calculate_sigmas(sampling, SCHEDULER, steps)

    def text(self, part: slice, empty: bool = False) -> list:
        """Return CONDITIONING of the captions of `part`, or of as many empty prompts."""
        texts = ["" if empty else text for text in self.captions[part]]
        return [[torch.cat([self.clip.encode_from_tokens(self.clip.tokenize(text)) for text in texts]), {}]]

    def inverted(self, method: str, part: slice, setting: Setting) -> Start:
        """Return what Invert finds, at its defaults."""
        widgets = defaults(inversion.Invert)
        trajectory = invert(
            self.model,
            self.text(part),
            self.text(part, empty=True),
            setting.cfg,
            self.sigmas(setting.steps),
            self.latents[part],
            method,
            widgets["tolerance"],
            widgets["max_iterations"],
            lambda *_: None,
        )
        return Start(self.model.model.process_latent_out(trajectory.latents[0].float()), trajectory)

    def once(self, find: Callable[[Photos, slice, Setting], Start], part: slice, setting: Setting) -> Start:
        """Return find(self, part, setting), found at most once; the meter counts it every time."""
        key, before = (find, part.start, part.stop, setting), self.meter.read()
        if key not in self._found:
            start = find(self, part, setting)
            self._found[key] = start, self.meter.read() - before
        else:
            self.meter.passes += self._found[key][1]
        return self._found[key][0]

    def sampled(
        self,
        latent: Tensor,
        part: slice,
        setting: Setting,
        model: Any = None,
        sampler: Any = None,
        negative: list | None = None,
        sigmas: Tensor | None = None,
    ) -> Tensor:
        """Return where sampling leads from noisy samples `latent` (B, C, h, w)."""
        return comfy.sample.sample_custom(
            model or self.model,
            torch.zeros_like(latent),
            setting.cfg,
            sampler or comfy.samplers.sampler_object(SAMPLER),
            self.sigmas(setting.steps) if sigmas is None else sigmas,
            self.text(part),
            negative or self.text(part, empty=True),
            latent,
            disable_pbar=True,
        )


def unsampled(photos: Photos, part: slice, setting: Setting) -> Start:
    """The host's euler on flipped sigmas."""
    sigmas = photos.sigmas(setting.steps).flip(0)
    sigmas[0] = NEARLY_ZERO
    return Start(photos.sampled(photos.latents[part], part, setting, sigmas=sigmas))


def _pivot(photos: Photos, part: slice, setting: Setting) -> Start:
    return photos.inverted(DDIM, part, Setting(setting.steps, 1.0))


def pivot(photos: Photos, part: slice, setting: Setting) -> Start:
    """DDIM inversion at CFG 1, whatever CFG sampling will have."""
    return photos.once(_pivot, part, Setting(setting.steps, 1.0))


def exact(method: str) -> Callable[[Photos, slice, Setting], Start]:
    """Inversion with `method` at the CFG of sampling."""
    return lambda photos, part, setting: photos.inverted(method, part, setting)


def own_prompt(photos: Photos, part: slice, setting: Setting) -> Start:
    """Negative-prompt inversion (arXiv 2305.16807): the source prompt is the negative too."""
    found = pivot(photos, part, setting)
    return Start(found.latent, found.trajectory, photos.text(part))


def fitted(
    photos: Photos, part: slice, setting: Setting, from_source: bool = False, **others: float
) -> Start:
    """Null-text optimisation along the pivot, at the node's defaults but for `others`, from an empty negative."""
    found, widgets = (
        pivot(photos, part, setting),
        defaults(null_text.NullText) | {"cfg": setting.cfg} | others,
    )
    texts = photos.text(part), photos.text(part, empty=not from_source)
    made = null_text.NullText.execute(
        model=photos.model,
        positive=texts[0],
        negative=texts[1],
        trajectory=found.trajectory,
        **widgets,
    )
    return Start(found.latent, made.args[1], made.args[0])


def plain(photos: Photos, part: slice, setting: Setting, start: Start) -> Tensor:
    """Euler from the noise, with what the inversion takes for the negative."""
    return photos.sampled(start.latent, part, setting, negative=start.negative)


def two_latents(photos: Photos, part: slice, setting: Setting, start: Start) -> Tensor:
    """The BELM Sampler."""
    sampler = inversion.BELMSampler.execute(start.trajectory).args[0]
    return photos.sampled(start.latent, part, setting, sampler=sampler)


def corrected(photos: Photos, part: slice, setting: Setting, start: Start) -> Tensor:
    """Direct inversion."""
    model = inversion.DirectInversion.execute(photos.model, start.trajectory).args[0]
    return photos.sampled(start.latent, part, setting, model=model)


@dataclass(frozen=True)
class Method:
    """A way up to the noise and down again."""

    name: str
    find: Callable[[Photos, slice, Setting], Start]
    follow: Callable[[Photos, slice, Setting, Start], Tensor] = plain
    batch: int = BATCH
    only_above_1: bool = False


METHODS = (
    Method("host unsampling", unsampled),
    Method("ddim", pivot),
    Method("implicit", exact(IMPLICIT), batch=1),  # a batch waits for its slowest picture
    Method("o-belm", exact(BELM), two_latents),
    Method("negative-prompt", own_prompt),
    Method("null-text", fitted, only_above_1=True),
    Method("direct", pivot, corrected),
)


@dataclass(frozen=True)
class Cell:
    """A method at a setting."""

    method: Method
    setting: Setting

    @property
    def file(self) -> Path:
        """Return where its result is kept."""
        name = self.method.name.replace(" ", "-")
        return KEPT / f"{name}_{self.setting.steps}_{self.setting.cfg:g}.pt"


def cells() -> list[Cell]:
    """Return all cells in the order in which they are made."""
    settings = [Setting(steps, cfg) for cfg in CFGS for steps in STEPS]
    return [Cell(m, s) for s in settings for m in METHODS if s.cfg > 1 or not m.only_above_1]


@dataclass(frozen=True)
class Made:
    """The result of a cell for its first N photos, in P batches."""

    latents: Tensor
    """(N, C, h, w): what was sampled."""
    spread: Tensor
    """(N,): standard deviation of the noise found, of 1 for pure noise."""
    unsolved: Tensor
    """(N,): whether implicit says that a step was not solved."""
    inverting: Tensor
    """(P, 3): forward passes, backward passes and CPU seconds of the inversion."""
    sampling: Tensor
    """(P, 3): the same of sampling."""


@torch.inference_mode()
def make(photos: Photos, cell: Cell, part: slice) -> Made:
    """Invert the photos of `part` and sample them again."""
    times = [photos.meter.read()]
    start = cell.method.find(photos, part, cell.setting)
    times.append(photos.meter.read())
    latents = cell.method.follow(photos, part, cell.setting, start)
    times.append(photos.meter.read())
    noise = photos.model.model.process_latent_in(start.latent)
    spread = noise.flatten(1).std(1) / (1 + photos.sigmas(cell.setting.steps)[0] ** 2).sqrt()
    missed = torch.zeros(len(latents), dtype=torch.bool)
    if start.trajectory is not None and start.trajectory.method == IMPLICIT:
        missed = (start.trajectory.residuals > defaults(inversion.Invert)["tolerance"]).any(0)
    costs = [(after - before)[None] for before, after in pairwise(times)]
    return Made(latents.float(), spread, missed, *costs)


def kept(cell: Cell) -> Made | None:
    """Return what was made of `cell` so far, for the first photos or all, or None."""
    return Made(**torch.load(cell.file, weights_only=True)) if cell.file.exists() else None


def keep(photos: Photos, cell: Cell) -> None:
    """Make what is missing of `cell`, and keep it as it comes."""
    made = kept(cell)
    for part in parts(len(made.latents) if made else 0, len(photos), cell.method.batch):
        new = make(photos, cell, part)
        made = (
            new
            if made is None
            else Made(*(torch.cat(pair) for pair in zip(_all(made), _all(new), strict=True)))
        )
        KEPT.mkdir(parents=True, exist_ok=True)
        unfinished = cell.file.with_suffix(".part")
        torch.save(vars(made), unfinished)
        unfinished.replace(cell.file)


def _all(made: Made) -> list[Tensor]:
    return list(vars(made).values())


@dataclass(frozen=True)
class Row:
    """What the table says of a cell; tensors are (N,)."""

    cell: Cell
    made: Made
    psnr: Tensor
    """Of the result against the autoencoder's own reconstruction, dB."""
    loss: Tensor
    """Of PSNR against the photo, to what the autoencoder alone reaches, dB."""
    lpips: Tensor
    missed: Tensor
    """What the latent is missed by, rms in the model's space: as the node's check says it."""

    @property
    def name(self) -> str:
        """Return the name of the method, and of how many photos if not of all."""
        count = len(self.psnr)
        return self.cell.method.name + (f" ({count} photos)" if count < RIGHT + WRONG else "")

    def within(self, loss: float, which: slice = slice(None)) -> float:
        """Return the share of photos that lose at most `loss` dB."""
        return (self.loss[which] <= loss).float().mean().item()

    def calls(self, kind: str) -> float:
        """Return passes a sampling step: forward or backward ones of the inversion, or those of sampling."""
        passes = {
            "forward": self.made.inverting[:, 0],
            "backward": self.made.inverting[:, 1],
            "sampling": self.made.sampling[:, 0],
        }[kind]
        return passes.mean().item() / self.cell.setting.steps

    @property
    def seconds(self) -> float:
        """Return CPU seconds for a photo."""
        return (self.made.inverting + self.made.sampling)[:, 2].sum().item() / len(self.psnr)


@torch.inference_mode()
def judged(photos: Photos, cell: Cell, made: Made, distance: Callable[[Tensor, Tensor], Tensor]) -> Row:
    """Return the row of a cell."""
    images = photos.vae.decode(made.latents)
    rebuilt, photo = photos.rebuilt[: len(images)], photos.images[: len(images)]
    seen = distance(images.movedim(-1, 1), rebuilt.movedim(-1, 1))
    scaled = photos.model.model.process_latent_in
    missed = (scaled(made.latents) - scaled(photos.latents[: len(images)])).square().mean((1, 2, 3)).sqrt()
    return Row(cell, made, psnr(images, rebuilt), psnr(rebuilt, photo) - psnr(images, photo), seen, missed)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return PSNR (B,) in dB of pictures in [0, 1], at most MOST."""
    return (-10 * (a - b).square().flatten(1).mean(1).log10()).clamp(max=MOST)


def parts(first: int, count: int, batch: int) -> Iterator[slice]:
    """Yield slices of at most `batch` from `first` on, out of `count`."""
    return (slice(start, min(start + batch, count)) for start in range(first, count, batch))


def pictures(specs: list[Spec]) -> Tensor:
    """Return the drawn scenes as IMAGE (B, H, W, 3)."""
    return torch.stack([torch.from_numpy(draw(spec).image.copy()) for spec in specs]).float() / 255


def install_lpips(*names: str) -> None:
    """Put the ImageNet weights of `names` (`alexnet`, `vgg16`) where LPIPS looks for them in the host."""
    install(Path(folder_paths.models_dir) / "lpips", *names)


def photographs() -> Photos:
    """Return the 50 photos."""
    specs = [make_spec(FIRST + index) for index in range(RIGHT + WRONG)]
    captions = [spec.caption for spec in specs]
    return Photos(specs, captions[:RIGHT] + captions[:WRONG])


def rows(photos: Photos) -> list[Row]:
    """Return the rows of all cells that are made so far."""
    install_lpips("alexnet")
    with open_lpips("alex") as distance:
        found = ((cell, kept(cell)) for cell in cells())
        return [judged(photos, cell, made, distance) for cell, made in found if made is not None]


def table(found: list[Row], cfg: float) -> str:
    """Return the table of one CFG."""
    lines = [HEAD.format(cfg=cfg), "| --- " + "| ---: " * (HEAD.count("|") - 2) + "|"]
    for row in (row for row in found if row.cell.setting.cfg == cfg):
        right, wrong = row.psnr[:RIGHT].mean(), row.psnr[RIGHT:]
        values = [str(row.cell.setting.steps), f"{right:.1f}", f"{wrong.mean():.1f}" if len(wrong) else ""]
        values += [f"{row.loss.mean():.2f}"]
        values += [f"{row.within(0.3):.0%}", f"{row.within(0.1):.0%}", f"{row.lpips.mean():.4f}"]
        values += [f"{row.calls(kind):.1f}" for kind in ("forward", "backward", "sampling")]
        values += [f"{row.made.spread.mean():.2f}", f"{row.seconds:.1f}"]
        lines.append(f"| {' | '.join([row.name, *values])} |")
    return "\n".join(lines)


def goals(found: list[Row]) -> str:
    """Return the goals with what was measured, of the cells that are made."""
    known = {(r.cell.method.name, r.cell.setting): r for r in found}
    lines = ["| goal | measured | |", "| --- | --- | --- |"]
    for name, cfg, loss, share, calls in GOALS:
        for steps in STEPS if cfg == 1 else STEPS[:1]:
            row = known.get((name, Setting(steps, cfg)))
            if row is not None:
                lines.append(_goal(row, loss, share, calls))
    return "\n".join(lines)


def _goal(row: Row, loss: float, share: float, calls: float) -> str:
    name, setting, took = row.name, row.cell.setting, row.calls("forward")
    wanted = f"{name}, CFG {setting.cfg:g}, {setting.steps} steps: within {loss:g} dB"
    wanted += f" for {share:.0%}" if share < 1 else ""
    wanted += f", at most {calls:g} calls a step" if calls else ""
    measured = f"{row.within(loss):.0%}, with the right caption {row.within(loss, slice(0, RIGHT)):.0%}"
    measured += f"; worst photo {row.loss.max():.2f} dB" + (f"; {took:.1f} calls" if calls else "")
    met = row.within(loss) >= share and (not calls or took <= calls)
    return f"| {wanted} | {measured} | {'met' if met else 'missed'} |"


def flagged(found: list[Row]) -> str:
    """Return a row for each cell of implicit: how many photos are flagged, by the check or by a step, and are lost."""
    lines = [
        "| implicit | lost more than 0.3 dB | flagged by the check | of the lost | flagged by a step | of the lost |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in (row for row in found if row.cell.method.name == IMPLICIT):
        bad, setting = row.loss > 0.3, row.cell.setting
        flags = row.missed > inversion.SEEN, row.made.unsolved
        counts = [bad, *(which for flag in flags for which in (flag, flag & bad))]
        cells_of_row = " | ".join(str(int(which.sum())) for which in counts)
        lines.append(f"| CFG {setting.cfg:g}, {setting.steps} steps, {len(bad)} photos | {cells_of_row} |")
    return "\n".join(lines)


def section(photos: Photos) -> str:
    """Return the section of RESULTS.md from the cells that are made so far."""
    found = rows(photos)
    floor = psnr(photos.rebuilt, photos.images).mean()
    tables = [table(found, cfg) for cfg in CFGS if any(row.cell.setting.cfg == cfg for row in found)]
    head = f"{TITLE}\n\n`python run.py bench inversion`\n\n{INTRODUCTION.format(floor=floor)}"
    body = [head, *tables, *missing(found), LEGEND, goals(found), flagged(found)]
    return "\n\n".join(body) + "\n"


def missing(found: list[Row]) -> list[str]:
    """Return the sentence that names the cells that are not made, if there are any."""
    made = {row.cell.file for row in found}
    names = [
        f"{cell.method.name} {cell.setting.steps}/{cell.setting.cfg:g}"
        for cell in cells()
        if cell.file not in made
    ]
    return [f"Not made yet (method, steps/CFG): {', '.join(names)}."] if names else []


def run() -> str:
    """Make all cells and return the section of RESULTS.md."""
    torch.set_num_threads(1)
    photos = photographs()
    for cell in cells():
        keep(photos, cell)
    return section(photos)


GOALS = (  # method, CFG, dB, share of photos, calls a step (0: any)
    *((name, 1.0, 0.1, 1.0, 0) for name in (IMPLICIT, BELM, "direct")),
    ("direct", 7.5, 0.3, 1.0, 0),
    ("null-text", 7.5, 0.3, 1.0, 0),
    (IMPLICIT, 7.5, 0.3, 0.9, 4),
)
TITLE = f"## Inversion: {RIGHT + WRONG} photos there and back"
HEAD = (
    "| CFG {cfg:g} | steps | PSNR | wrong caption | lost, dB | within 0.3 | within 0.1 | LPIPS | forward | backward "
    "| sampling | noise | CPU s |"
)
INTRODUCTION = f"""{RIGHT} held-out scenes with their true caption and {WRONG} with that of another scene; euler
(o-belm: its own sampler), {SCHEDULER}, demo model. The autoencoder alone returns the photos at {{floor:.1f}} dB."""
LEGEND = f"""PSNR: of the result against the autoencoder's own reconstruction (equal pictures count as {MOST:g} dB),
mean of the {RIGHT} photos with a true caption; of the {WRONG} others: wrong caption. Lost: PSNR against the photo that
is lost to the autoencoder alone, mean of all; within 0.3 and 0.1 dB: share of photos. LPIPS: AlexNet with ImageNet
weights, against the autoencoder's reconstruction. Forward and backward: model calls of the inversion, optimisation
included, for each sampling step; sampling: those afterwards. A call is a batch, with both halves of CFG where there
are two (each of null-text's has one). Noise: standard deviation of what was found, pure noise 1. CPU seconds: for a
photo, one thread, batches of {BATCH} (implicit: 1), beside other work. Host unsampling, implicit and o-belm invert at
the CFG of sampling, the others at CFG 1. Null-text at the node's defaults."""
