"""torchvision's own files, in torch's own cache: downloaded when a node runs that needs one, and not before."""

from __future__ import annotations

import re
from pathlib import Path

import torch


def downloaded(url: str, user: str, advice: str) -> Path:
    """Return the file of `url` in torch's cache, downloaded and checked against the hash in its name if needed.

    Raises ValueError if that fails: that `user` needs the file, why there is none, and `advice`, a sentence.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if file.is_file():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    start_of_hash = re.findall("-([0-9a-f]+)[.]", file.name)[0]
    try:
        torch.hub.download_url_to_file(url, str(file), start_of_hash)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{user} needs {file.name}, and its download failed ({error}). {advice}") from error
    return file
