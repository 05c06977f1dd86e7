"""Trajectories as safetensors files in the host's input and output folders, and nowhere else."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import folder_paths
import safetensors
import safetensors.torch
from comfy.cli_args import args
from torch import Tensor

from ...guidance.trajectory import Trajectory
from ...guidance.trajectory_io import packed, unpacked

FOLDER, ENDING, IN_OUTPUT = "trajectories", ".safetensors", " [output]"


def listed() -> list[str]:
    """Return the names that Load Trajectory offers: files of `input`, then `trajectories/... [output]`."""
    given, made = Path(folder_paths.get_input_directory()), Path(folder_paths.get_output_directory())
    names = [file.name for file in given.glob("*" + ENDING)]
    saved = [file.relative_to(made).as_posix() + IN_OUTPUT for file in (made / FOLDER).rglob("*" + ENDING)]
    return [name for name in sorted(names) + sorted(saved) if problem(name) is None]


def problem(name: str) -> str | None:
    """Return the sentence that says why `name` cannot be loaded, or None if there is such a file."""
    try:
        resolved(name)
    except ValueError as error:
        return str(error)
    return None


def resolved(name: str) -> Path:
    """Return the file of a name as in `listed`; raise ValueError if it is none, or elsewhere."""
    bare, folder = folder_paths.annotated_filepath(name)
    given, made = folder_paths.get_input_directory(), folder_paths.get_output_directory()
    if not bare.endswith(ENDING) or folder not in (None, given, made):
        raise ValueError(
            f"file {name!r} must be the name of a {ENDING} file in ComfyUI's input folder, or in its output folder "
            f"with{IN_OUTPUT} behind it."
        )
    file = _inside(folder or given, bare, "file")
    if not os.path.isfile(file):
        raise ValueError(f"There is no file {name!r}. Choose one of the list, and press R to read it anew.")
    return file


def fingerprint(name: str) -> str:
    """Return what changes when the file of `name` does; raises ValueError as `resolved`."""
    state = resolved(name).stat()
    return f"{state.st_mtime_ns} {state.st_size}"


def load(name: str) -> Trajectory:
    """Return the trajectory of the file `name`; raises ValueError, one sentence, if it holds none."""
    file = resolved(name)
    try:
        with safetensors.safe_open(str(file), framework="pt", device="cpu") as stored:
            return unpacked({key: stored.get_tensor(key) for key in stored.keys()}, stored.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"{name} is damaged, or no safetensors file ({error}). Copy or save it again."
        ) from error
    except ValueError as error:
        raise ValueError(f"{name} cannot be loaded. {error}") from error


def save(trajectory: Trajectory, prefix: str, hidden: Any = None) -> str:
    """Write `trajectory` to `<prefix>_00001_.safetensors` in the output folder, or the next free number.

    `hidden` is the node's: its graph is written along, as the host does, unless the host runs with
    --disable-metadata; then the prompt is left out, too. Returns the name for `load`. Raises ValueError for a
    prefix that leads out of the output folder and if it cannot be written.
    """
    root = folder_paths.get_output_directory()
    _inside(root, prefix, "filename_prefix")
    if prefix.replace("\\", "/").rpartition("/")[2] in ("", "."):
        raise ValueError(
            f"filename_prefix {prefix!r} has no file name at its end. Write one behind the folder."
        )
    tensors, strings = packed(replace(trajectory, prompt="") if args.disable_metadata else trajectory)
    try:
        file = _free(posixpath.normpath(prefix.replace("\\", "/")), root)
        _write(file, tensors, _graph(hidden) | strings)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"The trajectory could not be written as {prefix!r} ({error}). Choose another filename_prefix, or make "
            "room in the output folder."
        ) from error
    return file.relative_to(root).as_posix() + IN_OUTPUT


def _inside(folder: str, name: str, what: str) -> Path:
    """Return the path `name` in `folder` without links; raise ValueError if that is not inside of it."""
    parts = name.replace("\\", "/").split("/")
    if not parts[0] or ".." in parts or ":" in name or "\0" in name:
        raise ValueError(
            f"{what} {name!r} is not a name inside of ComfyUI's {Path(folder).name} folder. Leave out '..', drives and "
            "a slash at the beginning."
        )
    root = Path(os.path.realpath(folder))
    path = Path(os.path.realpath(root.joinpath(*parts)))
    if not path.is_relative_to(root):
        raise ValueError(
            f"{what} {name!r} is a link out of ComfyUI's {root.name} folder. Put the file itself there."
        )
    return path


def _free(prefix: str, root: str) -> Path:
    """Return the first file of `prefix` that does not exist, by the host's own count; its folder is made."""
    folder, stem, counter, *_ = folder_paths.get_save_image_path(prefix, root)
    files = (Path(folder, f"{stem}_{number:05}_{ENDING}") for number in count(counter))
    return next(file for file in files if not file.exists())


def _write(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write `file` whole or not at all."""
    partial = file.with_suffix(".part")
    try:
        safetensors.torch.save_file(tensors, str(partial), metadata=metadata)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _graph(hidden: Any) -> dict[str, str]:
    """Return the graph and what the browser adds to it, as the host writes them into its files."""
    if hidden is None or args.disable_metadata:
        return {}
    more: Mapping[str, Any] = hidden.extra_pnginfo or {}
    known = {} if hidden.prompt is None else {"prompt": hidden.prompt}
    return {key: json.dumps(value) for key, value in {**known, **more}.items()}
