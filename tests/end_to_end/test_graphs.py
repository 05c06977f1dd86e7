"""The shipped graphs on a real host, over its API: pictures come out, and errors leave no trace."""

from __future__ import annotations

import asyncio
import io
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comfy_host import demo, gallery
from comfy_host.client import Client, GraphError, Progress
from comfy_host.gallery_pictures import PAGES, ROWS
from comfy_host.graphs import DEMO_SHRINK, Choice, load_graph, output_stem, prepare
from comfy_host.places import DEMO_MODEL, ROOT, WORKFLOWS, graph_names
from comfy_host.problems import Problem

GUIDE = "GuidedSynthesis_PaintingGuide"
DEMO = Choice(DEMO_MODEL.name, DEMO_SHRINK)


def plain_prompt(steps: int = 4) -> dict:
    """Return a graph of host nodes only: text to image with the demo model, without the pack."""

    def node(kind: str, **inputs: object) -> dict:
        return {"class_type": kind, "inputs": inputs}

    return {
        "1": node("CheckpointLoaderSimple", ckpt_name=DEMO_MODEL.name),
        "2": node("CLIPTextEncode", clip=["1", 1], text="a photo of a fox on a beach"),
        "3": node("CLIPTextEncode", clip=["1", 1], text=""),
        "4": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "5": node(
            "KSampler",
            model=["1", 0],
            positive=["2", 0],
            negative=["3", 0],
            latent_image=["4", 0],
            seed=5,
            steps=steps,
            cfg=5.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("SaveImage", images=["6", 0], filename_prefix="plain"),
    }


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)


def test_graphs_are_shipped():
    assert "gradop_painting" in graph_names()


@pytest.mark.parametrize("name", graph_names())
def test_every_shipped_graph_makes_its_pictures(name: str, talk, object_info: dict, tmp_path: Path):
    async def run(client: Client) -> demo.Result:
        graph = load_graph(name)
        prompt = await prepare(client, graph, object_info, DEMO)
        pictures = await client.run(prompt)
        return demo.Result(name, 0.0, demo.write_pictures(name, prompt, pictures, tmp_path))

    result = talk(run)
    saves = [
        node for node in load_graph(name)["nodes"] if node["type"] == "SaveImage" and not node.get("mode")
    ]
    assert len(result.files) >= len(saves) > 0
    for file in result.files:
        assert file.name.startswith(name)
        picture = pixels(file.read_bytes())
        # 128 px; strips and larger pictures are multiples; a plot has a size of its own, a film its captions
        assert "plot" in file.name or picture.shape[1] % 128 == 0
        assert "plot" in file.name or file.suffix == ".webp" or picture.shape[0] % 128 == 0
        assert picture.std() > 10  # a flat or black picture has none


def test_the_pictures_that_are_shown_of_a_graph_are_those_that_it_makes(talk, object_info: dict):
    for name in ("gradop_painting", "photo_word_swap"):
        found = talk(lambda client, name=name: gallery.shown(client, object_info, name))
        made = np.asarray(gallery.strip(found, ROWS[name], gallery.SIDE)).astype(float)
        kept = pixels((WORKFLOWS / f"{name}.jpg").read_bytes())
        assert np.abs(made - kept).mean() < 5  # JPEG, and another machine's rounding


def test_a_picture_of_the_gallery_that_a_graph_does_not_make_is_named():
    row = {"readings": [Image.new("RGB", (8, 8)), Image.new("RGB", (24, 8), "red")], "map": []}
    assert gallery.cell(row, "readings 1").getpixel((0, 0)) == (0, 0, 0)
    assert gallery.cell(row, "readings 3 of 3").size == (8, 8)
    assert gallery.strip(row, ("readings 1", "readings 2"), 16).size == (16 + gallery.GAP + 48, 16)
    with pytest.raises(Problem, match="no picture edit; it shows: readings, map"):
        gallery.cell(row, "edit")


def test_a_graph_that_the_host_refuses_is_told_in_the_hosts_words(talk):
    prompt = plain_prompt()
    prompt["5"]["inputs"]["sampler_name"] = "no_such_sampler"
    with pytest.raises(GraphError, match=r"KSampler .*node 5.*sampler_name.*no_such_sampler"):
        talk(lambda client: client.run(prompt))


def test_a_graph_that_fails_on_the_way_is_told_in_the_hosts_words(talk):
    prompt = plain_prompt()
    prompt["6"]["inputs"]["samples"] = ["8", 0]
    prompt["8"] = {
        "class_type": "EmptySD3LatentImage",
        "inputs": {"width": 128, "height": 128, "batch_size": 1},
    }
    with pytest.raises(GraphError, match=r"VAEDecode .*node 6.*RuntimeError.*channels"):
        talk(lambda client: client.run(prompt))


