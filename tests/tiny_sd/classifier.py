"""Names the objects in a 128 px picture of the demo world: the independent judge of the demo model's samples.

A small convolutional network over places: every cell of an 8x8 grid scores the 32 nouns, and a soft maximum
over the cells scores the picture (several nouns may be true). It has seen only drawn scenes, never a sample
or a decoded picture; blur, colour shifts and noise in training keep it from minding soft pixels. Host-free.

A second one, `load(TURNED)`, has seen the scenes upright, on their sides and upside down: it judges whether an object
is hidden in the views of an illusion that are not its own.

python tests/tiny_sd/classifier.py [--steps 1100] [--scenes 20000] [--turned]     trains it again, prints its score
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, interpolate, softplus

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))

from tiny_sd import data  # noqa: E402
from tiny_sd.art import NOUNS  # noqa: E402
from tiny_sd.world import SIZE, Spec, draw, make_spec  # noqa: E402

WEIGHTS, TURNED = HERE / "classifier.safetensors", HERE / "classifier_turned.safetensors"
NAMES = tuple(NOUNS)
_WIDTHS = ((3, 32, 2), (32, 48, 1), (48, 96, 2), (96, 96, 1), (96, 160, 2), (160, 160, 1))  # in, out, stride


class Classifier(nn.Module):
    """The network; `scores`, `names` and `recognised` are what tests and benchmarks use."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in _WIDTHS:
            side = 5 if before == 3 else 3
            conv = nn.Conv2d(before, after, side, stride, side // 2, bias=False)
            layers += [conv, nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(_WIDTHS[-1][1], len(NAMES), 1)
        nn.init.constant_(self.head.bias, -7.0)  # most nouns are in few pictures

    def forward(self, small: Tensor) -> Tensor:
        """Return the logits (B, 32) of half-size pictures (B, 3, 64, 64) in [0, 1]."""
        cells = self.head(self.body(small * 2 - 1)).float()  # (B, 32, 8, 8)
        return cells.flatten(2).logsumexp(2)

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """Return (B, 32), how surely each noun is in the pictures (B, 3, 128, 128); all in [0, 1]."""
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, SIZE, SIZE):
            raise ValueError(
                f"The classifier wants pictures of shape (B, 3, {SIZE}, {SIZE}) but got "
                f"{tuple(images.shape)}; move the channels to dimension 1 and resize first."
            )
        device = self.head.weight.device
        parts = images.clamp(0, 1).float().split(100)
        return torch.cat([self(avg_pool2d(part.to(device), 2)).sigmoid() for part in parts])

    def names(self, images: Tensor, count: int = 1) -> list[list[str]]:
        """Return the `count` most probable nouns of each picture, best first."""
        best = self.scores(images).topk(count, dim=1).indices
        return [[NAMES[index] for index in row] for row in best.tolist()]

    def recognised(self, images: Tensor, specs: Sequence[Spec]) -> list[list[bool]]:
        """Say for each object of each spec whether it is among the picture's best nouns, one per object."""
        if len(images) != len(specs):
            raise ValueError(
                f"{len(images)} pictures came with {len(specs)} specs; give one spec per picture."
            )
        best = self.names(images, 2)
        return [
            [thing.noun in nouns[: len(spec.things)] for thing in spec.things]
            for nouns, spec in zip(best, specs, strict=True)
        ]


def load(file: Path = WEIGHTS) -> Classifier:
    """Return the trained classifier, in float32 on the CPU."""
    model = Classifier()
    model.load_state_dict({key: value.float() for key, value in load_file(file).items()}, strict=False)
    return model.eval().requires_grad_(False)


def pictures(images: Sequence[np.ndarray]) -> Tensor:
    """Return drawn scenes (H, W, 3) uint8 as one tensor (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def labels_of(specs: Sequence[Spec]) -> Tensor:
    """Return (N, 32): 1 where the noun is in the scene."""
    labels = torch.zeros(len(specs), len(NAMES))
    for row, spec in enumerate(specs):
        for thing in spec.things:
            labels[row, NAMES.index(thing.noun)] = 1
    return labels


def varied(small: Tensor, random: torch.Generator, turned: bool) -> Tensor:
    """Mirror, shift, scale, blur, tint and roughen pictures (B, 3, 64, 64), each differently.

    With `turned`, also by quarter turns.
    """

    def draws(*shape: int, low: float, high: float) -> Tensor:
        return torch.rand(len(small), *shape, generator=random) * (high - low) + low

    frames = torch.zeros(len(small), 2, 3)
    frames[:, 0, 0] = draws(low=0.85, high=1.15) * draws(low=-1, high=1).sign()
    frames[:, 1, 1] = draws(low=0.85, high=1.15)
    if turned:
        angle = torch.randint(4, (len(small),), generator=random) * torch.pi / 2
        rows = torch.stack([angle.cos(), -angle.sin()], 1), torch.stack([angle.sin(), angle.cos()], 1)
        frames[:, :, :2] = torch.stack(rows, 1) @ frames[:, :, :2]
    frames[:, :, 2] = draws(2, low=-0.12, high=0.12)
    grid = affine_grid(frames, list(small.shape), align_corners=False)
    small = grid_sample(small, grid, padding_mode="reflection", align_corners=False)
    blurred = avg_pool2d(small, 3, 1, 1, count_include_pad=False)
    small = torch.lerp(small, blurred, draws(1, 1, 1, low=0, high=1))
    small = small * draws(3, 1, 1, low=0.8, high=1.2) + draws(3, 1, 1, low=-0.1, high=0.1)
    blotches = torch.randn(len(small), 3, 8, 8, generator=random)
    blotches = interpolate(blotches, size=small.shape[2:], mode="bilinear")
    small = small + blotches * draws(1, 1, 1, low=0, high=0.08)
    grain = torch.randn(small.shape, generator=random)
    return (small + grain * draws(1, 1, 1, low=0, high=0.06)).clamp(0, 1)


def train(scenes: int, steps: int, cache: Path, batch: int = 64, turned: bool = False) -> Classifier:
    """Train on the first `scenes` scenes (seeds below `data.HELD_OUT` only), which `cache` keeps."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    drawn, _, _ = data.scenes(scenes, cache)
    half = [avg_pool2d(pictures(list(drawn[start : start + 500])), 2) for start in range(0, scenes, 500)]
    small, labels = torch.cat(half).half(), labels_of([make_spec(seed) for seed in range(scenes)])
    model = Classifier().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for step in range(1, steps + 1):
        picks = torch.randint(scenes, (batch,), generator=random)
        images = varied(small[picks].float(), random, turned).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
        loss = (softplus(logits) - logits * labels[picks]).sum(1).mean()  # binary cross-entropy over nouns
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"classifier step {step} loss {loss.item():.4f}", flush=True)
    return model.eval()


