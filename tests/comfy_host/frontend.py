"""The newest page of ComfyUI (its frontend package), beside the one that the host's requirements pin."""

from __future__ import annotations

import shutil
from pathlib import Path

from comfy_host.download import unpack
from comfy_host.places import HOST
from imagenet.weights import fetch

VERSION = "1.58.1"  # the newest release when this was written; core 0.3.75 pins 1.32.9
SHA256 = "37912597537a731a8f421179618a736c24184c5bdbfa327f38b2fb7c291852d9"
FOLDER = "comfyui_frontend_package/static/"


def newest_frontend() -> Path:
    """Return the folder of the newest page, for the host's --front-end-root; the first call downloads it."""
    folder = HOST / "frontend" / VERSION
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        what = f"Downloading the page {VERSION} of ComfyUI (29 MB)"
        wheel = fetch(what, SHA256, f"comfyui-frontend-package=={VERSION}")
        unpack(wheel, folder, FOLDER)
        shutil.rmtree(wheel.parent)
    return folder
