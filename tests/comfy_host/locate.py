"""Which ComfyUI is used: the user's own (COMFYUI_PATH), never changed, or the one this checkout keeps."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from comfy_host.environment import ensure_environment
from comfy_host.places import ROOT, TESTS, TREE, inside_checkout, python_of
from comfy_host.problems import Problem

# A distribution is looked up under its import name; only those that differ are listed.
IMPORT_NAMES = {"pillow": "PIL", "pytest-timeout": "pytest_timeout", "resvg-py": "resvg_py"}
HOSTS_MODULES = ("torch", "aiohttp", "PIL")
PROBE = """
import importlib.util, json, sys
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
try:
    import torch
    accelerator = torch.cuda.is_available() or torch.backends.mps.is_available()
    accelerator = accelerator or (hasattr(torch, "xpu") and torch.xpu.is_available())
except ImportError:
    accelerator = False
print(json.dumps({"missing": missing, "accelerator": bool(accelerator)}))
"""


@dataclass(frozen=True)
class Host:
    """A ComfyUI that can be started: its folder, its Python, must it use the CPU, is it the user's own."""

    tree: Path
    python: Path
    cpu: bool
    users: bool


def find_host(for_tests: bool = False) -> Host:
    """Return the host to use, making ours if the user has none; raise Problem if it cannot run."""
    own = os.environ.get("COMFYUI_PATH")
    if own:
        tree = _users_tree(own)
        python = _users_python(tree)
    else:
        tree, python = TREE, ensure_environment(for_tests)
    files = [ROOT / "requirements.txt", *([TESTS / "requirements.txt"] if for_tests else [])]
    ours = [name for file in files for name in modules_of(file)]
    probe = _probe(python, [*HOSTS_MODULES, *ours])
    if probe["missing"]:
        raise Problem(missing_modules(probe["missing"], files, python, bool(own)))
    return Host(tree, python, not probe["accelerator"], bool(own))


def modules_of(requirements: Path) -> list[str]:
    """Return the module names that a requirements file asks for."""
    lines = [line.split("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines()]
    names = [re.split(r"[<>=!~\[; ]", line)[0].lower() for line in lines if line]
    return [IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names]


def missing_modules(modules: list[str], files: list[Path], python: Path, users: bool) -> str:
    """Return the sentence that says what to do about the `modules` that `python` lacks."""
    what = f"lacks the Python module{'s'[: len(modules) - 1]} {', '.join(modules)}"
    if not users:
        return f"{python} {what}: delete .venv and try again."
    if set(modules) & set(HOSTS_MODULES):
        return f"{python} {what}, which ComfyUI needs: start run.py with the Python that runs your ComfyUI."
    arguments = " ".join(f'-r "{file}"' for file in files)
    return f'{python} {what}; type: "{python}" -m pip install {arguments}'


def _users_tree(path: str) -> Path:
    tree = Path(path).expanduser().resolve()
    for folder in (tree, tree / "ComfyUI"):
        if (folder / "main.py").is_file() and (folder / "comfy").is_dir():
            return folder
    raise Problem(
        f"COMFYUI_PATH is {path}, but there is no ComfyUI (main.py, comfy/): set it to the ComfyUI folder."
    )


def _users_python(tree: Path) -> Path:
    candidates = [python_of(tree / name) for name in ("venv", ".venv")]
    candidates += [tree.parent / "python_embeded" / "python.exe"]
    candidates += [python_of(tree.parent / name) for name in ("venv", ".venv")]
    return next((python for python in candidates if python.is_file()), Path(sys.executable))


def _probe(python: Path, modules: list[str]) -> dict:
    command = [str(python), "-c", PROBE, *modules]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, cwd=TESTS, env=inside_checkout())
        said = answer.stderr
    except OSError as error:
        answer, said = None, str(error)
    if answer is None or answer.returncode:
        cause = (said.strip().splitlines() or ["no reason given"])[-1]
        raise Problem(f"{python} does not work ({cause}): repair this Python, or delete its folder.")
    return json.loads(answer.stdout.splitlines()[-1])