def test_a_reversed_range_is_refused_before_anything_runs(talk, object_info: dict):
    async def run(client: Client) -> None:
        prompt = await prepare(client, load_graph("gradop_painting"), object_info, DEMO)
        guide = next(node["inputs"] for node in prompt.values() if node["class_type"] == GUIDE)
        guide.update(start_percent=0.9, end_percent=0.1)
        await client.run(prompt)

    with pytest.raises(GraphError, match=f"{GUIDE}.*start_percent"):
        talk(run)


def test_a_run_after_an_interrupted_one_is_as_if_nothing_had_been(talk, object_info: dict):
    async def conversation(client: Client) -> None:
        before = await client.run(plain_prompt(steps=4))
        long = await prepare(client, load_graph("gradop_painting"), object_info, DEMO)
        for node in long.values():
            if node["class_type"] == "KSampler":
                node["inputs"]["steps"] = 900
        seen: list[Progress] = []
        interrupted = []

        def show(progress: Progress) -> None:
            seen.append(progress)
            if progress.value >= 2 and not interrupted:
                interrupted.append(asyncio.ensure_future(client.interrupt()))

        prompt_id = await client.queue(long)
        with pytest.raises(GraphError, match="interrupted"):
            await client.follow(prompt_id, long, show)
        assert 2 <= max(progress.value for progress in seen) < 900
        again = plain_prompt(steps=4)
        again["7"]["inputs"]["filename_prefix"] = "plain-again"
        again["4"]["inputs"]["batch_size"] = 1
        again["5"]["inputs"]["seed"] = 6  # so that the host cannot answer from its cache ...
        other = await client.run(again)
        again["5"]["inputs"]["seed"] = 5  # ... and then must compute the first picture anew
        after = await client.run(again)
        assert np.array_equal(pixels(before[0].data), pixels(after[0].data))
        assert not np.array_equal(pixels(other[0].data), pixels(after[0].data))

    talk(conversation)


def test_a_failing_graph_fails_the_demo_and_the_others_still_run(server, tmp_path: Path, monkeypatch):
    broken = {"nodes": [{"id": 4, "type": "NoSuchNode"}], "links": []}
    shipped = load_graph("gradop_painting")
    monkeypatch.setattr(demo, "load_graph", lambda name: broken if name == "broken" else shipped)
    task = demo.Task(["broken", "gradop_painting"], tmp_path, tmp_path)
    first, second = asyncio.run(demo.run_graphs(server.address, task, users_host=False))
    assert "NoSuchNode" in str(first) and "FAILED" in str(first) and not first.files
    assert len(second.files) == 2 and not second.error


def test_every_input_of_every_node_has_a_tooltip_and_every_node_a_description(object_info: dict):
    ours = {name: info for name, info in object_info.items() if name.startswith("GuidedSynthesis_")}
    assert GUIDE in ours
    for name, info in ours.items():
        assert info["description"] and info["display_name"] != name, name
        for kind in info["input"].keys() - {"hidden"}:  # what the host adds by itself nobody sees
            for key, declared in info["input"][kind].items():
                assert (
                    isinstance(declared, list | tuple) and len(declared) > 1 and declared[1].get("tooltip")
                ), (name, key)


def test_every_node_has_a_help_page_that_the_host_serves(server, object_info: dict):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for name in filter(lambda name: name.startswith("GuidedSynthesis_"), object_info):
        page = f"{server.address}/extensions/guided_synthesis/docs/{name}/en.md"
        with opener.open(page) as answer:
            assert len(answer.read()) > 200, name


def test_the_gallery_has_a_row_for_each_graph_and_every_help_picture(object_info: dict):
    assert sorted(ROWS) == graph_names()
    shown = {file.parent.name for file in (ROOT / "js" / "docs").glob("*/example.*")}
    assert {f"GuidedSynthesis_{node}" for node in (*PAGES, "ViewAnimation")} == shown


def test_shipped_graphs_name_a_public_checkpoint_and_pictures_that_are_shipped():
    for name in graph_names():
        for node in load_graph(name)["nodes"]:
            if node["type"] == "CheckpointLoaderSimple":
                assert node["widgets_values"][0] != DEMO_MODEL.name
            if node["type"] == "LoadImage":
                assert (WORKFLOWS / "inputs" / node["widgets_values"][0]).is_file()


def test_pictures_are_named_after_the_graph_and_the_part():
    assert output_stem("gradop", "gradop") == "gradop"
    assert output_stem("gradop", "gradop-guided") == "gradop-guided"
    assert output_stem("gradop", "guided_synthesis/gradop_guided") == "gradop-guided"
    assert output_stem("gradop", "ComfyUI") == "gradop-ComfyUI"
