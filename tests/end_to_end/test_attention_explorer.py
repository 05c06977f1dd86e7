"""The explorer of attention maps in the host's own page, in Chromium: classic nodes and Nodes 2.0."""

from __future__ import annotations

import io
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from comfy_host.places import DEMO_MODEL
from comfy_host.server import Server
from end_to_end.browser import READY, RENDERERS, check_that_the_wheel_zooms, opened, our_errors

VIEW = "GuidedSynthesis_AttentionMapView"
TEXT = "a photo of a fox and an apple in the snow"
LONG = " ".join(["a fox an apple and a house in snow by night"] * 7)
MAPS, GREY = 17, 27  # the Attention Map View over a picture, and the one of the long prompt without any
DIMMED = 0.4  # the share of its light that the picture keeps below a map
OPEN = """async ([prompt, places]) => {
    await app.loadApiJson(prompt, "maps");
    const graph = app.graph.serialize();
    for (const node of graph.nodes) {
        node.pos = places[node.id] ?? [-3000, 400 * node.id];
        node.widgets_values = node.widgets_values?.map((value) => (value === "randomize" ? "fixed" : value));
    }
    await app.loadGraphData(graph);
    Object.assign(app.canvas.ds, { offset: [60, 120], scale: 1 });
    app.graph.setDirtyCanvas(true, true);
}"""
OUTPUT = "app.nodeOutputs[%d].guided_synthesis_attention[0]"
AGAIN = """([id, change]) => {
    const [maps] = app.nodeOutputs[id].guided_synthesis_attention;
    app.graph.getNodeById(id).onExecuted({ guided_synthesis_attention: [{ ...maps, ...change }] });
}"""


def graph() -> dict[str, Any]:
    """Return a graph that looks at the words of two prompts: over the picture, and of a long one without it."""

    def node(kind: str, **inputs: object) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    def looked(start: int, text: str) -> dict[str, Any]:
        prompt, recorder, latent, run = (str(start + i) for i in range(4))
        scales = {"scale_1": False, "scale_2": True, "scale_4": True, "scale_8": False}
        settings = {"seed": 8, "steps": 8, "cfg": 5.0, "denoise": 1.0}
        names = {"sampler_name": "euler", "scheduler": "normal"}
        conditions = {"positive": [prompt, 0], "negative": ["2", 0], "latent_image": [latent, 0]}
        maps = {"attention_maps": [recorder, 1], "latent": [run, 0], "words": "", "threshold": 0.3}
        return {
            prompt: node("GuidedSynthesis_Prompt", clip=["1", 1], text=text),
            recorder: node("GuidedSynthesis_AttentionRecorder", model=["1", 0], prompt=[prompt, 1], **scales),
            latent: node("EmptyLatentImage", width=128, height=128, batch_size=1),
            run: node("KSampler", model=[recorder, 0], **conditions, **settings, **names),
            str(start + 4): node(VIEW, **maps),
        }

    common = {
        "1": node("CheckpointLoaderSimple", ckpt_name=DEMO_MODEL.name),
        "2": node("CLIPTextEncode", clip=["1", 1], text=""),
        "3": node("VAEDecode", samples=["16", 0], vae=["1", 2]),
    }
    made = common | looked(13, TEXT) | looked(23, LONG)
    made[str(MAPS)]["inputs"]["image"] = ["3", 0]
    return made


def run(page: Page) -> None:
    """Load the graph and run it; what the host has made before comes from its cache."""
    page.evaluate(OPEN, [graph(), {MAPS: [60, 60], GREY: [560, 60]}])
    page.evaluate("app.queuePrompt(0)")
    expect(page.locator(".guided-synthesis-explorer[data-shown]")).to_have_count(2)


@pytest.fixture(scope="module", params=RENDERERS.values(), ids=RENDERERS.keys())
def page(request, server: Server, browser: Browser) -> Iterator[Page]:
    """Open the host's page, where nothing moves by itself, and run the graph."""
    with opened(browser, server.address, nodes2=request.param) as page:
        page.emulate_media(reduced_motion="reduce")
        run(page)
        yield page


