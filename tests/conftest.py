"""What all tests share: the pack under its alias, the host in this process, the demo model in the host."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from comfy_host.pack import load_pack
from comfy_host.places import ROOT

# The models are tiny: one thread is as fast, and two wait for each other for minutes where other work has a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A `python -m pytest` puts this folder on the path, where its `nodes` would hide the host's.
sys.path[:] = [entry for entry in sys.path if entry not in ("", str(ROOT))]
load_pack()


@pytest.fixture(scope="session")
def host() -> SimpleNamespace:
    """Return the host in this process: its `nodes`, `comfy`, `folder_paths`; it knows the demo model."""
    from tiny_sd.host_model import open_host

    nodes = open_host()
    import comfy
    import folder_paths

    return SimpleNamespace(nodes=nodes, comfy=comfy, folder_paths=folder_paths)


@pytest.fixture(scope="session")
def tiny(host: SimpleNamespace) -> tuple[Any, Any, Any]:
    """Return MODEL, CLIP and VAE of the demo checkpoint from the host's own CheckpointLoaderSimple."""
    from tiny_sd.host_model import load_demo_model

    return load_demo_model()
