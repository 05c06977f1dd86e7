"""What the Comfy registry ships: the tree that .comfyignore leaves works by itself, and nothing else is in it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from comfy_host.places import ROOT
from comfy_host.shipped import shipped as shipped_files

# The host's own loader, on a folder that it has never seen.
LOAD = """
import asyncio, json, sys
host, base, pack = sys.argv[1:]
sys.path.insert(0, host)
import torch
from comfy.cli_args import args
args.cpu, args.base_directory = not torch.cuda.is_available(), base
import nodes
assert asyncio.run(nodes.load_custom_node(pack)), "the host could not load the pack"
print(json.dumps({"nodes": list(nodes.NODE_CLASS_MAPPINGS), "web": list(nodes.EXTENSION_WEB_DIRS.values())}))
"""


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the checkout without what git and the registry leave out."""
    tree = tmp_path_factory.mktemp("registry") / "custom_nodes" / "guided-synthesis"
    for file in shipped_files():
        copy = tree / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return tree


@pytest.fixture(scope="module")
def loaded(shipped: Path, host: SimpleNamespace) -> dict[str, list[str]]:
    """Return what a new process's host has after it loaded the shipped tree."""
    folders = [str(Path(host.nodes.__file__).parent), str(shipped.parents[1]), str(shipped)]
    ran = subprocess.run(
        [sys.executable, "-c", LOAD, *folders],
        cwd=shipped.parents[1],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_the_archive_holds_what_users_need_and_nothing_else(shipped: Path):
    code = {
        "__init__.py",
        "nodes",
        "guidance",
        "attention",
        "js",
        "locales",
        "pyproject.toml",
        "requirements.txt",
    }
    to_read = {"README.md", "CHANGELOG.md", "LICENSE", "docs", "example_workflows", "subgraphs"}
    assert {path.name for path in shipped.iterdir()} == code | to_read


def test_the_host_loads_the_same_nodes_from_the_archive_as_from_the_checkout(loaded: dict, shipped: Path):
    definitions = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert {name for name in loaded["nodes"] if name.startswith("GuidedSynthesis_")} == set(definitions)
    assert loaded["web"] == [str(shipped / "js")]
    assert [name for name in definitions if not (shipped / "js" / "docs" / name / "en.md").is_file()] == []


def test_the_pictures_of_the_readme_and_of_the_workflows_are_in_the_archive(shipped: Path):
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (shipped / "README.md").read_text(encoding="utf-8"))
    workflows = sorted((shipped / "example_workflows").glob("*.json"))
    inputs = {
        node["widgets_values"][0]
        for file in workflows
        for node in json.loads(file.read_text(encoding="utf-8"))["nodes"]
        if node["type"] in ("LoadImage", "LoadImageMask")
    }
    wanted = [shipped / picture for picture in pictures]
    wanted += [file.with_suffix(".jpg") for file in workflows]
    wanted += [shipped / "example_workflows" / "inputs" / name for name in inputs]
    assert len(pictures) > 10 and len(workflows) > 20 and inputs
    assert [str(path) for path in wanted if not path.is_file()] == []
