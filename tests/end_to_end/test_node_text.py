"""What a node says about its run stands on it, in the host's own page (which shows such text nowhere by itself)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from comfy_host.places import DEMO_CLASSIFIER, ROOT
from comfy_host.server import Server
from end_to_end.browser import FIRST_GRAPH, RENDERERS, TWO_FRAMES, opened, our_errors

LOADER = "GuidedSynthesis_LoadClassifier"
# The loader says nothing if the host still has what an earlier run made: each page asks for it in words of its own.
ARCHITECTURES = dict(zip(RENDERERS.values(), ("from the file", "resnet18"), strict=True))
OPEN = """async (prompt) => {
    await app.loadApiJson(prompt, "text");
    const graph = app.graph.serialize();
    for (const node of graph.nodes) node.pos = [node.id === 1 ? 60 : 900, 60];
    await app.loadGraphData(graph);
    Object.assign(app.canvas.ds, { offset: [60, 120], scale: 1 });
    app.graph.setDirtyCanvas(true, true);
}"""
SAY = "(texts) => app.graph.getNodeById(1).onExecuted({ text: texts })"
# Whether the page around has taken the next copying over: it would copy nodes.
WATCH = """window.taken = null;
window.addEventListener("copy", (event) => setTimeout(() => (window.taken = event.defaultPrevented)), {
    capture: true, once: true
})"""


def graph(architecture: str) -> dict[str, Any]:
    """Return a graph of a node that says something, and of one that wants what it makes."""
    widgets = {"classifier": DEMO_CLASSIFIER.name, "architecture": architecture}
    return {
        "1": {"class_type": LOADER, "inputs": widgets},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }


@pytest.fixture(scope="module", params=RENDERERS.values(), ids=RENDERERS.keys())
def page(request: pytest.FixtureRequest, server: Server, browser: Browser) -> Iterator[Page]:
    with opened(browser, server.address, nodes2=request.param) as page:
        page.wait_for_function(FIRST_GRAPH)
        page.evaluate(OPEN, graph(ARCHITECTURES[request.param]))
        yield page
        assert our_errors(page) == []


def test_the_text_of_a_run_is_on_the_node(page: Page, tmp_path):
    told = page.locator(".guided-synthesis-told")
    expect(told.get_by_text("Run the graph to read what it found")).to_be_visible()
    page.evaluate("app.queuePrompt(0)")
    expect(told.locator("pre")).to_contain_text("32 labels")
    expect(told.locator("pre")).to_be_visible()
    page.screenshot(path=tmp_path / "text.png")


def test_text_is_never_markup_and_long_text_scrolls(page: Page):
    told = page.locator(".guided-synthesis-told pre")
    size = "[...app.graph.getNodeById(1).size]"
    page.evaluate(SAY, ["short"])
    page.evaluate(TWO_FRAMES)
    before = page.evaluate(size)
    text = "<img src=nowhere onerror='window.harmed = true'>\n" + "a long line " * 50 + "\nline" * 50
    page.evaluate(SAY, [text])
    expect(told).to_have_text(text)
    assert told.locator("img").count() == 0 and page.evaluate("window.harmed") is None
    assert told.evaluate("(element) => element.scrollHeight > element.clientHeight")
    page.evaluate(TWO_FRAMES)
    assert page.evaluate(size) == before


def test_the_wheel_scrolls_text_that_is_used_and_the_graph_stays(page: Page):
    told = page.locator(".guided-synthesis-told pre")
    page.evaluate(SAY, ["line\n" * 50])
    place = "[...app.canvas.ds.offset, app.canvas.ds.scale, ...app.graph.getNodeById(1).pos]"
    before = page.evaluate(place)
    told.click()
    page.mouse.wheel(0, 100)
    page.wait_for_function(
        "document.querySelector('.guided-synthesis-told').shadowRoot.querySelector('pre').scrollTop > 0"
    )
    assert page.evaluate(place) == before


def test_text_can_be_marked_and_copied(page: Page):
    told = page.locator(".guided-synthesis-told pre")
    page.evaluate(SAY, ["PSNR 31.2 dB"])
    before = page.evaluate("[...app.graph.getNodeById(1).pos]")
    box = told.bounding_box()
    page.mouse.move(box["x"] + 8, box["y"] + 14)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 14, steps=4)
    page.mouse.up()
    page.evaluate(WATCH)
    page.keyboard.press("Control+C")
    page.wait_for_function("window.taken !== null")
    assert page.evaluate("window.taken") is False
    assert page.evaluate("[...app.graph.getNodeById(1).pos]") == before


def test_a_node_that_ran_for_each_entry_of_a_list_says_all(page: Page):
    page.evaluate(SAY, ["the first picture", "the second picture"])
    expect(page.locator(".guided-synthesis-told pre")).to_have_text("the first picture\n\nthe second picture")


def test_every_node_that_says_something_is_named_in_the_script():
    """The script names them: a node that is created has not said anything yet."""
    script = (ROOT / "js" / "node_text.js").read_text(encoding="utf-8")
    sources = {file: file.read_text(encoding="utf-8") for file in (ROOT / "nodes").glob("*.py")}
    named = set(re.findall(r'^  "(\w+)",$', script, re.M))
    for file, source in sources.items():
        here = set(re.findall(r'node_id="GuidedSynthesis_(\w+)"', source)) & named
        assert len(here) == source.count("ui.PreviewText("), file.name
