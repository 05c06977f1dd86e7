"""The pack in another language, in the host's own page: the search, the nodes and their tooltips are Chinese."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from comfy_host.places import ROOT
from comfy_host.server import Server
from end_to_end.browser import FIRST_GRAPH, opened

LANGUAGE = "zh"
FOLDER = ROOT / "locales" / LANGUAGE
NODES = json.loads((FOLDER / "nodeDefs.json").read_text(encoding="utf-8"))
CATEGORIES = json.loads((FOLDER / "main.json").read_text(encoding="utf-8"))["nodeCategories"]
SHOWN = "GuidedSynthesis_PaintingGuide"
ADD = """(type) => {
    const node = LiteGraph.createNode(type);
    node.pos = [600, 200];
    app.graph.clear();
    app.graph.add(node);
}"""
# Frontend 1.32.9 loses the texts of all packs when it loads a language (ComfyUI_frontend, issue 6748; 1.34.9 is cured).
# This gives them back as later ones do, and takes up the nodes again as the page does when its language is changed.
GIVE_BACK = """async (language) => {
    const texts = await (await fetch("/i18n")).json();
    const page = document.querySelector("#vue-app").__vue_app__;
    page._context.provides[page.__VUE_I18N_SYMBOL__].global.mergeLocaleMessage(language, texts[language]);
    await app.extensionManager.command.execute("Comfy.RefreshNodeDefinitions");
}"""
# What the page calls each of our nodes, its place in the menu, its inputs and its outputs.
CALLED = """Object.fromEntries(
    Object.entries(LiteGraph.registered_node_types)
        .filter(([type]) => type.startsWith("GuidedSynthesis_"))
        .map(([type, { title, category }]) => {
            const node = LiteGraph.createNode(type);
            const names = (slots) => slots.map((slot) => slot.localized_name);
            return [type, { title, category, inputs: names(node.inputs), outputs: names(node.outputs) }];
        })
)"""


@pytest.fixture(scope="module")
def page(server: Server, browser: Browser) -> Iterator[Page]:
    """Open the host's page in the language."""
    settings = {"Comfy.Locale": LANGUAGE, "Comfy.EnableTooltips": True, "LiteGraph.Node.TooltipDelay": 0}
    with opened(browser, server.address, nodes2=True, **settings) as page:
        page.wait_for_function(FIRST_GRAPH)
        page.evaluate(GIVE_BACK, LANGUAGE)
        yield page


def test_every_node_has_the_names_of_its_language(page):
    called = page.evaluate(CALLED)
    assert set(called) == set(NODES)
    for kind, names in called.items():
        assert names["title"] == NODES[kind]["display_name"]
        assert set(names["category"].split("/")) <= set(CATEGORIES.values())
        assert sorted(names["inputs"]) == sorted(said(NODES[kind]["inputs"], "name"))
        assert names["outputs"] == said(NODES[kind]["outputs"], "name")


def test_the_node_shows_its_names_and_on_hovering_its_tooltips(page):
    page.evaluate(ADD, SHOWN)
    node = page.locator("[data-node-id]")
    for text in [NODES[SHOWN]["display_name"], *said(NODES[SHOWN]["inputs"], "name")]:
        expect(node).to_contain_text(text)
    strength = NODES[SHOWN]["inputs"]["strength"]
    node.get_by_text(strength["name"], exact=True).hover()
    expect(page.get_by_role("tooltip")).to_have_text(strength["tooltip"])


def test_the_search_finds_a_node_by_its_name_and_shows_where_it_is(page):
    page.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.locator("input[role=combobox]").fill(NODES[SHOWN]["display_name"])
    found = page.get_by_role("option").filter(has_text=NODES[SHOWN]["display_name"]).first
    for category in (CATEGORIES["guided synthesis"], CATEGORIES["painting"]):
        expect(found).to_contain_text(category)


def said(entries: dict[str, Any], field: str) -> list[str]:
    """Return a field of all inputs or outputs."""
    return [entry[field] for entry in entries.values()]
