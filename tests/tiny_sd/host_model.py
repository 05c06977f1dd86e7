"""The real host in this process, and the demo model loaded by its own nodes: for tests, proofs and benchmarks."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from comfy_host.pack import load_pack

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = Path(__file__).with_name("tiny_sd.safetensors")


def open_host(base: Path | None = None) -> ModuleType:
    """Make the host importable, on the CPU where there is no GPU, and teach it the demo model; returns its `nodes`.

    `base` is where the host keeps its models and outputs (a folder of the checkout by default).
    """
    import torch

    host = os.environ.get("COMFYUI_PATH") or str(ROOT / ".host" / "ComfyUI")
    if host not in sys.path:
        sys.path.insert(0, host)
    options = importlib.import_module("comfy.cli_args").args
    options.cpu = options.cpu or not torch.cuda.is_available()
    options.base_directory = str(base or ROOT / ".host" / "in_process")
    folders = importlib.import_module("folder_paths")
    folders.add_model_folder_path("checkpoints", str(CHECKPOINT.parent))
    importlib.import_module("tiny_sd.comfy_node")
    load_pack()
    return importlib.import_module("nodes")


def load_demo_model() -> tuple[Any, Any, Any]:
    """Return MODEL, CLIP and VAE of the demo checkpoint, as CheckpointLoaderSimple gives them in a graph."""
    import torch

    with torch.inference_mode():
        return open_host().CheckpointLoaderSimple().load_checkpoint(CHECKPOINT.name)[:3]


def install_taesd() -> Path:
    """Put the demo autoencoder's decoder where the host looks for TAESD files; returns the file.

    The demo autoencoder is of TAESD's class, so its decoder is a valid `taesd_decoder`.
    """
    from safetensors.torch import load_file, save_file

    open_host()
    folder = Path(importlib.import_module("folder_paths").get_folder_paths("vae_approx")[0])
    folder.mkdir(parents=True, exist_ok=True)
    file, prefix = folder / "taesd_decoder.safetensors", "first_stage_model.taesd_decoder."
    state = load_file(CHECKPOINT)
    partial = file.with_suffix(".part")
    save_file({key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}, partial)
    shutil.move(partial, file)
    return file
