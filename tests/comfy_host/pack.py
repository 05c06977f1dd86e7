"""Imports the pack the way the host does: by its folder, never through the module path."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from comfy_host.places import ROOT

NAME = "guided_synthesis"


def load_pack() -> ModuleType:
    """Return this checkout as the package `guided_synthesis`; tests import its modules by that name."""
    if NAME in sys.modules:
        return sys.modules[NAME]
    spec = importlib.util.spec_from_file_location(
        NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{ROOT / '__init__.py'} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module
