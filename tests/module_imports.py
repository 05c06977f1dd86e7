"""Reads from the code which module of the pack imports which: what tests/architecture.py draws."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from comfy_host.places import ROOT

LAYERS = ("nodes", "nodes/host", "guidance", "attention")
AS_ONE = {"guidance/views": ("guidance", "views")}  # a folder of many small files of one kind


@dataclass(frozen=True, order=True)
class Module:
    """A file of a layer, or a folder that counts as one."""

    layer: str
    name: str


Import = tuple[Module, Module]


def imports() -> list[Import]:
    """Return (who, whom) of all imports inside the pack."""
    pairs = {(module_of(file), module_of(target)) for file in _files() for target in _imported(file)}
    return sorted(pair for pair in pairs if pair[0] != pair[1])


def modules() -> list[Module]:
    """Return all modules; an `__init__.py` only if it imports something of the pack."""
    return sorted({module_of(file) for file in _files() if file.stem != "__init__" or any(_imported(file))})


def libraries(layer: str) -> list[str]:
    """Return what a layer imports from outside: libraries, and modules of the host."""
    names: set[str] = set()
    for file in _files():
        if module_of(file).layer == layer:
            names |= _absolute(file)
    return sorted(names - sys.stdlib_module_names)


def module_of(file: Path) -> Module:
    """Return the module that a file belongs to."""
    folder = file.relative_to(ROOT).parent.as_posix()
    return Module(*AS_ONE.get(folder, (folder, file.stem)))


def _files() -> list[Path]:
    return [file for folder in (*LAYERS, *AS_ONE) for file in sorted((ROOT / folder).glob("*.py"))]


def _imported(file: Path) -> Iterator[Path]:
    """Yield the files that `file` imports; inside the pack every import is relative and names its module."""
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for name in node.names:
                places = (base / f"{name.name}.py", base.with_suffix(".py"), base / "__init__.py")
                yield next(place for place in places if place.is_file())


def _absolute(file: Path) -> set[str]:
    names: list[str] = []
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Import):
            names += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.append(node.module or "")
    return {name.split(".")[0] for name in names}


def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))
