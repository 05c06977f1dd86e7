"""The subgraph blueprints in the host's own page: found in the search, wired, queued, and they do what they promise."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from playwright.sync_api import Browser, Page

from comfy_host.client import Client
from comfy_host.graphs import DEMO_SHRINK, shrunk
from comfy_host.places import DEMO_MODEL, ROOT, WORKFLOWS
from comfy_host.server import Server
from end_to_end.browser import RENDERERS, TWO_FRAMES, opened, our_errors, page_errors
from tiny_sd import classifier

PAINT, EDIT, FLIP = "Paint Over a Photo", "Edit a Photo by a Word", "Flip Illusion"
PACK = "custom_nodes.guided_synthesis"
PHOTO, PAINTED = "photo.png", "photo_stroke_edit.png"
FLOOR = [700, 700]  # a place of the page where the empty graph is seen
# A blueprint stands between Load Checkpoint and Load Image on the left and Save Image on the right, set and sent.
WIRE = """async ([checkpoint, pictures, values, saved]) => {
    const blueprint = app.graph.nodes.find((node) => node.isSubgraphNode?.());
    const add = (type, pos, value) => {
        const node = LiteGraph.createNode(type);
        node.pos = pos;
        app.graph.add(node);
        node.widgets[0].value = value;
        return node;
    };
    const into = (name) => blueprint.inputs.findIndex((input) => input.name === name);
    blueprint.pos = [400, 150];
    const loader = add("CheckpointLoaderSimple", [60, 150], checkpoint);
    ["model", "clip", "vae"].forEach((name, slot) => loader.connect(slot, blueprint, into(name)));
    Object.entries(pictures).forEach(([name, file], row) =>
        add("LoadImage", [60, 300 + 330 * row], file).connect(0, blueprint, into(name)));
    saved.forEach((name, row) => blueprint.connect(
        blueprint.outputs.findIndex((output) => output.name === name),
        add("SaveImage", [850, 150 + 330 * row], `blueprint-${name}`), 0));
    for (const [name, value] of Object.entries(values)) {
        const widget = blueprint.widgets.find((widget) => widget.name === name);
        widget.value = value;
        widget.callback?.(value);
    }
    const inside = blueprint.subgraph;
    const wires = inside.inputs.flatMap((input) => input.linkIds.map((id) => {
        const { target_id, target_slot } = inside.getLink(id);
        return [input.name, `${blueprint.id}:${target_id}`, inside.getNodeById(target_id).inputs[target_slot].name];
    }));
    return { wires, prompt: (await app.graphToPrompt()).output };
}"""

Json = dict[str, Any]


def blueprint(name: str) -> Json:
    """Return the file of the blueprint `name`."""
    return json.loads((ROOT / "subgraphs" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pages(server: Server, browser: Browser) -> Iterator[dict[str, Page]]:
    """Open the host's page in both renderers: what one has queued the host still knows when the other sends it."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(opened(browser, server.address, nodes2=nodes2))
            for name, nodes2 in RENDERERS.items()
        }


@pytest.fixture(params=RENDERERS)
def page(request, pages: dict[str, Page]) -> Page:
    """Return the host's page in one of its renderers."""
    return pages[request.param]


@pytest.fixture(scope="module")
def pictures(talk) -> dict[str, np.ndarray]:
    """Put the photo and its painted copy into the host's input folder; return them, RGB (128, 128, 3) in [0, 255]."""
    files = {name: shrunk(WORKFLOWS / "inputs" / name, DEMO_SHRINK) for name in (PHOTO, PAINTED)}
    for name, data in files.items():
        talk(lambda client, name=name, data=data: client.upload(name, data))
    return {name: pixels(data) for name, data in files.items()}


@pytest.fixture(scope="module")
def judge() -> classifier.Classifier:
    """Return the network that names the things in the demo model's pictures."""
    return classifier.load()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def things(judge: classifier.Classifier, picture: np.ndarray, count: int) -> set[str]:
    """Return the names of the `count` things that are most surely in the picture."""
    return set(judge.names(torch.from_numpy(picture / 255).permute(2, 0, 1)[None], count)[0])


def place(page: Page, name: str) -> None:
    """Put a blueprint into an empty graph: the search, its name, the first thing found, and where it goes.

    A double click on the empty page opens the search as well, but only if the machine is quick enough to see one in it.
    """
    page.evaluate("app.graph.clear()")
    page.evaluate(TWO_FRAMES)  # what stood there is gone from the screen as well
    page.mouse.move(*FLOOR)
    page.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.wait_for_function("document.activeElement?.tagName === 'INPUT'")
    page.keyboard.type(name)
    page.get_by_role("option").filter(has_text=name).click()
    page.mouse.click(*FLOOR)
    page.wait_for_function("app.graph.nodes.some((node) => node.isSubgraphNode?.())")


def made(page: Page, talk, name: str, inputs: dict[str, str], values: Json, saved: list[str]) -> Json:
    """Place the blueprint, wire, set and queue it; return its pictures by output, and what was sent to the host."""
    place(page, name)
    sent = page.evaluate(WIRE, [DEMO_MODEL.name, inputs, values, saved])
    check_that_all_values_arrive(sent, values)
    prompt = sent["prompt"]

    async def run(client: Client) -> Json:
        found: Json = {}
        for picture in await client.run(prompt):
            output = prompt[picture.node]["inputs"]["filename_prefix"].removeprefix("blueprint-")
            found.setdefault(output, []).append(pixels(picture.data))
        return found

    found = talk(run)
    assert set(found) == set(saved)
    return found


