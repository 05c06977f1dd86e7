"""The host's working folder `.host/base`: links to this pack and the demo model, the user's model folders."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from comfy_host.locate import Host
from comfy_host.places import BASE, DEMO_CLASSIFIER, DEMO_MODEL, DEMO_NODE, HOST, ROOT
from comfy_host.problems import Problem

CHECKPOINTS = BASE / "models" / "checkpoints"
CLASSIFIERS = BASE / "models" / "classifiers"


def prepare_base(host: Host, checkpoint: Path | None = None) -> list[str]:
    """Make `.host/base` ready and return the command line options that make `host` use it, and only it."""
    for folder in ("custom_nodes", "input", "output", "user", "temp", "models/vae_approx"):
        (BASE / folder).mkdir(parents=True, exist_ok=True)
    CHECKPOINTS.mkdir(exist_ok=True)
    CLASSIFIERS.mkdir(exist_ok=True)
    link_folder(ROOT, BASE / "custom_nodes" / "guided_synthesis")
    link_folder(DEMO_NODE, BASE / "custom_nodes" / "tiny_sd_node")
    if DEMO_MODEL.is_file():
        link_file(DEMO_MODEL, CHECKPOINTS / DEMO_MODEL.name)
    if DEMO_CLASSIFIER.is_file():
        link_file(DEMO_CLASSIFIER, CLASSIFIERS / DEMO_CLASSIFIER.name)
    if not host.users:  # a user's own host downloads them when a node needs them
        from imagenet.weights import install  # needs torch, as the host does; the rest of this file does not

        install(BASE / "models" / "lpips")
    if checkpoint:
        link_file(checkpoint, CHECKPOINTS / checkpoint.name)
    options = ["--base-directory", str(BASE), "--database-url", "sqlite:///:memory:"]
    options += ["--disable-auto-launch", "--disable-api-nodes", "--listen", "127.0.0.1"]
    if host.cpu:
        options += ["--cpu"]
    if host.users:
        options += ["--extra-model-paths-config", str(model_paths(host.tree))]
    return options


def model_paths(tree: Path) -> Path:
    """Write the file that shows the host the models in the user's own ComfyUI folder; returns the file."""
    models = tree / "models"
    kinds = sorted(folder.name for folder in models.iterdir() if folder.is_dir() and folder.name != "configs")
    file = HOST / "extra_model_paths.yaml"
    # JSON is YAML: no YAML writer is needed, and a path with odd characters stays what it is.
    paths = {"base_path": str(models), **{kind: kind for kind in kinds}}
    file.write_text(json.dumps({"users_models": paths}), encoding="utf-8")
    return file


def link_folder(target: Path, link: Path) -> None:
    """Make `link` lead to the folder `target`: a symbolic link, or a junction on Windows."""
    if _leads_to(link, target):
        return
    _unlink(link)
    if os.name == "nt":
        import _winapi

        _winapi.CreateJunction(str(target), str(link))
    else:
        link.symlink_to(target, target_is_directory=True)


def link_file(target: Path, link: Path) -> None:
    """Make `link` show the file `target`: a symbolic link, else a hard link, else a copy."""
    if _leads_to(link, target) and link.stat().st_size == target.stat().st_size:
        return
    _unlink(link)
    for make in (os.symlink, os.link, shutil.copyfile):
        try:
            make(target, link)
            return
        except OSError as error:
            reason = error
    raise reason


def _leads_to(link: Path, target: Path) -> bool:
    return link.exists() and link.resolve() == target.resolve()


def _unlink(link: Path) -> None:
    if link.is_symlink() or link.is_file():
        link.unlink()
    elif link.is_dir():
        # A junction: rmdir takes the link and leaves its target alone. A real folder with files is refused.
        try:
            link.rmdir()
        except OSError:
            raise Problem(f"{link} is a folder with files of its own: move it away.") from None
