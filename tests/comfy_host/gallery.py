"""`python run.py gallery`: runs the example graphs on the demo model and makes the pictures that are shown of them."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageSequence

from comfy_host import gallery_pictures as wanted
from comfy_host.client import Client, connect
from comfy_host.graphs import choose_checkpoint, load_graph, output_stem, prepare
from comfy_host.locate import Host
from comfy_host.places import ROOT, WORKFLOWS
from comfy_host.problems import Problem
from comfy_host.server import check_pack, running
from comfy_host.session import guarded

SIDE, HELP_SIDE, FILM_SIDE = 256, 192, 192  # px of a cell
GAP = 4  # px between two cells
FRAME = 62  # ms that a frame of a film is shown
SHADES = Image.Resampling.BICUBIC

Found = dict[str, list[Image.Image]]


def gallery(host: Host, names: Sequence[str]) -> int:
    """Make the pictures of the graphs `names` again and print their files."""
    print("Starting ComfyUI ...", flush=True)
    with running(host) as server:
        asyncio.run(_make(server.address, names))
    return 0


async def _make(address: str, names: Sequence[str]) -> None:
    async with connect(address) as client:
        object_info = await client.object_info()
        check_pack(object_info)
        for name in names:
            for file in written(name, await shown(client, object_info, name)):
                print(file.relative_to(ROOT), flush=True)


async def shown(client: Client, object_info: dict, name: str) -> Found:
    """Run a graph; return its pictures by the part of the file name, or by the title of the node that shows them."""
    graph = load_graph(name)
    prompt = await prepare(client, graph, object_info, choose_checkpoint(graph, object_info, None, False))
    prompt_id = await client.queue(prompt)
    await client.follow(prompt_id, prompt, lambda progress: None)
    found: Found = {}
    for picture in await client.pictures(prompt_id, prompt, shown=True):
        node = prompt[picture.node]
        prefix = node["inputs"].get("filename_prefix")
        key = output_stem(name, prefix).removeprefix(f"{name}-") if prefix else node["_meta"]["title"]
        found.setdefault(key, []).append(Image.open(io.BytesIO(picture.data)))
    return found


def written(name: str, found: Found) -> list[Path]:
    """Write the pictures of which the ones of graph `name` are part; return their files."""
    row = strip(found, wanted.ROWS[name], SIDE)
    files = [_saved(row, WORKFLOWS / f"{name}.jpg")]
    for node, (graph, cells) in wanted.PAGES.items():
        if graph == name:
            files.append(_saved(strip(found, cells, HELP_SIDE), _page(node) / "example.jpg"))
    for stem, (graph, cells) in wanted.README.items():
        if graph == name:
            files.append(_saved(strip(found, cells, SIDE), ROOT / "docs" / f"{stem}.png"))
    if name in wanted.FILMS:
        files.append(_film(found["animation"][0], ROOT / "docs" / "illusions" / f"{name}.webp"))
    if name == wanted.FILM_PAGE:
        files.append(_film(found["animation"][0], _page("ViewAnimation") / "example.webp"))
    return files


def strip(found: Found, cells: wanted.Cells, side: int) -> Image.Image:
    """Return the pictures of `cells` side by side, each `side` px high; one that is a row itself stays as it is."""
    pictures = [cell(found, name) for name in cells]
    if len(pictures) == 1 and pictures[0].width > 2 * pictures[0].height:
        return pictures[0]
    pictures = [
        picture.resize((side * picture.width // picture.height, side), SHADES) for picture in pictures
    ]
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    row, left = Image.new("RGB", (width, side), "white"), 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + GAP
    return row


def cell(found: Found, name: str) -> Image.Image:
    """Return the picture (RGB) that gallery_pictures.py calls `name`; raise Problem if there is none."""
    if name.endswith(".png"):
        return _input(*name.split(" without "))
    if name in found:
        return found[name][-1].convert("RGB")
    key, _, place = name.partition(" ")
    number, _, of = place.partition(" of ")
    if not found.get(key):
        raise Problem(f"The graph shows no picture {name}; it shows: {', '.join(found)}.")
    picture = found[key][-1 if of else int(number) - 1].convert("RGB")
    width = picture.width // int(of or 1)
    left = (int(number) - 1) * width if of else 0
    return picture.crop((left, 0, left + width, picture.height))


def _input(file: str, hole: str = "") -> Image.Image:
    picture = Image.open(WORKFLOWS / "inputs" / file).convert("RGB")
    if hole:
        mask = Image.open(WORKFLOWS / "inputs" / hole).convert("L").resize(picture.size)
        picture.paste("white", mask=mask)
    return picture


def _page(node: str) -> Path:
    return ROOT / "js" / "docs" / f"GuidedSynthesis_{node}"


def _saved(picture: Image.Image, file: Path) -> Path:
    picture.save(file, quality=88, optimize=True)
    return file


def _film(film: Image.Image, file: Path) -> Path:
    frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(film)]
    size = (FILM_SIDE, FILM_SIDE * film.height // film.width)
    first, *rest = [frame.resize(size, SHADES) for frame in frames]
    first.save(file, save_all=True, append_images=rest, duration=FRAME, loop=0, quality=60, method=4)
    return file


def main(order: str) -> int:
    """Run what stage one (command_line) ordered, as JSON."""
    ordered = json.loads(order)
    host = Host(Path(ordered["tree"]), Path(ordered["python"]), ordered["cpu"], ordered["users"])
    return guarded(lambda: gallery(host, ordered["names"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
