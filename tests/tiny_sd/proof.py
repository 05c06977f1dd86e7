"""Prove the demo model: measure it through the real host, print the figures, write them into the model card.

python tests/tiny_sd/proof.py [--samples 200] [--dry]

Needs what `train.py` needs (the host at COMFYUI_PATH or in `.host/ComfyUI`). Rewrites samples.jpg and part
of MODEL_CARD.md between the `figures` markers. With --dry it only prints; the sheet goes to `.host/training`.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from tiny_sd import host_model  # noqa: E402

host_model.open_host()

import comfy.utils  # noqa: E402
import torch  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402
from torch import Tensor  # noqa: E402

from tiny_sd import classifier, measure  # noqa: E402
from tiny_sd.data import HELD_OUT  # noqa: E402
from tiny_sd.world import SIZE, Spec, draw, make_spec  # noqa: E402

BEGIN, END = "<!-- figures: written by proof.py -->", "<!-- end of figures -->"
STATE = ROOT / ".host" / "training"
SHEET, COLUMNS, CAPTION = 40, 8, 40  # samples on the sheet, per row, and px for a caption
SAMPLE_SEED = HELD_OUT + 1000  # the sampled captions; the real scenes start at HELD_OUT


def share(hits: Sequence[bool]) -> str:
    """Return for example `95.0 % (190 of 200)`."""
    if not hits:
        return "none asked"
    return f"{100 * sum(hits) / len(hits):.1f} % ({sum(hits)} of {len(hits)})"


def recognition(hits: Sequence[Sequence[bool]]) -> dict[str, str]:
    """Split recognition by object and by the number of objects asked for."""
    one, two = ([hit for hit in hits if len(hit) == count] for count in (1, 2))
    return {
        "main object": share([hit[0] for hit in hits]),
        "main object, one-object captions": share([hit[0] for hit in one]),
        "main object, two-object captions": share([hit[0] for hit in two]),
        "second object": share([hit[1] for hit in two]),
        "both objects": share([all(hit) for hit in two]),
    }


def measured(host: measure.Host, count: int, sheet: Path) -> dict[str, str]:
    """Measure everything, write the sample sheet, return the figures by name."""
    judge = classifier.load()
    figures = spent() | on_real_scenes(host, judge)
    specs = [make_spec(SAMPLE_SEED + index) for index in range(count)]
    begun, batches = time.monotonic(), []
    for batch in measure.samples(host, specs):
        batches.append(batch)
        print(f"sampled {sum(map(len, batches))} of {count}", flush=True)
    seconds = time.monotonic() - begun
    images = torch.cat(batches)
    hits = judge.recognised(images, specs)
    figures |= {f"{count} samples: {key}": text for key, text in recognition(hits).items()}
    machine = f"{os.cpu_count()} CPU cores" if host.model.load_device.type == "cpu" else "a GPU"
    figures[f"Seconds per sample, in batches of 20, on {machine}"] = f"{seconds / count:.2f}"
    draw_sheet(images, specs, hits).save(sheet, quality=88)
    return figures


def spent() -> dict[str, str]:
    """Return what training took, where the training state lies on this machine."""
    figures = {}
    for name, file in (("Autoencoder", "autoencoder.pt"), ("UNet and text encoder", "unet.pt")):
        if (STATE / file).exists():
            state = torch.load(STATE / file, weights_only=True, mmap=True)
            figures[f"{name}: training"] = f"{state['step']} steps, {state['seconds'] / 60:.0f} minutes"
    return figures


def on_real_scenes(host: measure.Host, judge: classifier.Classifier) -> dict[str, str]:
    """Measure autoencoder, classifier and cross-attention on held-out scenes."""
    scenes = [draw(make_spec(HELD_OUT + index)) for index in range(400)]
    first = scenes[:64]
    rebuilt = measure.rebuilt(host, first)
    figures = {"Autoencoder: PSNR on 64 held-out scenes": f"{measure.psnr(rebuilt, first):.1f} dB"}
    real = judge.recognised(classifier.pictures([s.image for s in scenes]), [s.spec for s in scenes])
    figures |= {f"Classifier on 400 held-out scenes: {key}": text for key, text in recognition(real).items()}
    soft = judge.recognised(rebuilt, [s.spec for s in first])
    figures["Classifier on 64 of them rebuilt by the autoencoder: main object"] = share([h[0] for h in soft])
    for timestep in (300, 800):
        judged = measure.attention(host, scenes[:100], timestep)
        words = [word for scene in judged for word in scene]
        name = f"Cross-attention at t = {timestep}, 100 held-out scenes:"
        main, second = ([scene[i].inside_box for scene in judged if len(scene) > i] for i in (0, 1))
        figures[f"{name} peak of the main object's word in its box"] = share(main)
        figures[f"{name} peak of the second object's word in its box"] = share(second)
        contrast = sum(word.contrast for word in words) / len(words)
        figures[f"{name} mean inside the mask / mean outside"] = f"{contrast:.2f}"
    return figures


def draw_sheet(images: Tensor, specs: Sequence[Spec], hits: Sequence[Sequence[bool]]) -> Image.Image:
    """Lay the first samples out with their captions; a red line marks those that lack an object."""
    shown = min(SHEET, len(specs))
    width, height = SIZE + 8, SIZE + CAPTION
    sheet = Image.new("RGB", (COLUMNS * width, -(-shown // COLUMNS) * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=9)
    for index in range(shown):
        x, y = index % COLUMNS * width + 4, index // COLUMNS * height + 2
        pixels = (images[index].movedim(0, -1).clamp(0, 1) * 255).round().byte().numpy()
        sheet.paste(Image.fromarray(pixels), (x, y))
        if not all(hits[index]):
            pen.rectangle((x, y + SIZE, x + SIZE - 1, y + SIZE + 1), fill=(210, 30, 30))
        words = textwrap.fill(specs[index].caption, 27)
        pen.text((x, y + SIZE + 3), words, fill="black", font=font, spacing=1)
    return sheet


def write_card(figures: dict[str, str], card: Path = HERE / "MODEL_CARD.md") -> None:
    """Put the figures between the card's markers."""
    text = card.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        sys.exit(f"{card.name} has lost the markers '{BEGIN}' and '{END}'; put them back around the figures.")
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    rows = ["| what | figure |", "|---|---|", *(f"| {key} | {value} |" for key, value in figures.items())]
    card.write_text(head + "\n".join([BEGIN, *rows, END]) + tail, encoding="utf-8", newline="\n")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--dry", action="store_true", help="print only; leave the model card as it is")
    args = parser.parse_args()
    comfy.utils.set_progress_bar_enabled(False)
    host = measure.Host(*host_model.load_demo_model())
    sheet = (STATE if args.dry else HERE) / "samples.jpg"
    sheet.parent.mkdir(parents=True, exist_ok=True)
    figures = measured(host, args.samples, sheet)
    for key, value in figures.items():
        print(f"{key}: {value}")
    if not args.dry:
        write_card(figures)


if __name__ == "__main__":
    main()
