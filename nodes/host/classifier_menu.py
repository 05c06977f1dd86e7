"""The classifiers that Load Classifier offers: the files in `models/classifiers`, and two of torchvision's own."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

FOLDER, ENDINGS = "classifiers", (".safetensors", ".pth", ".pt")
DOWNLOADS = {f"{name} (torchvision, downloads)": name for name in ("resnet18", "resnet50")}


def listed() -> list[str]:
    """Return the names to choose from: files first, downloads last."""
    found = (name for folder in _folders() for name in folder_paths.recursive_search(folder)[0])
    return sorted({name for name in found if name.lower().endswith(ENDINGS)}) + list(DOWNLOADS)


def chosen(name: str) -> Path | None:
    """Return the file of a name as in `listed`, None for a download; raise ValueError if there is no such file."""
    if name in DOWNLOADS:
        return None
    files = (Path(folder, name) for folder in _folders())
    file = next((file for file in files if name in listed() and file.is_file()), None)
    if file is None:
        raise ValueError(
            f"There is no file {name!r} in the folder models/{FOLDER} of ComfyUI. Choose one of the list, and press R "
            "to read it anew."
        )
    return file


def fingerprint(name: str) -> str:
    """Return what changes when the file of `name` does; raises ValueError as `chosen`."""
    file = chosen(name)
    if file is None:
        return name
    state = file.stat()
    return f"{state.st_mtime_ns} {state.st_size}"


def _folders() -> list[str]:
    """Return the folders of classifiers: the host's own, and what the user's extra_model_paths.yaml names."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    return folder_paths.get_folder_paths(FOLDER)
