"""Makes `.venv` with all that the host, the pack and the tests need; a stamp makes it a one-time job."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

from comfy_host.download import SHA256, ensure_tree
from comfy_host.places import HOST, ROOT, TESTS, VENV, inside_checkout, python_of
from comfy_host.problems import Problem, pip_problem

TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
# ComfyUI 0.3.75 imports `requests` without asking for it: what used to bring it along no longer does.
UNDECLARED = ("requests>=2.31",)
STAMP = VENV / "guided_synthesis.json"
PIP_LOG = HOST / "pip.log"


def ensure_environment(for_tests: bool) -> Path:
    """Return the Python of `.venv`, installing what is missing; a second call needs no network."""
    python = python_of(VENV)
    if not _runs(python):
        _make(VENV)
    tree = ensure_tree(pip)
    wanted = {"run": [tree / "requirements.txt", ROOT / "requirements.txt"]}
    if for_tests:
        wanted["test"] = [TESTS / "requirements.txt"]
    for part, files in wanted.items():
        _install(part, files)
    return python


def pip(what: str, *arguments: str) -> None:
    """Run pip, show what it does on one line; raise Problem with the cause if it fails.

    It is that of `.venv`, or, where the user's own ComfyUI makes that needless, of the Python that runs this.
    """
    python = python_of(VENV)
    command = [
        str(python if python.exists() else sys.executable),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        *arguments,
    ]
    command += ["--no-cache-dir", "--progress-bar", "off"]
    began, tail = time.monotonic(), deque[str](maxlen=200)
    print(f"{what} ...", flush=True)
    HOST.mkdir(exist_ok=True)
    with PIP_LOG.open("a", encoding="utf-8", buffering=1) as log:
        log.write(f"\n# {what}: {' '.join(command)}\n")
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=inside_checkout(),
        ) as process:
            for line in process.stdout or ():
                log.write(line)
                tail.append(line)
                _show(line, began)
    _show("", began)
    if process.returncode:
        raise pip_problem(what, "".join(tail), PIP_LOG)


def stamp_of(part: str, files: list[Path]) -> str:
    """Return a hash of everything that decides what is installed for `part`."""
    inputs = [part, sys.version, *TORCH, *UNDECLARED, SHA256]
    inputs += [file.read_text(encoding="utf-8") for file in files]
    return hashlib.sha256("\0".join(inputs).encode()).hexdigest()


def _make(folder: Path) -> None:
    print(f"Making {folder.name} with Python {sys.version.split()[0]} ...", flush=True)
    command = [sys.executable, "-m", "venv", "--clear", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, env=inside_checkout())
    if made.returncode:
        cause = ((made.stderr + made.stdout).strip().splitlines() or ["no reason given"])[-1]
        raise Problem(
            f"Python's venv module could not make {folder}: {cause} "
            "(on Debian and Ubuntu type: sudo apt install python3-venv)."
        )


def _runs(python: Path) -> bool:
    try:
        return subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


def _install(part: str, files: list[Path]) -> None:
    stamps = _stamps()
    stamp = stamp_of(part, files)
    if stamps.get(part) == stamp:
        return
    packages = [*TORCH, *UNDECLARED] if part == "run" else []
    what = (
        "Installing PyTorch and ComfyUI's packages (6 GB, some minutes)"
        if packages
        else "Installing test tools"
    )
    pip(what, "install", *packages, *(argument for file in files for argument in ("-r", str(file))))
    STAMP.write_text(json.dumps({**stamps, part: stamp}), encoding="utf-8")


def _stamps() -> dict[str, str]:
    try:
        return dict(json.loads(STAMP.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _show(line: str, began: float) -> None:
    if sys.stdout.isatty():
        text = f"{time.monotonic() - began:4.0f} s  {line.strip()}"[:100] if line else ""
        print(f"\r\033[K{text}", end="", flush=True)
