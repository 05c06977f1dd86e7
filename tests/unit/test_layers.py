"""The layers: guidance/ and attention/ know nothing of the host, host internals live in nodes/host/ alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from comfy_host.places import ROOT, TESTS

HOST = {
    "comfy",
    "comfy_api",
    "comfy_extras",
    "nodes",
    "folder_paths",
    "server",
    "execution",
    "latent_preview",
}


def imported(file: Path) -> set[str]:
    """The modules that `file` imports: absolute names, relative ones as paths from the root of the pack."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
        elif isinstance(node, ast.ImportFrom):
            package = file.relative_to(ROOT).parent.parts[: len(file.relative_to(ROOT).parts) - node.level]
            names.add("." + ".".join([*package, *(node.module or "").split(".")]).strip("."))
    return names


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize(
    "file", files("guidance") + files("attention"), ids=lambda f: str(f.relative_to(ROOT))
)
def test_the_maths_imports_neither_the_host_nor_the_nodes(file):
    for name in imported(file):
        assert name.split(".")[0] not in HOST, name
        assert not name.startswith(".nodes"), name


@pytest.mark.parametrize("file", sorted((ROOT / "nodes").glob("*.py")), ids=lambda f: f.name)
def test_nodes_reach_the_host_through_nodes_host_only(file):
    for name in imported(file):
        top = name.split(".")[0]
        assert top not in HOST - {"comfy_api"}, name


def test_the_check_sees_every_way_of_importing(tmp_path):
    guilty = ROOT / "guidance" / "guilty_for_this_test.py"
    source = "import comfy.sd\nfrom comfy import ops\nfrom ..nodes.host import checks\n"
    try:
        guilty.write_text(source, encoding="utf-8")
        assert imported(guilty) == {"comfy.sd", "comfy", ".nodes.host"}
    finally:
        guilty.unlink()


def test_the_pack_and_its_maths_import_without_a_host():
    program = (
        "import sys; from comfy_host.pack import load_pack; load_pack()\n"
        "import importlib, pkgutil\n"
        "for package in ('guidance', 'attention'):\n"
        "    package = importlib.import_module('guided_synthesis.' + package)\n"
        "    for module in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
        "assert 'guided_synthesis.guidance.painting' in sys.modules\n"
        "print([name for name in sys.modules if name.split('.')[0] in {'comfy', 'folder_paths', 'nodes'}])\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=TESTS, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]", ran.stderr
