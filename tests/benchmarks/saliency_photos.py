"""Gradient matching with real ImageNet weights on photographs: how far it comes, and where its noise has structure.

EfficientNet-lite0, the cat Chelsea in the middle, and a cup of coffee left and right of it. What was searched is kept
in `.host/benchmarks/saliency_photos` every hundred steps; delete the files there to search again. Half an hour on one
core.
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
from imagenet.photos import chelsea, coffee

FOLDER = KEPT.with_name("saliency_photos")
SIZE, CELL, EVERY, STEPS, DEVIATION = 224, 16, 100, 300, 0.05
DESCENT = Descent(STEPS, 0.03, False, 1e-4, cosine=True)
PHOTOS = {
    "Chelsea": chelsea,
    "coffee on the left": lambda: coffee()[:357, 196:553],
    "coffee on the right": lambda: coffee()[:357, 36:393],
}


class Photo:
    """A photograph, its likeliest label, and the search from nearly grey noise."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.classifier = efficientnet_lite0()
        pixels = torch.from_numpy(PHOTOS[title]()).movedim(-1, 0)[None].float() / 255
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
        file = FOLDER / f"{self.title.replace(' ', '-')}_{steps}.pt"
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


def lines(photo: Photo) -> list[str]:
    """Return the lines of the table for a photograph, and save what they tell of as a picture in FOLDER."""
    cam, found = photo.grad_cam(), []
    seen, pictures = avg_pool2d(cam, CELL), [photo.reference, cam.expand(-1, 3, -1, -1)]
    found.append(line(f"{photo.title}, Grad-CAM of {photo.name} ({photo.chance:.2f})", seen, seen, ""))
    for count in (EVERY, STEPS):
        made = photo.searched(count)
        latent = made["state"]["latent"]
        cells, last = energy(latent - photo.start), made["objective"][-1]
        found.append(line(f"{photo.title}, {count} steps", cells, seen, f"{last:.3f}"))
        pictures.append(latent)
    save_image(torch.cat(pictures).clamp(0, 1), FOLDER / f"{photo.title.replace(' ', '-')}.png", nrow=2)
    return found


@torch.inference_mode()
def run() -> str:
    """Search, and return the section of RESULTS.md."""
    torch.set_num_threads(1)
    rows = [row for title in PHOTOS for row in lines(Photo(title))]
    return TEXT.format(rows="\n".join(rows))


TEXT = f"""## Gradient matching with ImageNet weights on photographs

`python run.py bench saliency_photos`

| | 1 - cosine | x | y | like Grad-CAM |
| --- | ---: | ---: | ---: | ---: |
{{rows}}

EfficientNet-lite0 on scikit-image's photographs, {SIZE} px high: Chelsea seen whole, the cup of coffee cut so that it
is left or right of the middle; the label is the likeliest, with its probability. All layers' gradients, {STEPS} steps
over pixels, Adam {DESCENT.learning_rate:g} (not signed) falling along a cosine, from grey with noise of {DEVIATION:g}.
x, y: centre of mass (the middle is 0.50) of the squared change of the pixels, in cells of {CELL} px. Like Grad-CAM:
correlation of these cells with Grad-CAM's."""
