"""Every shipped workflow in the host's own page: its pinned page and the newest, classic nodes and Nodes 2.0.

A picture of each is left in .host/screenshots/<page>/<renderer>/<workflow>.png.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from comfy_host.base import CHECKPOINTS, link_file
from comfy_host.frontend import newest_frontend
from comfy_host.graphs import LOADER, load_graph
from comfy_host.locate import Host
from comfy_host.places import BASE, DEMO_MODEL, HOST, WORKFLOWS, graph_names
from comfy_host.server import Server, running
from comfy_host.workflow import to_prompt
from end_to_end.browser import RENDERERS, TWO_FRAMES, opened, page_errors

Json = dict[str, Any]
SERVERS = {"pinned": "server", "newest": "newest_server"}  # the fixture that serves each page
ROOMS = tuple(product(SERVERS, RENDERERS))
WINDOW = {"width": 2400, "height": 1350}
# Nothing covers the graph, and its text is drawn at any zoom.
SETTINGS = {"Comfy.Minimap.Visible": False, "LiteGraph.Canvas.MinFontSizeForLOD": 0}
# What the host's page says by itself, with no workflow of ours open: all of it, and no more.
HOSTS_OWN = tuple(
    map(
        re.compile,
        (
            # It asks for files that a new user has not written yet.
            r"status of 404 .*/(api/userdata/)?user\.css'",
            r"status of 404 .*/api/userdata/comfy\.templates\.json'",
            r"status of 404 .*/api/userdata\?dir=(workflows|subgraphs)(%2F)?&",
            # Started with --disable-api-nodes, the host lets it neither look packs up nor see the size of the models
            # of its own first workflow.
            r"https://api\.comfy\.org/nodes\?.* violates the following Content Security Policy",
            r"https://huggingface\.co/Comfy-Org/.*(violates the following|violates the document's) Content Security",
            # 1.32.9 sets a renderer's setting before it knows the setting.
            r"^TypeError: Cannot read properties of undefined \(reading 'id'\)\s+at onChange [^\n]*\n.*\n.*\n"
            r" +at load \([^\n]*/assets/GraphView-",
            # 1.58.1 asks for the list of jobs, which core 0.3.75 does not keep.
            r"status of 404 .*/api/jobs\?",
            r"^(\[Jobs API\] Error fetching jobs|Failed to fetch queue): JobsApiError: Failed to fetch jobs: 404",
        ),
    )
)
LOAD = """async (graph) => {
    app.clean();  // an earlier workflow leaves the pictures of its nodes
    await app.loadGraphData(graph, true, false, app.extensionManager.workflow.activeWorkflow);
    const items = [...app.graph.nodes, ...app.graph.groups], title = 30;
    const left = Math.min(...items.map(({ pos }) => pos[0])), top = Math.min(...items.map(({ pos }) => pos[1])) - title;
    const width = Math.max(...items.map(({ pos, size }) => pos[0] + size[0])) - left;
    const height = Math.max(...items.map(({ pos, size }) => pos[1] + size[1])) - top;
    const scale = Math.min((innerWidth - 130) / width, (innerHeight - 160) / height, 1);
    Object.assign(app.canvas.ds, { scale, offset: [80 / scale - left, 130 / scale - top] });
    app.canvas.setDirty(true, true);
}"""
# Every Load Image shows its picture, and every note its text.
SHOWN = """() => {
    const there = (node) => LiteGraph.vueNodesMode
        ? document.querySelector(`[data-node-id="${node.id}"] img`)?.naturalWidth
        : node.imgs?.[0]?.naturalWidth;
    return app.graph.nodes.filter((node) => node.type === "LoadImage").every(there)
        && [...document.querySelectorAll(".comfy-markdown, .widget-markdown")].some((note) => note.innerText);
}"""
REPORT = """async () => {
    const { scale, offset } = app.canvas.ds;
    const canvas = app.canvas.canvas.getBoundingClientRect();
    const drawn = (node) => {
        const shown = LiteGraph.vueNodesMode && document.querySelector(`[data-node-id="${node.id}"]`);
        if (!shown) return [...(node.boundingRect ?? node.getBounding())];
        const box = shown.getBoundingClientRect();
        const x = (box.x - canvas.x) / scale - offset[0], y = (box.y - canvas.y) / scale - offset[1];
        return [x, y, box.width / scale, box.height / scale];
    };
    const allowed = ({ type, value, options: { values, min, max } = {} }) =>
        type === "combo" && Array.isArray(values) ? values.includes(value)
        : typeof value === "number" ? !(value < min || value > max) : true;
    const lowest = (element) => Math.max(...[...element.querySelectorAll("p, li, h1, h2, h3")]
        .map((line) => line.getBoundingClientRect().bottom));
    const visible = (selector) => [...document.querySelectorAll(selector)].filter((one) => one.checkVisibility());
    const notes = visible(".comfy-markdown, .widget-markdown")
        .filter((note) => lowest(note) > note.getBoundingClientRect().bottom);
    const fields = visible("textarea:not(.comfy-markdown *)")  // a note's text is there once more, to be edited
        .filter((field) => field.scrollHeight > field.clientHeight + 2);
    return {
        nodes: app.graph.nodes.map((node) => ({
            id: Number(node.id), title: `${node.title} (${node.id})`, box: drawn(node),
            known: node.type in LiteGraph.registered_node_types && !node.has_errors,
            values: node.serialize().widgets_values ?? [],
            refused: (node.widgets ?? []).filter((widget) => !allowed(widget)).map(({ name, value }) => [name, value]),
        })),
        cut: [...notes.map((note) => note.innerText), ...fields.map((field) => field.value)],
        dialogs: visible("[role=dialog]").map((dialog) => dialog.innerText),
        prompt: (await app.graphToPrompt()).output,
    };
}"""


@dataclass(frozen=True)
class Shown:
    """A shipped workflow, what the page makes of it, and the errors that it reported meanwhile."""

    graph: Json
    report: Json
    errors: list[str]


@dataclass(frozen=True)
class Room:
    """An open page, the folder for its pictures, and the workflows that it has shown."""

    page: Page
    folder: Path
    seen: dict[str, Shown] = field(default_factory=dict)

    def show(self, name: str) -> Shown:
        """Open a workflow, look at it, and keep a picture."""
        graph, before = load_graph(name), len(page_errors(self.page))
        self.page.evaluate(LOAD, graph)
        self.page.wait_for_function(SHOWN)
        self.page.evaluate(TWO_FRAMES)
        report = self.page.evaluate(REPORT)
        self.page.screenshot(path=self.folder / f"{name}.png")
        return Shown(graph, report, page_errors(self.page)[before:])


def ours(errors: list[str]) -> list[str]:
    """Return the errors that the host's page does not have by itself."""
    return [error for error in errors if not any(known.search(error) for known in HOSTS_OWN)]