def held_out(model: Classifier, count: int = 400, turns: int = 0) -> tuple[float, float]:
    """Return the shares of held-out scenes whose main object, and whose second object, `model` names.

    It is shown them after so many quarter turns.
    """
    scenes = [draw(make_spec(data.HELD_OUT + index)) for index in range(count)]
    shown = pictures([s.image for s in scenes]).rot90(turns, (2, 3))
    hits = model.recognised(shown, [s.spec for s in scenes])
    second = [hit[1] for hit in hits if len(hit) == 2]
    return sum(hit[0] for hit in hits) / count, sum(second) / len(second)


def main() -> None:
    """Train, save in fp16 and print the score on held-out scenes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--scenes", type=int, default=20000)
    parser.add_argument("--turned", action="store_true", help="the one that knows objects in any position")
    args = parser.parse_args()
    file = TURNED if args.turned else WEIGHTS
    cache = HERE.parents[1] / ".host" / "training"
    model = train(args.scenes, args.steps, cache, turned=args.turned)
    state = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    save_file({key: value.half().contiguous() for key, value in state.items()}, file)
    for turns in range(4 if args.turned else 1):
        main_share, second_share = held_out(load(file), turns=turns)
        print(f"held-out scenes, {90 * turns} deg: main object {main_share:.1%}, second {second_share:.1%}")


if __name__ == "__main__":
    main()