@pytest.fixture(autouse=True)
def nothing_goes_wrong(page: Page) -> Iterator[None]:
    """Let the pointer start beside the nodes, nothing pinned; fail a test in which our scripts wrote an error."""
    leave(page)
    for pinned in page.locator(".words [aria-pressed=true]").all():
        pinned.click()
    leave(page)
    yield
    assert our_errors(page) == []


@pytest.fixture
def explorer(page: Page) -> Locator:
    """Return the explorer that shows maps over the picture."""
    return page.locator(".guided-synthesis-explorer").filter(has_text="photo")


@pytest.fixture
def grey(page: Page) -> Locator:
    """Return the explorer of the long prompt, which has no picture."""
    return page.locator(".guided-synthesis-explorer").filter(has_text="night")


def leave(page: Page) -> None:
    """Take the pointer and the focus away."""
    page.mouse.move(1400, 900)
    page.evaluate("document.activeElement?.shadowRoot?.activeElement?.blur()")


def word(explorer: Locator, text: str) -> Locator:
    """Return the button of the first word that is written so."""
    return explorer.get_by_role("button", name=text, exact=True).first


def expect_seen(explorer: Locator, text: str | None) -> None:
    """Expect the map of one word to be seen, or none."""
    expect(explorer.locator("[data-seen]")).to_have_text([text] if text else [])
    expect(explorer.locator(".picture")).to_have_accessible_name(
        f"Where {text} looked" if text else "The picture"
    )


def shot(explorer: Locator, file: Path) -> np.ndarray:
    """Return what the explorer's square picture shows on the screen: (128, 128, 3) in [0, 1]; keep it in `file`."""
    stage = Image.open(io.BytesIO(explorer.locator(".stage").screenshot(path=file))).convert("RGB")
    side = min(stage.size)
    left, top = (stage.width - side) // 2, (stage.height - side) // 2
    return small(stage.crop((left, top, left + side, top + side)))


def small(picture: Image.Image) -> np.ndarray:
    """Return a square picture as (128, 128, 3) in [0, 1]."""
    return np.asarray(picture.convert("RGB").resize((128, 128), Image.Resampling.BILINEAR)) / 255


def files(page: Page, server: Server, view: int) -> tuple[dict[str, Any], Image.Image, Image.Image]:
    """Return what the host told the explorer of node `view`, and the two files: the sheet and the picture."""
    told = page.evaluate(OUTPUT % view)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    fetched = []
    for name in ("sprite", "picture"):
        with opener.open(f"{server.address}/view?{urlencode(told[name])}") as answer:
            fetched.append(Image.open(io.BytesIO(answer.read())))
    return told, *fetched


def frame(told: dict[str, Any], sheet: Image.Image, number: int) -> Image.Image:
    """Return the map of word `number`."""
    left, top = number % told["columns"] * told["width"], number // told["columns"] * told["height"]
    return sheet.crop((left, top, left + told["width"], top + told["height"]))


@pytest.mark.parametrize("text", ["fox", "apple", "snow"])
def test_pointing_at_a_word_shows_its_map_over_the_picture(
    page: Page, server: Server, explorer: Locator, tmp_path: Path, text: str
):
    told, sheet, picture = files(page, server, MAPS)
    at_rest = shot(explorer, tmp_path / "rest.png")
    assert np.abs(at_rest - small(picture)).mean() < 0.02
    word(explorer, text).hover()
    expect_seen(explorer, text)
    page.screenshot(path=tmp_path / "page.png")
    seen = shot(explorer, tmp_path / "map.png")
    heat = small(frame(told, sheet, TEXT.split().index(text)))
    assert np.abs(seen - (1 - (1 - DIMMED * small(picture)) * (1 - heat))).mean() < 0.02
    hot, cold = heat[..., 0] > 0.8, heat.mean(-1) < 0.05
    assert hot.sum() > 20 and (seen[hot, 0] > 0.8).all()
    assert not cold.any() or (seen[cold] - at_rest[cold]).mean() < -0.2
    leave(page)
    expect_seen(explorer, None)
    assert np.abs(shot(explorer, tmp_path / "again.png") - at_rest).mean() < 0.005


