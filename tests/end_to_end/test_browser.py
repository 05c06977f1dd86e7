"""The player of a picture's views in the host's own page, in Chromium: classic nodes and Nodes 2.0."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from comfy_host.places import BASE, WORKFLOWS
from comfy_host.server import Server
from end_to_end.browser import RENDERERS, TWO_FRAMES, check_that_the_wheel_zooms, opened, our_errors

PICTURE = "browser_test.png"
APPLY, ANIMATION = "GuidedSynthesis_ApplyView", "GuidedSynthesis_ViewAnimation"
FIRST, SECOND = "rotate 180", "negate"
PLAY, PAUSE, NEXT = "Play the views", "Pause", "Next reading"
NODE, OTHER = 5, 6  # the Apply View of the graph, and a node that is none
# Where the nodes lie: the player, and room below for one more, are in sight.
PLACES = {1: [-900, 0], 2: [-900, 500], 3: [-600, 500], 4: [-300, 500], NODE: [60, 60], OTHER: [900, 60]}
OPEN = """async ([prompt, places]) => {
    await app.loadApiJson(prompt, "views");
    const graph = app.graph.serialize();
    for (const node of graph.nodes) node.pos = places[node.id];
    await app.loadGraphData(graph);
    Object.assign(app.canvas.ds, { offset: [60, 120], scale: 1 });
    app.graph.setDirtyCanvas(true, true);
}"""
ADD = """([type, kept]) => {
    const node = LiteGraph.createNode(type);
    node.pos = [450, 60];
    app.graph.add(node);
    if (kept) app.nodeOutputs[node.id] = app.nodeOutputs[kept];
    return node.id;
}"""


def graph() -> dict[str, Any]:
    """Return a graph that looks at a picture in three views: as it is, and two that are played."""

    def node(kind: str, **inputs: object) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    def view(name: str, **before: object) -> dict[str, Any]:
        widgets = {"angle": 90.0, "rows": 4, "columns": 4, "size": 0.6, "sigma": 0.03125, "seed": 0}
        return node("GuidedSynthesis_View", view=name, **widgets, weight=1.0, experimental=False, **before)

    return {
        "1": node("LoadImage", image=PICTURE),
        "2": view("identity"),
        "3": view(FIRST, views=["2", 0]),
        "4": view(SECOND, views=["3", 0]),
        str(NODE): node(APPLY, image=["1", 0], views=["4", 0], index=-1),
        str(OTHER): node("PreviewImage", images=[str(NODE), 0]),
    }


@pytest.fixture(scope="module")
def picture() -> Iterator[str]:
    """Put a picture where the host finds it."""
    file = BASE / "input" / PICTURE
    shutil.copy(WORKFLOWS / "inputs" / "photo.png", file)
    yield PICTURE
    file.unlink()


@pytest.fixture(scope="module", params=RENDERERS.values(), ids=RENDERERS.keys())
def page(request, server: Server, browser: Browser, picture: str) -> Iterator[Page]:
    """Open the host's page, load the graph and run it."""
    with opened(browser, server.address, nodes2=request.param) as page:
        page.evaluate(OPEN, [graph(), PLACES])
        page.evaluate("app.queuePrompt(0)")
        expect(page.locator(".picture")).to_be_visible()
        yield page


@pytest.fixture(autouse=True)
def nothing_goes_wrong(page: Page) -> Iterator[None]:
    """Let the pointer start beside the player, and fail a test in which our scripts wrote an error."""
    page.mouse.move(1400, 900)
    yield
    assert our_errors(page) == []


@pytest.fixture
def player(page: Page) -> Locator:
    """Return the player of the graph, on its first frame."""
    player = page.locator(".guided-synthesis-player")
    player.locator("input").press("Home")
    return player


def seen(locator: Locator, file: Path) -> np.ndarray:
    """Return RGB (100, 100, 3) in [0, 255], the middle of what an element shows on the screen; keep all in `file`."""
    shot = Image.open(io.BytesIO(locator.screenshot(path=file))).convert("RGB")
    left, top = shot.width // 2 - 50, shot.height // 2 - 50
    return np.asarray(shot.crop((left, top, left + 100, top + 100))).astype(float)


def test_the_picture_plays_while_the_pointer_is_on_it(page: Page, player: Locator, tmp_path: Path):
    slider, button = player.locator("input"), player.get_by_role("button")
    player.locator(".picture").hover()
    expect(slider).not_to_have_value("0")
    expect(button).to_have_accessible_name(PAUSE)
    expect(player.locator(".label[data-arrived]")).to_have_text(FIRST)  # it stops there for a moment
    page.screenshot(path=tmp_path / "playing.png")
    page.mouse.move(1400, 900)
    expect(button).to_have_accessible_name(PLAY)
    left_at = slider.input_value()
    page.evaluate(TWO_FRAMES)
    expect(slider).to_have_value(left_at)


