"""The picture of the architecture is the code's, and what the pages for developers name is there."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

import architecture
import module_imports
from comfy_host.places import ROOT
from module_imports import Module

SVG = "{http://www.w3.org/2000/svg}"


def test_the_committed_picture_is_what_the_command_draws():
    drawn = architecture.PICTURE.read_text(encoding="utf-8")
    assert drawn == architecture.picture(), "type: .venv/bin/python tests/architecture.py"


def test_the_picture_has_a_box_for_every_module_and_a_line_for_every_import():
    svg = ElementTree.fromstring(architecture.picture())
    names = sorted(text.text for text in svg.iter(f"{SVG}text") if "class" not in text.attrib)
    assert names == sorted(module.name for module in module_imports.modules())
    assert len(list(svg.iter(f"{SVG}path"))) == len(module_imports.imports())


def test_boxes_do_not_overlap_and_lie_in_the_column_of_their_layer():
    boxes = architecture.places(architecture.sorted_columns(module_imports.imports()))
    for module, (x, y) in boxes.items():
        assert (x < boxes[Module("nodes/host", "checks")][0]) == (module.layer == "nodes")
        below = [other_y for other_x, other_y in boxes.values() if other_x == x and other_y > y]
        assert not below or min(below) - y >= architecture.BOX


@pytest.mark.parametrize(
    "line, target",
    [
        ("from .checks import check", Module("nodes/host", "checks")),
        ("from . import checks", Module("nodes/host", "checks")),
        ("from ...guidance.painting import trust", Module("guidance", "painting")),
        ("from ...guidance import painting", Module("guidance", "painting")),
        ("from ...guidance.views import flip", Module("guidance", "views")),
        ("from ...guidance.views.flip import Flip", Module("guidance", "views")),
    ],
)
def test_every_way_of_importing_is_seen(line, target, monkeypatch, tmp_path):
    for folder in ("nodes/host", "guidance/views"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("nodes/host/checks", "nodes/host/guest", "guidance/painting", "guidance/views/flip"):
        (tmp_path / f"{file}.py").write_text("", encoding="utf-8")
    (tmp_path / "nodes/host/guest.py").write_text(f"import torch.nn\n{line}\n", encoding="utf-8")
    monkeypatch.setattr(module_imports, "ROOT", tmp_path)
    assert module_imports.imports() == [(Module("nodes/host", "guest"), target)]
    assert module_imports.libraries("nodes/host") == ["torch"]


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_files_that_pages_for_developers_name_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    made_here = (".venv", ".host", "outputs")
    named = set(re.findall(r"`(\.?[\w]+/[\w./]*)`", text)) | set(re.findall(r"`([\w./]+\.(?:py|md))`", text))
    named = {name for name in named if not name.startswith(made_here)}
    linked = {link for link in re.findall(r"\]\(([^)#:]+)\)", text)}
    folder = (ROOT / page).parent
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    assert [link for link in sorted(linked) if not (folder / link).exists()] == []