def test_without_a_picture_the_maps_lie_on_a_dark_ground(
    page: Page, server: Server, grey: Locator, tmp_path: Path
):
    told, sheet, _ = files(page, server, GREY)
    ground = shot(grey, tmp_path / "ground.png")
    assert ground.std() < 0.01 and 0.2 < ground.mean() < 0.4
    word(grey, "house").hover()
    heat = small(frame(told, sheet, told["words"].index("house")))
    expected = 1 - (1 - DIMMED * ground) * (1 - heat)
    assert np.abs(shot(grey, tmp_path / "map.png") - expected).mean() < 0.02


def test_a_click_pins_a_word_and_another_click_lets_it_go(page: Page, explorer: Locator):
    apple = word(explorer, "apple")
    apple.click()
    leave(page)
    expect_seen(explorer, "apple")
    expect(apple).to_have_attribute("aria-pressed", "true")
    word(explorer, "fox").hover()
    expect_seen(explorer, "fox")
    leave(page)
    expect_seen(explorer, "apple")
    word(explorer, "fox").click()
    leave(page)
    expect_seen(explorer, "fox")
    word(explorer, "fox").click()
    leave(page)
    expect_seen(explorer, None)


def test_keys_go_from_word_to_word_and_the_page_around_does_not_get_them(page: Page, explorer: Locator):
    page.evaluate("window.heard = []; window.addEventListener('keydown', ({ key }) => heard.push(key))")
    explorer.get_by_role("button").first.focus()
    for key, text in [
        ("ArrowRight", "photo"),
        ("ArrowLeft", "a"),
        ("End", "snow"),
        ("ArrowLeft", "the"),
        ("Home", "a"),
        ("ArrowRight", "photo"),
    ]:
        page.keyboard.press(key)
        expect_seen(explorer, text)
    page.keyboard.press("ArrowDown")
    expect(explorer.locator("[data-seen]")).not_to_have_text("photo")
    page.keyboard.press("ArrowUp")
    expect_seen(explorer, "photo")
    for key in (" ", "Enter", " "):
        page.keyboard.press(key)
    expect(explorer.locator("[aria-pressed=true]")).to_have_text("photo")
    expect(explorer.locator("[tabindex='0']")).to_have_text("photo")  # where the tabulator comes back to
    assert page.evaluate("heard") == []
    page.keyboard.press("x")
    assert page.evaluate("heard") == ["x"]


def test_the_last_word_that_was_pointed_at_or_led_to_is_seen(page: Page, explorer: Locator):
    word(explorer, "fox").hover()
    explorer.get_by_role("button").first.focus()
    page.keyboard.press("End")
    expect_seen(explorer, "snow")
    word(explorer, "apple").hover()
    expect_seen(explorer, "apple")
    page.mouse.move(1400, 900)
    expect_seen(explorer, "snow")


def test_only_where_motion_is_welcome_a_map_fades(page: Page, explorer: Locator):
    lengths = "heat => getComputedStyle(heat).transitionDuration"
    heat = explorer.locator(".heat")
    assert heat.evaluate(lengths) == "0s"
    page.emulate_media(reduced_motion="no-preference")
    assert heat.evaluate(lengths) != "0s"
    page.emulate_media(reduced_motion="reduce")


def test_it_takes_the_colours_of_the_theme(page: Page, explorer: Locator):
    colour = "word => getComputedStyle(word).color"
    root = "([value]) => document.documentElement.style.setProperty('--input-text', value)"
    for ink in ("rgb(10, 20, 30)", "rgb(240, 230, 220)"):
        page.evaluate(root, [ink])
        assert word(explorer, "fox").evaluate(colour) == ink
    page.evaluate("document.documentElement.style.removeProperty('--input-text')")


def test_a_long_prompt_scrolls_and_leaves_room_for_the_map(page: Page, grey: Locator, tmp_path: Path):
    words, scale = grey.get_by_role("button"), page.evaluate("app.canvas.ds.scale")
    expect(words).to_have_count(77)
    page.screenshot(path=tmp_path / "long.png")
    stage = grey.locator(".stage").bounding_box()
    assert stage is not None and stage["height"] > 150
    expect(words.last).not_to_be_in_viewport()
    words.first.focus()
    words.first.hover()
    page.mouse.wheel(0, 2000)
    expect(words.last).to_be_in_viewport()
    assert page.evaluate("app.canvas.ds.scale") == scale
    page.keyboard.press("Home")
    expect(words.first).to_be_in_viewport()
    page.keyboard.press("End")
    expect(words.last).to_be_in_viewport()