@pytest.fixture(scope="module")
def furnished() -> Iterator[None]:
    """Give the host what the workflows name, as a user has it: the pictures, and the demo model under other names."""
    placed = []
    for picture in (WORKFLOWS / "inputs").glob("*.png"):
        placed.append(BASE / "input" / picture.name)
        placed[-1].unlink(missing_ok=True)
        shutil.copyfile(picture, placed[-1])  # the host would write an upload of that name through a link
    graphs = map(load_graph, graph_names())
    loaders = (node for graph in graphs for node in graph["nodes"] if node["type"] == LOADER)
    for name in {node["widgets_values"][0] for node in loaders}:
        placed.append(CHECKPOINTS / name)
        link_file(DEMO_MODEL, placed[-1])
    yield
    for link in placed:
        link.unlink()


@pytest.fixture(scope="module")
def newest_server(program: Host) -> Iterator[Server]:
    """Run a second host, which serves the newest page."""
    temporary = HOST / "temp_of_newest"  # a host that starts empties its own
    temporary.mkdir(exist_ok=True)
    options = ["--front-end-root", str(newest_frontend()), "--temp-directory", str(temporary)]
    with running(program, log=HOST / "newest_page.log", further=options) as started:
        yield started


@pytest.fixture(scope="module", params=ROOMS, ids=" ".join)
def room(request, furnished: None, browser: Browser) -> Iterator[Room]:
    """Open one page of one host for all workflows."""
    served, renderer = request.param
    server = request.getfixturevalue(SERVERS[served])
    with opened(browser, server.address, nodes2=RENDERERS[renderer], **SETTINGS) as page:
        page.set_viewport_size(WINDOW)
        yield Room(page, HOST / "screenshots" / served / renderer)
        assert ours(page_errors(page)) == []


@pytest.fixture(params=graph_names())
def shown(request, room: Room) -> Shown:
    """Return what the room shows of a workflow."""
    if request.param not in room.seen:
        room.seen[request.param] = room.show(request.param)
    return room.seen[request.param]


def test_every_node_is_known_and_nothing_is_asked(shown: Shown):
    assert len(shown.report["nodes"]) == len(shown.graph["nodes"])
    assert [node["title"] for node in shown.report["nodes"] if not node["known"]] == []
    assert shown.report["dialogs"] == []


def test_every_widget_has_the_value_of_the_file_and_allows_it(shown: Shown):
    saved = {node["id"]: node.get("widgets_values") or [] for node in shown.graph["nodes"]}
    assert {node["id"]: node["values"] for node in shown.report["nodes"]} == saved
    assert [(node["title"], node["refused"]) for node in shown.report["nodes"] if node["refused"]] == []


def test_no_node_is_drawn_on_another_and_no_text_is_cut(shown: Shown):
    pairs = combinations(shown.report["nodes"], 2)
    assert [(a["title"], b["title"]) for a, b in pairs if overlap(a["box"], b["box"]) > 1] == []
    assert shown.report["cut"] == []


def test_what_the_page_sends_is_what_the_tests_derive(shown: Shown, object_info: Json):
    """Up to titles, which the page translates, and the box in which Preview as Text shows its result."""

    def read(prompt: Json) -> Json:
        return {node: (entry["class_type"], declared(entry, object_info)) for node, entry in prompt.items()}

    assert read(shown.report["prompt"]) == read(to_prompt(shown.graph, object_info))


def test_the_page_reports_no_error(shown: Shown):
    assert ours(shown.errors) == []


def declared(entry: Json, object_info: Json) -> Json:
    """Return the inputs of a prompt's node that its schema has."""
    schema = object_info[entry["class_type"]]["input"].values()
    return {name: value for name, value in entry["inputs"].items() if any(name in group for group in schema)}


def overlap(first: list[float], second: list[float]) -> float:
    """Return by how much two boxes (left, top, width, height) lie on each other, at the narrower side."""
    sides = ((first[axis], first[axis + 2], second[axis], second[axis + 2]) for axis in (0, 1))
    return min(min(a + long, b + wide) - max(a, b) for a, long, b, wide in sides)
