"""The shipped workflows are laid out for reading: a note first, titled groups, from left to right, nothing overlaps."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any, NamedTuple

import pytest
from PIL import Image

from comfy_host.places import WORKFLOWS, graph_names

TITLE_BAR = 30  # a node's position is that of its body; the title is drawn above it
NOTE = "MarkdownNote"
WINDOW = (1500, 900)  # pixels of the page on a small screen; nobody should have to look for the note
TOOLBARS = (60, 110)  # pixels that the page's own bars take at the left and at the top
STRETCHES = (
    1,
    1.2,
)  # the Nodes 2.0 of the pinned page draw a workflow of classic nodes larger, from the origin
ABSOLUTE = re.compile(r"(?<![\w:/.<])(?:/\w+/|~/|[A-Za-z]:[\\/]|\\\\\w)")
MAIL = re.compile(r"\w@\w+\.\w")

Json = dict[str, Any]


class Box(NamedTuple):
    """What a node or a group covers of the canvas."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Tell whether the two have a point in common that is on no edge."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def holds(self, other: Box) -> bool:
        """Tell whether `other` lies wholly in this one."""
        across = self.left <= other.left and other.right <= self.right
        return across and self.top <= other.top and other.bottom <= self.bottom


@pytest.fixture(params=graph_names())
def graph(request: pytest.FixtureRequest) -> Json:
    """Return a shipped graph."""
    return json.loads((WORKFLOWS / f"{request.param}.json").read_text(encoding="utf-8"))


def box(node: Json) -> Box:
    (x, y), (width, height) = node["pos"], node["size"]
    return Box(x, y - TITLE_BAR, x + width, y + height)


def group_box(group: Json) -> Box:
    x, y, width, height = group["bounding"]
    return Box(x, y, x + width, y + height)


def named(node: Json) -> str:
    return f"{node.get('title', node['type'])} ({node['id']})"


def the_note(graph: Json) -> Json:
    (note,) = (node for node in graph["nodes"] if node["type"] == NOTE)
    return note


def test_one_note_with_a_heading_says_how_to_use_it(graph: Json):
    (text,) = the_note(graph)["widgets_values"]
    assert re.match(r"#{1,3} \S", text)
    assert len(text) > 200


@pytest.mark.parametrize("stretch", STRETCHES)
def test_the_page_opens_on_the_note_and_the_first_group_begins_in_sight(graph: Json, stretch: float):
    scale, offset = graph["extra"]["ds"]["scale"], graph["extra"]["ds"]["offset"]
    note, first = box(the_note(graph)), group_box(graph["groups"][0])
    left, right = ((edge * stretch + offset[0]) * scale for edge in (note.left, note.right))
    # the title bar is as high in both
    top, group = (
        (edge * stretch - TITLE_BAR + offset[1]) * scale for edge in (note.top + TITLE_BAR, first.top)
    )
    assert left > TOOLBARS[0] and top > TOOLBARS[1] and right < WINDOW[0] and group < WINDOW[1] * 0.75
    assert note.bottom < first.top


def test_groups_have_titles_and_do_not_overlap(graph: Json):
    assert len(graph["groups"]) >= 2
    assert all(group["title"].strip() for group in graph["groups"])
    pairs = combinations(graph["groups"], 2)
    assert [(a["title"], b["title"]) for a, b in pairs if group_box(a).meets(group_box(b))] == []


def test_every_node_but_the_note_is_wholly_in_one_group(graph: Json):
    groups = [group_box(group) for group in graph["groups"]]
    for node in graph["nodes"]:
        touched = [group for group in groups if group.meets(box(node))]
        assert len(touched) == (node["type"] != NOTE), named(node)
        assert all(group.holds(box(node)) for group in touched), named(node)


def test_no_two_nodes_overlap(graph: Json):
    pairs = combinations(graph["nodes"], 2)
    assert [(named(a), named(b)) for a, b in pairs if box(a).meets(box(b))] == []


def test_every_wire_goes_to_the_right_or_down_its_column(graph: Json):
    nodes = {node["id"]: node for node in graph["nodes"]}
    for _, origin, _, target, _, _ in graph["links"]:
        source, sink = box(nodes[origin]), box(nodes[target])
        down = source.left == sink.left and source.bottom <= sink.top
        assert source.right <= sink.left or down, f"{named(nodes[origin])} -> {named(nodes[target])}"


def test_every_wire_is_recorded_at_both_ends(graph: Json):
    nodes = {node["id"]: node for node in graph["nodes"]}
    for wire, origin, slot, target, place, kind in graph["links"]:
        output, socket = nodes[origin]["outputs"][slot], nodes[target]["inputs"][place]
        assert wire in output["links"] and wire == socket["link"]
        assert {output["type"], socket["type"]} <= {kind, "*"}
    wires = [link[0] for link in graph["links"]]
    ends = [socket["link"] for node in nodes.values() for socket in node.get("inputs", ()) if socket["link"]]
    starts = [
        wire
        for node in nodes.values()
        for output in node.get("outputs", ())
        for wire in output["links"] or ()
    ]
    assert sorted(wires) == sorted(ends) == sorted(starts)
    assert len(set(wires)) == len(wires) and graph["last_link_id"] >= max(wires)
    assert graph["last_node_id"] >= max(nodes) and len(nodes) == len(graph["nodes"])


def test_everything_lies_near_the_origin_on_whole_pixels(graph: Json):
    numbers = [number for node in graph["nodes"] for number in (*node["pos"], *node["size"])]
    numbers += [number for group in graph["groups"] for number in group["bounding"]]
    assert all(number == int(number) and abs(number) < 10_000 for number in numbers)
    assert all(min(node["size"]) >= 26 for node in graph["nodes"])


def test_no_value_names_a_place_or_a_person(graph: Json):
    texts = [
        text for node in graph["nodes"] for text in node.get("widgets_values") or () if type(text) is str
    ]
    assert [text for text in texts if ABSOLUTE.search(text) or MAIL.search(text)] == []


def test_every_picture_that_it_loads_is_shipped(graph: Json):
    wanted = {node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "LoadImage"}
    assert wanted <= {file.name for file in (WORKFLOWS / "inputs").iterdir()}


def test_every_workflow_has_a_thumbnail_and_every_thumbnail_a_workflow():
    thumbnails = sorted(WORKFLOWS.glob("*.jpg"))
    assert [file.stem for file in thumbnails] == graph_names()
    for file in thumbnails:
        with Image.open(file) as picture:
            assert picture.format == "JPEG" and min(picture.size) >= 128, file.name


@pytest.mark.parametrize(
    "text", ["/home/me/a.png", "C:\\a.png", "see ~/models", "\\\\host\\share", "me@x.org"]
)
def test_a_place_or_a_person_would_be_found(text: str):
    assert ABSOLUTE.search(text) or MAIL.search(text)


@pytest.mark.parametrize("text", ["https://arxiv.org/abs/2208.01626", "and/or", "0.5 / 2", "inputs/a.png"])
def test_other_texts_are_left_alone(text: str):
    assert not ABSOLUTE.search(text) and not MAIL.search(text)
