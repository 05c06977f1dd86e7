"""The help page of every node, opened with the node's info button in the host's own page and read as it is shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from comfy_host.places import ROOT
from comfy_host.server import Server
from end_to_end.browser import RENDERERS, opened, page_errors

NODES = sorted(folder.name for folder in (ROOT / "js" / "docs").iterdir())
CHAPTERS = ["How to use it", "All inputs", "If something goes wrong"]
SELECT = """(type) => {
    app.graph.clear();
    const node = LiteGraph.createNode(type);
    node.pos = [600, 300];
    app.graph.add(node);
    app.canvas.selectNode(node);
    app.canvas.setDirty(true, true);
}"""
# What is read on a page: a table is its rows of cells, names are what stands out in the text, code is left out of it.
READ = """(page) => {
    const texts = (element, what) => [...element.querySelectorAll(what)].map((found) => found.textContent.trim());
    const prose = page.cloneNode(true);
    prose.querySelectorAll("pre, code").forEach((code) => code.remove());
    return {
        title: texts(page, "h1"),
        chapters: texts(page, "h2"),
        paragraphs: texts(page, "p"),
        names: texts(page, "strong, em, code, td:first-child"),
        prose: texts(prose, "h1, h2, h3, p, li, th, td"),
        pictures: [...page.querySelectorAll("img")].map((img) => [img.alt, img.src]),
        tables: [...page.querySelectorAll("table")].map((table) => [...table.rows].map((row) => texts(row, "th, td"))),
    };
}"""
DONE = "() => [...document.querySelectorAll('.node-help-content img')].every((img) => img.complete)"
LOADED = "(pictures) => pictures.every((img) => img.complete && img.naturalWidth > 0)"
RAW = re.compile(r"\S\*|\*\S|`|^#|^>|!\[|\]\(|\|.*\||^\s*- ")
SPAN = re.compile(r"(?:above )?(-?[\d.]+),? to (-?[\d.]+)(?:\^(\d+) - 1)?\b")

Read = dict[str, Any]


@pytest.fixture(scope="module")
def page(server: Server, browser: Browser) -> Iterator[Page]:
    """Open the host's page."""
    with opened(browser, server.address, nodes2=False) as page:
        yield page


def shown(page: Page, node: str, title: str) -> Locator:
    """Open the help page of a node as one does it: select the node, press its info button."""
    page.evaluate(SELECT, node)
    page.get_by_test_id("info-button").click()
    content = page.locator(".node-help-content")
    expect(content.locator("h1")).to_have_text(title)
    return content


def inputs(info: Read) -> dict[str, tuple[Any, Read, bool]]:
    """Return type, options and whether it is optional of each input of a node, by name."""
    kinds = [(kind, info["input"].get(kind, {}).items()) for kind in ("required", "optional")]
    return {
        name: (declared[0], declared[1] if len(declared) > 1 else {}, kind == "optional")
        for kind, group in kinds
        for name, declared in group
    }


def rows_of_inputs(read: Read) -> dict[str, str]:
    """Return the range that the table of all inputs gives for each; a row may be of several (`start, end`)."""
    (table,) = [table for table in read["tables"] if table[0] == ["input", "range", "meaning"]]
    return {name: row[1] for row in table[1:] for name in row[0].split(", ")}


def span(text: str) -> tuple[float, float] | None:
    """Return the two ends of a range as it is written: `0 to 1`, `-1 to 1 of the width`, `0 to 2^64 - 1`."""
    found = SPAN.match(text)
    if found is None:
        return None
    low, high, power = found.groups()
    return float(low), float(high) if power is None else float(int(high) ** int(power) - 1)


def check_ranges(read: Read, info: Read) -> None:
    """Compare the table of all inputs with what the node takes."""
    written, taken = rows_of_inputs(read), inputs(info)
    assert set(written) == set(taken)
    for name, (kind, options, optional) in taken.items():
        assert optional == ("optional" in written[name]), name
        if kind in ("INT", "FLOAT"):
            assert span(written[name]) == (float(options["min"]), float(options["max"])), name
        if (choices := options.get("options")) and len(choices) <= 5 and "file" not in written[name]:
            assert set(written[name].split(", ")) == set(choices), name


@pytest.mark.parametrize("node", NODES)
def test_the_page_of_a_node_is_complete_and_shown_as_it_was_meant(page: Page, node: str, object_info: dict):
    info = object_info[node]
    before = len(page_errors(page))
    content = shown(page, node, info["display_name"])
    pictures = content.locator("img")
    page.wait_for_function(DONE)
    read = content.evaluate(READ)
    assert read["title"] == [info["display_name"]]
    assert [chapter for chapter in read["chapters"] if chapter in CHAPTERS] == CHAPTERS
    assert any(re.match("Sources? ?", text) and "arXiv" in text for text in read["paragraphs"])
    assert pictures.evaluate_all(LOADED) and all(len(alt) > 10 for alt, _ in read["pictures"])
    assert any(f"/docs/{node}/" in address for _, address in read["pictures"])
    assert [text for text in read["prose"] if RAW.search(text)] == []
    assert all(len(row) == len(table[0]) for table in read["tables"] for row in table)
    assert [name for name in info["output_name"] if name not in read["names"]] == []
    check_ranges(read, info)
    assert [error for error in page_errors(page)[before:] if "guided_synthesis" in error] == []


def test_every_node_has_a_page_and_every_page_a_node(object_info: dict):
    assert {name for name in object_info if name.startswith("GuidedSynthesis_")} == set(NODES)


def test_the_page_is_there_in_nodes_2_as_well(server: Server, browser: Browser, object_info: dict, tmp_path):
    node = "GuidedSynthesis_PaintingGuide"
    with opened(browser, server.address, nodes2=RENDERERS["nodes 2.0"]) as page:
        content = shown(page, node, object_info[node]["display_name"])
        page.wait_for_function(DONE)
        assert content.locator("img").evaluate_all(LOADED)
        page.screenshot(path=tmp_path / "help.png")
