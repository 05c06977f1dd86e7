"""Where things lie. Everything that a run writes is inside the checkout: .venv, .host and outputs."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
VENV = ROOT / ".venv"
HOST = ROOT / ".host"
TREE = HOST / "ComfyUI"
BASE = HOST / "base"
LOG = HOST / "host.log"
WORKFLOWS = ROOT / "example_workflows"
OUTPUTS = ROOT / "outputs"
DEMO_MODEL = TESTS / "tiny_sd" / "tiny_sd.safetensors"
DEMO_CLASSIFIER = TESTS / "tiny_sd" / "classifiers" / "resnet18_demo.safetensors"
DEMO_NODE = TESTS / "tiny_sd" / "comfy_node"

# Programs that keep caches in the home folder are told to keep them here instead.
CACHES = {
    "HF_HOME": "huggingface",
    "TORCH_HOME": "torch",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "CUDA_CACHE_PATH": "cuda",
    "MPLCONFIGDIR": "matplotlib",
    "XDG_CACHE_HOME": "cache",
}


def inside_checkout(environment: dict[str, str] | None = None) -> dict[str, str]:
    """Return environment variables that keep a child's temporary files and caches inside the checkout."""
    temporary = HOST / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    kept = dict(os.environ if environment is None else environment)
    kept.update({name: str(HOST / "cache" / folder) for name, folder in CACHES.items()})
    kept.update(dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary)))
    kept.update(PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8", HF_HUB_OFFLINE="1", DO_NOT_TRACK="1")
    for name in ("NO_PROXY", "no_proxy"):  # a proxy cannot see this machine's own servers
        kept[name] = ",".join(filter(None, [kept.get(name), "127.0.0.1,localhost"]))
    kept.pop("PYTHONPATH", None)
    kept.pop("PYTHONHOME", None)
    return kept


def graph_names() -> list[str]:
    """Return the names of the shipped graphs."""
    return sorted(file.stem for file in WORKFLOWS.glob("*.json"))


def python_of(environment: Path) -> Path:
    """Return the Python program of a virtual environment folder, on any system."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
