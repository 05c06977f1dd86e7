"""Null-text optimisation by its settings: how close it comes to the trajectory, and for how many backward passes."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.inversion import Photos, Setting, fitted, photographs, plain, psnr

PHOTOS, SETTING = 10, Setting(50, 7.5)
PAPER = {"inner_steps": 10, "learning_rate": 0.01, "momentum": 0.9, "stop": 1e-5}
ROWS: dict[str, dict[str, Any]] = {
    "empty negative, not fitted": {"inner_steps": 0},
    "empty negative, the paper's settings": PAPER,
    "empty negative, the node's defaults": {},
    "empty negative, 3 inner steps": {"inner_steps": 3},
    "source prompt, not fitted": {"inner_steps": 0, "from_source": True},
    "source prompt, the node's defaults": {"from_source": True},
}


@torch.inference_mode()
def row(photos: Photos, name: str, widgets: dict[str, Any]) -> str:
    """Return a row of the table."""
    part, before = slice(0, PHOTOS), photos.meter.read()
    start = fitted(photos, part, SETTING, **widgets)
    backward = (photos.meter.read() - before)[1].item()
    path = start.trajectory
    losses = path.residuals.square() / (1 + path.sigmas[1:, None] ** 2)
    images = photos.vae.decode(plain(photos, part, SETTING, start))
    back = psnr(images, photos.rebuilt[part])
    return f"| {name} | {backward:.0f} | {losses.mean():.2g} | {back.mean():.1f} | {back.min():.1f} |"


def run() -> str:
    """Fit with all settings and return the section of RESULTS.md."""
    torch.set_num_threads(1)
    photos = photographs()
    rows = "\n".join(row(photos, name, widgets) for name, widgets in ROWS.items())
    return TEXT.format(rows=rows)


TEXT = f"""## Null-text optimisation by its settings

`python run.py bench null_text`

| texts start from | backward passes | loss | PSNR | worst PSNR |
| --- | ---: | ---: | ---: | ---: |
{{rows}}

The first {PHOTOS} photos of the round trips above in one batch, {SETTING.steps} steps, CFG {SETTING.cfg:g}, trajectory
of ddim at CFG 1. Loss: where each step ends, mean of steps and photos, on the paper's scale. PSNR: of the round trip
with the texts against the autoencoder's reconstruction, dB. The paper's settings: 10 inner steps, learning rate 0.01,
momentum 0.9, stop 0.00001; here, too, the best text of a step is kept."""