def check_that_all_values_arrive(sent: Json, values: Json) -> None:
    """Compare what each widget on the outside was set to with what the nodes inside were sent with."""
    arrived = {name: sent["prompt"][node]["inputs"][socket] for name, node, socket in sent["wires"]}
    assert {name: arrived[name] for name in values} == values


def test_the_host_lists_the_blueprints_as_their_files_are(page: Page, server: Server):
    def get(path: str) -> Json:
        return page.request.get(f"{server.address}/global_subgraphs{path}").json()

    ours = {entry["name"]: key for key, entry in get("").items() if entry["info"]["node_pack"] == PACK}
    assert set(ours) == {PAINT, EDIT, FLIP}
    for name, key in ours.items():
        assert json.loads(get(f"/{key}")["data"]) == blueprint(name)


@pytest.mark.parametrize("name", [PAINT, EDIT, FLIP])
def test_a_blueprint_says_what_it_is_for_and_is_named_as_its_file(name: str):
    file = blueprint(name)
    (inside,) = file["definitions"]["subgraphs"]
    assert file["nodes"][0]["title"] == inside["name"] == name
    assert inside["description"] == file["extra"]["BlueprintDescription"]
    assert all(word["name"].replace("_", " ") in inside["description"] for word in inside["outputs"][1:])


def test_of_a_batch_of_photos_the_first_is_edited():
    """The guider's batch has all sources before all targets: of several photos, picture 1 would be the second one."""
    (inside,) = blueprint(EDIT)["definitions"]["subgraphs"]
    (slot,) = (number for number, socket in enumerate(inside["inputs"]) if socket["name"] == "photo")
    wires = {(wire["origin_id"], wire["origin_slot"]): wire["target_id"] for wire in inside["links"]}
    (node,) = (node for node in inside["nodes"] if node["id"] == wires[-10, slot])
    assert (node["type"], node["widgets_values"]) == ("ImageFromBatch", [0, 1])


def test_strokes_over_a_photo_become_real_and_the_rest_stays(page: Page, talk, pictures, judge, tmp_path):
    prompt = "a photo of a cat to the left of a red balloon in a green field"
    values = {"prompt": prompt, "tolerance": 0.11, "denoise": 0.79, "steps": 12, "cfg": 5.5, "seed": 1}
    found = made(page, talk, PAINT, {"photo": PHOTO, "painting": PAINTED}, values, ["picture"])
    page.screenshot(path=tmp_path / "paint.png")
    (picture,), photo, painted = found["picture"], pictures[PHOTO], pictures[PAINTED]
    strokes = Image.fromarray((np.abs(photo - painted).max(2) > 0).astype(np.uint8))
    near = np.asarray(strokes.filter(ImageFilter.MaxFilter(25))) > 0
    assert 0.05 < near.mean() < 0.7
    assert np.array_equal(picture[~near], photo[~near])
    assert np.abs(picture - painted)[near].mean() > 4  # not the strokes themselves
    assert things(judge, picture, 2) == {"cat", "balloon"}


def test_a_word_of_a_photo_is_exchanged_and_the_rest_stays(page: Page, talk, pictures, judge, tmp_path):
    values = {"sentence": "a photo of a cat in a green field", "word": "cat", "replacement": "frog"}
    values |= {"threshold": 0.31, "layout": 0.41, "steps": 12, "cfg": 7.4}
    found = made(page, talk, EDIT, {"photo": PHOTO}, values, ["edited", "rebuilt"])
    page.screenshot(path=tmp_path / "edit.png")
    (edited,), (rebuilt,) = found["edited"], found["rebuilt"]
    assert np.abs(rebuilt - pictures[PHOTO]).mean() < 12
    assert things(judge, rebuilt, 1) == {"cat"}
    assert things(judge, edited, 1) == {"frog"}
    sky = slice(0, 24)
    assert np.abs(edited - rebuilt)[sky].mean() < 4 < np.abs(edited - rebuilt)[40:110, 10:90].mean()


def test_one_picture_is_a_tulip_and_upside_down_an_apple(page: Page, talk, judge, tmp_path):
    values = {"upright": "a photo of a tulip in front of a red wall"}
    values |= {"upside_down": "a photo of an apple in front of a red wall"}
    values |= {"width": 128, "height": 128, "steps": 12, "cfg": 3.1, "seed": 0}
    found = made(page, talk, FLIP, {}, values, ["picture", "readings"])
    page.screenshot(path=tmp_path / "flip.png")
    (picture,), (upright, upside_down) = found["picture"], found["readings"]
    assert picture.shape == (128, 128, 3)
    assert np.array_equal(picture, upright) and np.array_equal(upright[::-1], upside_down)
    assert things(judge, upright, 1) == {"tulip"}
    assert things(judge, upside_down, 1) == {"apple"}


def test_nothing_went_wrong_in_the_page(page: Page):
    """It comes last: what the blueprints and the pack's own scripts have written until now."""
    assert our_errors(page) == []
    assert [error for error in page_errors(page) if "blueprint" in error.lower()] == []
