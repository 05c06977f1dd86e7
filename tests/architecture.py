"""Draws docs/architecture.svg from the code: every module in the column of its layer, a line for every import.

    .venv/bin/python tests/architecture.py

The picture is plain text, the same on every machine, and follows the reader's light or dark theme.
"""

from __future__ import annotations

from collections import Counter
from statistics import fmean
from textwrap import wrap
from xml.etree import ElementTree as xml

from comfy_host.places import ROOT
from module_imports import Import, Module, imports, libraries, modules

PICTURE = ROOT / "docs" / "architecture.svg"
COLUMNS = (("nodes",), ("nodes/host",), ("guidance", "attention"))
TITLES = {
    "nodes": "nodes/ - one file for each technique",
    "nodes/host": "nodes/host/ - alone knows ComfyUI",
    "guidance": "guidance/ - the maths",
    "attention": "attention/ - the maths of words",
}
ROW, BOX, WIDTH, GAP, SIDE, HEAD = 18, 15, 170, 210, 90, 92
COMMON = 8  # a module with more importers is a common tool: the lines to it are drawn faint
STYLE = """
text { font: 11px system-ui, sans-serif; fill: #1f2328; }
.title { font-size: 13px; font-weight: 600; }
.libraries { fill: #59636e; }
.paper { fill: #ffffff; }
path { fill: none; opacity: 0.65; }
.common { opacity: 0.18; }
rect.nodes { fill: #d8e8ff; } path.nodes { stroke: #2563b8; }
rect.host { fill: #ffe4cc; } path.host { stroke: #c2570c; }
rect.guidance { fill: #d3f2dc; } path.guidance { stroke: #1a7f37; }
rect.attention { fill: #ecdcff; } path.attention { stroke: #8250df; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; } .libraries { fill: #9198a1; } .paper { fill: #0d1117; }
rect.nodes { fill: #17345c; } path.nodes { stroke: #6ea8fe; }
rect.host { fill: #5a2f10; } path.host { stroke: #f0883e; }
rect.guidance { fill: #12422a; } path.guidance { stroke: #3fb950; }
rect.attention { fill: #3d2a63; } path.attention { stroke: #b392f0; }
}
"""

Places = dict[Module, tuple[int, int]]


def column_of(module: Module) -> int:
    """Return the number of the column that holds a module's layer."""
    return next(number for number, layers in enumerate(COLUMNS) if module.layer in layers)


def sorted_columns(lines: list[Import]) -> list[list[Module]]:
    """Return each column from top to bottom: again and again every module goes to the mean of its neighbours."""
    columns = [[module for module in modules() if column_of(module) == number] for number in range(3)]
    for turn in (1, 2, 1, 0) * 10:
        heights = {module: row / len(column) for column in columns for row, module in enumerate(column)}
        means = {}
        for module in columns[turn]:
            near = [a if b == module else b for a, b in lines if module in (a, b)]
            group = COLUMNS[turn].index(module.layer)
            means[module] = (group, round(fmean(heights[m] for m in near or [module]), 6), module)
        columns[turn].sort(key=means.__getitem__)
    return columns


def places(columns: list[list[Module]]) -> Places:
    """Return the upper left corner of every module's box; the columns are equally high."""
    height = max(_slots(column) for column in columns) * ROW
    found: Places = {}
    for number, column in enumerate(columns):
        pitch, left = height / _slots(column), SIDE // 2 + number * (WIDTH + GAP)
        for row, module in enumerate(column):
            skipped = 3 * COLUMNS[number].index(module.layer)  # room for the title of a second layer
            found[module] = (left, round(HEAD + (row + skipped) * pitch))
    return found


def picture() -> str:
    """Return the picture as SVG text."""
    lines = imports()
    boxes = places(sorted_columns(lines))
    size = {"width": 3 * WIDTH + 2 * GAP + 2 * SIDE, "height": max(y for _, y in boxes.values()) + 2 * ROW}
    svg = _add(
        None, "svg", xmlns="http://www.w3.org/2000/svg", viewBox="0 0 {width} {height}".format(**size), **size
    )
    _add(svg, "title").text = "The modules of the pack in layers, and which imports which"
    _add(svg, "style").text = STYLE
    _add(svg, "rect", "paper", **size)
    popularity = Counter(target for _, target in lines)
    for source, target in lines:
        _draw_import(svg, boxes[source], boxes[target], _class(source), popularity[target] > COMMON)
    for layer in TITLES:
        _draw_title(svg, layer, *min(place for module, place in boxes.items() if module.layer == layer))
    for module, place in boxes.items():
        _draw_module(svg, module, *place)
    xml.indent(svg)
    return xml.tostring(svg, encoding="unicode") + "\n"


def _slots(column: list[Module]) -> int:
    return len(column) + 3 * (len({module.layer for module in column}) - 1)


def _class(module: Module) -> str:
    return module.layer.split("/")[-1]


def _draw_import(
    svg: xml.Element, start: tuple[int, int], end: tuple[int, int], kind: str, common: bool
) -> None:
    (x1, y1), (x2, y2) = ((x, y + BOX // 2) for x, y in (start, end))
    x1 += WIDTH
    if start[0] == end[0]:  # inside a column: an arc on its right side
        x2 += WIDTH
        bend = 12 + min(SIDE, abs(y2 - y1) // 5)
        curve = f"C{x1 + bend} {y1} {x2 + bend} {y2}"
    else:
        curve = f"C{(x1 + x2) // 2} {y1} {(x1 + x2) // 2} {y2}"
    _add(svg, "path", f"{kind} common" if common else kind, d=f"M{x1} {y1}{curve} {x2} {y2}")


def _draw_title(svg: xml.Element, layer: str, x: int, y: int) -> None:
    said = wrap("imports " + ", ".join(libraries(layer)), 44)
    _add(svg, "text", "title", x=x, y=y - 10 - 14 * len(said)).text = TITLES[layer]
    for number, line in enumerate(reversed(said)):
        _add(svg, "text", "libraries", x=x, y=y - 8 - 14 * number).text = line


def _draw_module(svg: xml.Element, module: Module, x: int, y: int) -> None:
    _add(svg, "rect", _class(module), x=x, y=y, width=WIDTH, height=BOX, rx=4)
    _add(svg, "text", x=x + 6, y=y + 11).text = module.name


def _add(parent: xml.Element | None, tag: str, kind: str | None = None, **values: object) -> xml.Element:
    attributes = {"class": kind, **values} if kind else values
    element = xml.Element(tag, {name: str(value) for name, value in attributes.items()})
    if parent is not None:
        parent.append(element)
    return element


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
