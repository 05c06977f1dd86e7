"""Gradient matching with real ImageNet weights on a photograph: how far it comes, and where its noise has structure.

EfficientNet-lite0 and the cat Chelsea. What was searched is kept in `.host/benchmarks/saliency_photos` every hundred
steps; delete the files there to search again. About ten minutes on one free core.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torchvision.transforms.v2.functional import resize
from torchvision.utils import save_image

from benchmarks.inversion import KEPT
from guided_synthesis.guidance.gradient_matching import GradientMatching
from guided_synthesis.guidance.inverting import Descent, Inverter, State
from guided_synthesis.guidance.saliency_sources import saliency
from imagenet.classifiers import efficientnet_lite0
from imagenet.photos import chelsea

FOLDER = KEPT.with_name("saliency_photos")
SIZE, CELL, EVERY, STEPS, DEVIATION = 224, 16, 100, 300, 0.05
DESCENT = Descent(STEPS, 0.03, False, 1e-4, cosine=True)


class Photo:
    """The photograph, its likeliest label, and the search from nearly grey noise."""

    def __init__(self) -> None:
        self.classifier = efficientnet_lite0()
        pixels = torch.from_numpy(chelsea()).movedim(-1, 0)[None].float() / 255
        self.reference = resize(pixels, [SIZE], antialias=True)
        self.name, self.chance = self.classifier.predicted(self.reference)[0][0]
        self.label = self.classifier.index(self.name)
        random_ = torch.Generator().manual_seed(0)
        self.start = 0.5 + DEVIATION * torch.randn(self.reference.shape, generator=random_)

    def grad_cam(self) -> Tensor:
        """Return Grad-CAM, (1, 1, H, W)."""
        with self.classifier.opened() as network:
            return saliency(network, self.classifier.prepare, self.reference, self.label)

    def searched(self, steps: int) -> dict[str, Any]:
        """Return the picture after so many steps, a multiple of EVERY, and all objectives until there."""
        file = FOLDER / f"{steps}.pt"
        if not file.exists():
            FOLDER.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            torch.save(self._made(steps), part)
            part.replace(file)
        return torch.load(file, weights_only=True)

    def _made(self, steps: int) -> dict[str, Any]:
        before = self.searched(steps - EVERY) if steps > EVERY else None
        state = State(**before["state"]) if before else None
        objective = list(before["objective"]) if before else []
        with self.classifier.opened() as network, torch.inference_mode(False), torch.enable_grad():
            matching = GradientMatching(network, self.classifier.prepare, self.reference, self.label)
            run = Inverter(self.start.clone(), lambda x: x, matching, DESCENT, state)
            objective += [run.step() for _ in range(EVERY)]
            return {"state": asdict(run.state()), "objective": objective}


def energy(change: Tensor) -> Tensor:
    """Return where `change` (1, 3, H, W) is: the mean square in cells of CELL px, (1, 1, h, w)."""
    return avg_pool2d(change.square().mean(1, keepdim=True), CELL)


def centre(weights: Tensor) -> tuple[float, float]:
    """Return x and y of the centre of mass of `weights` (1, 1, h, w), as parts of width and height."""
    shares = (weights / weights.sum())[0, 0]
    rows, columns = ((torch.arange(size) + 0.5) / size for size in shares.shape)
    return (shares.sum(0) @ columns).item(), (shares.sum(1) @ rows).item()


def line(name: str, cells: Tensor, seen: Tensor, objective: str) -> str:
    """Return a line of the table: where `cells` are, and how alike they are to Grad-CAM's, `seen`."""
    x, y = centre(cells)
    alike = torch.corrcoef(torch.stack([cells.flatten(), seen.flatten()]))[0, 1]
    return f"| {name} | {objective} | {x:.2f} | {y:.2f} | {alike:.2f} |"


def section(photo: Photo, steps: tuple[int, ...]) -> str:
    """Return the section of RESULTS.md, and save what it tells of as a picture in FOLDER."""
    cam, rows = photo.grad_cam(), []
    seen, pictures = avg_pool2d(cam, CELL), [photo.reference, cam.expand(-1, 3, -1, -1)]
    rows.append(line("Grad-CAM", seen, seen, ""))
    for count in steps:
        made = photo.searched(count)
        latent = made["state"]["latent"]
        rows.append(
            line(f"{count} steps", energy(latent - photo.start), seen, f"{made['objective'][-1]:.3f}")
        )
        pictures.append(latent)
    save_image(torch.cat(pictures).clamp(0, 1), FOLDER / "photo.png", nrow=2)
    return TEXT.format(
        rows="\n".join(rows), label=photo.name, chance=photo.chance, first=made["objective"][0]
    )


@torch.inference_mode()
def run() -> str:
    """Search, and return the section of RESULTS.md."""
    torch.set_num_threads(1)
    return section(Photo(), (EVERY, STEPS))


TEXT = f"""## Gradient matching with ImageNet weights on a photograph

`python run.py bench saliency_photos`

| | 1 - cosine | x | y | like Grad-CAM |
| --- | ---: | ---: | ---: | ---: |
{{rows}}

EfficientNet-lite0 on the photograph Chelsea, {SIZE} px high and seen whole; label: {{label}}, its likeliest
({{chance:.2f}}). All layers' gradients, {STEPS} steps over pixels, Adam {DESCENT.learning_rate:g} (not signed) falling
along a cosine, from grey with noise of {DEVIATION:g}, where the objective is {{first:.3f}}. x, y: centre of mass (the
middle is 0.50) of the squared change of the pixels, in cells of {CELL} px. Like Grad-CAM: correlation of these cells
with Grad-CAM's."""
