"""Train the demo model from nothing, or go on where it stopped.

python tests/tiny_sd/train.py [--minutes-autoencoder 15] [--minutes-unet 80] [--scenes 20000]

Needs the environment that `python run.py test` makes (run it with that environment's Python). Writes
`tiny_sd.safetensors` (fp16) beside this file; its state lives in `.host/training`. `--export-only` writes the
checkpoint from the state as it is. `proof.py` then measures the result and writes the model card's figures.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), os.environ.get("COMFYUI_PATH") or str(ROOT / ".host" / "ComfyUI")]

import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from tiny_sd import data, parts, train_autoencoder, train_unet  # noqa: E402

STATE = ROOT / ".host" / "training"
CHECKPOINT = HERE / "tiny_sd.safetensors"


def load_autoencoder() -> torch.nn.Module:
    """Return the trained narrow autoencoder."""
    model = parts.autoencoder()
    model.load_state_dict(torch.load(STATE / "autoencoder.pt", weights_only=True)["model"])
    return model.eval()


def export(trainer: train_unet.Trainer, autoencoder: torch.nn.Module, file: Path = CHECKPOINT) -> None:
    """Write the SD1-style checkpoint in fp16."""
    state = trainer.averaged_state()
    wide = parts.widened(autoencoder.state_dict())
    wide["vae_scale"], wide["vae_shift"] = torch.tensor(parts.VAE_SCALE), torch.tensor(0.0)
    state |= {f"first_stage_model.{key}": value for key, value in wide.items()}
    save_file({key: value.half().contiguous() for key, value in state.items()}, file)


def main() -> None:
    """Train what is not trained yet and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes-autoencoder", type=float, default=15)
    parser.add_argument("--minutes-unet", type=float, default=80)
    parser.add_argument("--scenes", type=int, default=20000)
    parser.add_argument("--export-only", action="store_true")
    args = parser.parse_args()
    images, captions, two = data.scenes(args.scenes, STATE)
    if not args.export_only:
        train_autoencoder.train(images, args.minutes_autoencoder, STATE / "autoencoder.pt")
    autoencoder = load_autoencoder()
    latents_file = STATE / "latents.pt"
    if not latents_file.exists():
        torch.save(train_unet.encode(images, autoencoder), latents_file)
    latents = torch.load(latents_file, weights_only=True)
    trainer = train_unet.Trainer(latents, train_unet.tokenize(["", *captions]), two, STATE / "unet.pt")
    if not args.export_only:
        trainer.train(args.minutes_unet)
    export(trainer, autoencoder)


if __name__ == "__main__":
    main()
