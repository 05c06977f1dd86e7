"""What a node says about its run stands on it, in the host's own page (which shows such text nowhere by itself)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from comfy_host.places import DEMO_CLASSIFIER, ROOT
from comfy_host.server import Server
from end_to_end.browser import RENDERERS, opened, page_errors

LOADER = "GuidedSynthesis_LoadClassifier"
GRAPH: dict[str, Any] = {
    "1": {
        "class_type": LOADER,
        "inputs": {"classifier": DEMO_CLASSIFIER.name, "architecture": "from the file"},
    },
    "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
}
OPEN = """async (prompt) => {
    await app.loadApiJson(prompt, "text");
    app.graph.getNodeById(1).pos = [60, 60];
    app.graph.getNodeById(2).pos = [900, 60];
    Object.assign(app.canvas.ds, { offset: [60, 120], scale: 1 });
    app.graph.setDirtyCanvas(true, true);
}"""
SAY = "(text) => app.graph.getNodeById(1).onExecuted({ text: [text] })"
# What is in the host's cache is not run again, and says nothing.
FORGET = """fetch("/api/free", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ free_memory: true }),
})"""
TWO_FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
FIRST_GRAPH = "!!app.extensionManager.workflow.activeWorkflow"


@pytest.fixture(scope="module", params=RENDERERS.values(), ids=RENDERERS.keys())
def page(request: pytest.FixtureRequest, server: Server, browser: Browser) -> Iterator[Page]:
    with opened(browser, server.address, nodes2=request.param) as page:
        page.wait_for_function(FIRST_GRAPH)
        page.evaluate(FORGET)
        page.evaluate(OPEN, GRAPH)
        yield page
        assert [error for error in page_errors(page) if "/extensions/guided_synthesis/" in error] == []


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
    page.evaluate(SAY, "short")
    page.evaluate(TWO_FRAMES)
    before = page.evaluate(size)
    text = "<img src=nowhere onerror='window.harmed = true'>\n" + "a long line " * 50 + "\nline" * 50
    page.evaluate(SAY, text)
    expect(told).to_have_text(text)
    assert told.locator("img").count() == 0 and page.evaluate("window.harmed") is None
    assert told.evaluate("(element) => element.scrollHeight > element.clientHeight")
    page.evaluate(TWO_FRAMES)
    assert page.evaluate(size) == before


def test_every_node_that_says_something_is_named_in_the_script():
    """The script names them: a node that is created has not said anything yet."""
    script = (ROOT / "js" / "node_text.js").read_text(encoding="utf-8")
    sources = {file: file.read_text(encoding="utf-8") for file in (ROOT / "nodes").glob("*.py")}
    named = set(re.findall(r'^  "(\w+)",$', script, re.M))
    for file, source in sources.items():
        here = set(re.findall(r'node_id="GuidedSynthesis_(\w+)"', source)) & named
        assert len(here) == source.count("ui.PreviewText("), file.name