def test_the_slider_shows_each_frame_and_the_name_of_the_reading(player: Locator, tmp_path: Path):
    slider, label = player.locator("input"), player.locator(".label")
    expect(label).to_have_text("identity")
    base = seen(player.locator(".picture"), tmp_path / "base.png")
    slider.press("ArrowRight")
    expect(slider).to_have_value("1")
    expect(label).not_to_have_attribute("data-arrived", "")
    slider.press("End")
    expect(label).to_have_text(SECOND)
    negative = seen(player.locator(".picture"), tmp_path / "negative.png")
    assert base.std() > 30
    assert np.abs(255 - negative - base).mean() < 10  # the sheet of frames is compressed


def test_dragging_the_slider_does_not_move_the_node(page: Page, player: Locator):
    place = "[...app.graph.getNodeById(5).pos]"
    slider, before = player.locator("input"), page.evaluate(place)
    box = slider.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 7, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"], box["y"] + 10, steps=4)
    page.mouse.up()
    expect(player.locator(".label")).to_have_text(SECOND)
    assert page.evaluate(place) == before


def test_the_space_bar_and_the_button_start_and_stop_it(player: Locator):
    slider, button = player.locator("input"), player.get_by_role("button")
    slider.press(" ")
    expect(slider).not_to_have_value("0")
    slider.press(" ")
    expect(button).to_have_accessible_name(PLAY)
    button.click()
    expect(button).to_have_accessible_name(PAUSE)
    button.press(" ")
    expect(button).to_have_accessible_name(PLAY)


def test_with_reduced_motion_it_goes_from_reading_to_reading_and_never_plays(page: Page, player: Locator):
    slider, button, label = player.locator("input"), player.get_by_role("button"), player.locator(".label")
    page.emulate_media(reduced_motion="reduce")
    player.locator(".picture").hover()
    page.evaluate(TWO_FRAMES)
    expect(slider).to_have_value("0")
    expect(button).to_have_accessible_name(NEXT)
    for control, key, reading in (
        (slider, "ArrowRight", FIRST),
        (slider, " ", SECOND),
        (button, " ", "identity"),
        (slider, "End", SECOND),
    ):
        control.press(key)
        expect(label).to_have_text(reading)
        expect(label).to_have_attribute("data-arrived", "")
    page.emulate_media(reduced_motion="no-preference")
    page.mouse.move(1400, 900)
    expect(button).to_have_accessible_name(PLAY)


def test_titles_are_text_and_never_markup(page: Page, player: Locator, tmp_path: Path):
    mean = "<img src=nowhere onerror='window.harmed = true'>"
    width = player.bounding_box()["width"]
    output = "app.nodeOutputs[5].guided_synthesis_views[0]"
    run = "([labels]) => app.graph.getNodeById(5).onExecuted({ guided_synthesis_views: [{ ...%s, labels }] })"
    page.evaluate(run % output, [[mean, "b", "a long title " * 20]])
    expect(player.locator(".label")).to_have_text(mean)
    assert player.locator("img").count() == 0
    player.locator("input").press("End")
    page.evaluate(TWO_FRAMES)
    page.screenshot(path=tmp_path / "long_title.png")
    assert player.bounding_box()["width"] == pytest.approx(width, abs=2)
    assert page.evaluate("window.harmed") is None
    page.evaluate("app.graph.getNodeById(5).onExecuted(app.nodeOutputs[5])")
    expect(player.locator(".label")).to_have_text("identity")


def test_only_nodes_that_play_get_a_player_and_a_new_one_says_what_to_do(page: Page, tmp_path: Path):
    players = page.locator(".guided-synthesis-player")
    expect(players).to_have_count(1)
    new = page.evaluate(ADD, [ANIMATION, None])
    expect(page.get_by_text("Run the graph to play the views")).to_be_visible()
    page.screenshot(path=tmp_path / "hint.png")
    page.evaluate("id => app.graph.remove(app.graph.getNodeById(id))", new)
    expect(players).to_have_count(1)


def test_a_node_whose_output_the_host_kept_plays_it_without_a_run(page: Page):
    """So it is when one comes back to a graph from another tab."""
    new = page.evaluate(ADD, [APPLY, NODE])
    expect(page.locator(".guided-synthesis-player[data-shown]")).to_have_count(2)
    page.evaluate("id => app.graph.remove(app.graph.getNodeById(id))", new)


def test_frames_that_are_gone_are_said_to_be(page: Page):
    new = page.evaluate(ADD, [APPLY, None])
    film = {"sprite": {"filename": "gone.webp", "type": "temp"}, "columns": 1, "count": 1}
    run = "([id, film]) => app.graph.getNodeById(id).onExecuted({ guided_synthesis_views: [film] })"
    page.evaluate(run, [new, film])
    expect(page.get_by_text("The host no longer has the pictures: run the graph again")).to_be_visible()
    page.evaluate("id => app.graph.remove(app.graph.getNodeById(id))", new)


def test_the_wheel_zooms_the_graph_there_too(page: Page, player: Locator):
    check_that_the_wheel_zooms(page, player.locator(".picture"))


def test_it_is_neither_saved_nor_sent(page: Page):
    saved = page.evaluate("app.graph.serialize().nodes.find((node) => node.id == 5).widgets_values")
    assert saved == [-1]
    sent = page.evaluate("app.graphToPrompt().then(({ output }) => output[5].inputs)")
    assert set(sent) == {"image", "views", "index"}
