"""A slim ResNet18 that names the main object of a demo scene: the CLASSIFIER of the demo's saliency noise.

torchvision's resnet18 with a quarter of its channels (0.7 million parameters), fit to drawn scenes alone. The judge
of the demo model's samples is another network (classifier.py), which looks at places. Host-free.

python tests/tiny_sd/resnet.py [--steps 1500] [--scenes 20000]     trains it again and prints its score
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))

from tiny_sd import data  # noqa: E402
from tiny_sd.classifier import NAMES, labels_of, pictures, varied  # noqa: E402
from tiny_sd.world import SIZE, draw, make_spec  # noqa: E402

WEIGHTS = HERE / "classifiers" / "resnet18_demo.safetensors"
NARROWER = 4
MEAN, DEVIATION = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
METADATA = {
    "architecture": "resnet18",
    "labels": json.dumps(NAMES),
    "size": str(SIZE),
    "mean": json.dumps(MEAN),
    "std": json.dumps(DEVIATION),
}


def slim_resnet18() -> nn.Module:
    """Return torchvision's resnet18 for the 32 nouns, with a quarter of the channels, not trained."""
    model = torchvision.models.resnet18(num_classes=len(NAMES))
    for name, module in list(model.named_modules()):
        parent, _, leaf = name.rpartition(".")
        if isinstance(module, nn.Conv2d):
            before = module.in_channels if name == "conv1" else module.in_channels // NARROWER
            shape = before, module.out_channels // NARROWER, module.kernel_size, module.stride, module.padding
            slim: nn.Module = nn.Conv2d(*shape, bias=False)
            nn.init.kaiming_normal_(slim.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            slim = nn.BatchNorm2d(module.num_features // NARROWER)
        elif isinstance(module, nn.Linear):
            slim = nn.Linear(module.in_features // NARROWER, module.out_features)
        else:
            continue
        setattr(model.get_submodule(parent), leaf, slim)
    return model


def _prepared(images: Tensor) -> Tensor:
    return (images - 0.5) / 0.5


def train(scenes: int, steps: int, cache: Path, batch: int = 64) -> nn.Module:
    """Train on the first `scenes` scenes (seeds below `data.HELD_OUT` only), which `cache` keeps."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    drawn, _, _ = data.scenes(scenes, cache)
    targets = labels_of([make_spec(seed) for seed in range(scenes)])
    targets /= targets.sum(1, keepdim=True)
    model = slim_resnet18().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for step in range(1, steps + 1):
        picks = torch.randint(scenes, (batch,), generator=random)
        images = varied(pictures([drawn[pick] for pick in picks.tolist()]), random, turned=False)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(_prepared(images).contiguous(memory_format=torch.channels_last))
        loss = nn.functional.cross_entropy(logits.float(), targets[picks])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"resnet18 step {step} loss {loss.item():.4f}", flush=True)
    return model.eval()


@torch.no_grad()
def held_out(model: nn.Module, count: int = 400) -> float:
    """Return the share of held-out scenes in which the noun with the highest score is one of the objects."""
    specs = [make_spec(data.HELD_OUT + index) for index in range(count)]
    found = model(_prepared(pictures([draw(spec).image for spec in specs]))).argmax(1)
    return labels_of(specs).gather(1, found[:, None]).mean().item()


def main() -> None:
    """Train, save in fp16 and print the score on held-out scenes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--scenes", type=int, default=20000)
    args = parser.parse_args()
    model = train(args.scenes, args.steps, HERE.parents[1] / ".host" / "training").float()
    state = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    save_file({key: value.half().contiguous() for key, value in state.items()}, WEIGHTS, metadata=METADATA)
    print(f"held-out scenes: an object of the scene named in {held_out(model):.1%}")


if __name__ == "__main__":
    main()