def test_over_the_picture_the_wheel_zooms_the_graph(page: Page, grey: Locator):
    check_that_the_wheel_zooms(page, grey.locator(".stage"))


def test_words_are_text_and_never_markup(page: Page, explorer: Locator, tmp_path: Path):
    mean = "<img src=nowhere onerror='window.harmed=true'>"
    words = [mean, *TEXT.split()[1:10], "long" * 100]
    width = explorer.bounding_box()["width"]
    page.evaluate(AGAIN, [MAPS, {"words": words}])
    expect(explorer.get_by_role("button")).to_have_text(words)
    word(explorer, mean).hover()
    expect_seen(explorer, mean)
    page.screenshot(path=tmp_path / "markup.png")
    assert explorer.locator("img").count() == 0 and page.evaluate("window.harmed") is None
    assert explorer.bounding_box()["width"] == pytest.approx(width, abs=2)
    page.evaluate(AGAIN, [MAPS, {}])
    expect(explorer.get_by_role("button")).to_have_text(TEXT.split())


def test_a_new_run_of_the_same_words_keeps_the_pin_and_other_words_drop_it(page: Page, explorer: Locator):
    word(explorer, "apple").click()
    leave(page)
    page.evaluate(AGAIN, [MAPS, {}])
    expect_seen(explorer, "apple")
    page.evaluate(AGAIN, [MAPS, {"words": [*TEXT.split()[:-1], "sand"]}])
    expect(word(explorer, "sand")).to_be_visible()
    expect_seen(explorer, None)
    page.evaluate(AGAIN, [MAPS, {}])
    expect(word(explorer, "snow")).to_be_visible()


def test_pulling_at_a_word_does_not_move_the_node(page: Page, explorer: Locator):
    place = f"[...app.graph.getNodeById({MAPS}).pos]"
    box, before = word(explorer, "fox").bounding_box(), page.evaluate(place)
    assert box is not None
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + 105, box["y"] + 105, steps=4)
    page.mouse.up()
    assert page.evaluate(place) == before


def test_it_is_neither_saved_nor_sent(page: Page):
    saved = page.evaluate(f"app.graph.serialize().nodes.find((node) => node.id == {MAPS}).widgets_values")
    assert saved == ["", 0.3]
    sent = page.evaluate(f"app.graphToPrompt().then(({{ output }}) => output[{MAPS}].inputs)")
    assert set(sent) == {"attention_maps", "latent", "words", "threshold", "image"}


def test_only_this_node_has_one_and_a_new_one_says_what_to_do(page: Page, tmp_path: Path):
    expect(page.locator(".guided-synthesis-explorer")).to_have_count(2)
    new = page.evaluate(
        """([type]) => {
            const node = LiteGraph.createNode(type);
            node.pos = [1000, 60];
            app.graph.add(node);
            return node.id;
        }""",
        [VIEW],
    )
    expect(page.get_by_text("Run the graph to see where each word looked")).to_be_visible()
    page.screenshot(path=tmp_path / "hint.png")
    gone = {"filename": "gone.webp", "subfolder": "", "type": "temp"}
    show = "([id, maps]) => app.graph.getNodeById(id).onExecuted({ guided_synthesis_attention: [maps] })"
    page.evaluate(show, [new, {"sprite": gone, "picture": gone, "words": []}])
    expect(page.get_by_text("The host no longer has the pictures: run the graph again")).to_be_visible()
    page.evaluate("id => app.graph.remove(app.graph.getNodeById(id))", new)
    expect(page.locator(".guided-synthesis-explorer")).to_have_count(2)


def test_after_a_reload_of_the_page_the_maps_that_the_host_has_kept_are_seen_again(
    page: Page, server: Server, explorer: Locator, tmp_path: Path
):
    before, rest = page.evaluate(OUTPUT % MAPS), shot(explorer, tmp_path / "before.png")
    page.reload()
    page.wait_for_function(READY)
    run(page)
    assert page.evaluate(OUTPUT % MAPS) == before  # the same files
    assert np.abs(shot(explorer, tmp_path / "after.png") - rest).mean() < 0.01
    word(explorer, "fox").hover()
    expect_seen(explorer, "fox")
