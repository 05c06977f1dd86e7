"""The graphs that the pack ships, and what a client has to do to them before the host can run one."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from comfy_host.client import Client, Picture
from comfy_host.places import DEMO_CLASSIFIER, DEMO_MODEL, WORKFLOWS
from comfy_host.problems import Problem
from comfy_host.workflow import choices, to_prompt, upload_inputs

LOADER = "CheckpointLoaderSimple"
CLASSIFIER_LOADER = "GuidedSynthesis_LoadClassifier"
EMPTY_LATENT = "EmptyLatentImage"
RESIZE = "ImageScaleToTotalPixels"
DEMO_SHRINK = 4  # the shipped pictures are 512 px, the demo model paints at 128 px
DEMO_MEGAPIXELS = 128**2 / 1024**2

Json = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """The checkpoint a graph runs with, and by what its pictures are shrunk for it."""

    checkpoint: str
    shrink: int


def load_graph(name: str) -> Json:
    """Return the shipped graph `name` in UI format."""
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def choose_checkpoint(graph: Json, object_info: Json, wanted: str | None, users_host: bool) -> Choice:
    """Choose the wanted checkpoint, else the graph's own if the user's host has it, else the demo model."""
    there = choices(object_info[LOADER], "ckpt_name")
    if wanted:
        if wanted not in there:
            raise Problem(f"The host has no checkpoint {wanted}; it has: {', '.join(there) or 'none'}.")
        return Choice(wanted, 1)
    own = [node["widgets_values"][0] for node in graph["nodes"] if node["type"] == LOADER]
    if users_host and own and set(own) <= set(there):
        return Choice(own[0], 1)
    if DEMO_MODEL.name not in there:
        raise Problem(
            f"The demo model is missing ({DEMO_MODEL}): restore it with git, or name one with --checkpoint."
        )
    return Choice(DEMO_MODEL.name, DEMO_SHRINK)


async def prepare(client: Client, graph: Json, object_info: Json, choice: Choice) -> Json:
    """Return the prompt of `graph` with the chosen checkpoint, its input pictures uploaded to the host.

    Input pictures and empty latents are shrunk as the checkpoint needs it; the demo model gets its own classifier.
    """
    prompt = to_prompt(graph, object_info)
    for node in prompt.values():
        inputs = node["inputs"]
        if node["class_type"] == LOADER:
            inputs["ckpt_name"] = choice.checkpoint
        if node["class_type"] == CLASSIFIER_LOADER and choice.checkpoint == DEMO_MODEL.name:
            inputs["classifier"] = DEMO_CLASSIFIER.name  # knows the things that the demo model paints
        if node["class_type"] == RESIZE and choice.checkpoint == DEMO_MODEL.name:
            inputs["megapixels"] = DEMO_MEGAPIXELS
        if node["class_type"] == EMPTY_LATENT:
            sides = {name: inputs[name] for name in ("width", "height") if isinstance(inputs[name], int)}
            inputs |= {name: side // choice.shrink for name, side in sides.items()}
    for inputs, name in upload_inputs(prompt, object_info):
        file = WORKFLOWS / "inputs" / inputs[name]
        if not file.is_file():
            raise Problem(f"The graph asks for the picture {inputs[name]}, which is not in {file.parent}.")
        inputs[name] = await client.upload(file.name, shrunk(file, choice.shrink))
    return prompt


def shrunk(file: Path, factor: int) -> bytes:
    """Return the picture `file` as PNG, its sides divided by `factor`."""
    with Image.open(file) as picture:
        picture.load()
        if factor != 1:
            picture = picture.resize(
                (picture.width // factor, picture.height // factor), Image.Resampling.BOX
            )
        sink = io.BytesIO()
        picture.save(sink, "PNG")
    return sink.getvalue()


def write_pictures(name: str, prompt: Json, pictures: Sequence[Picture], folder: Path) -> list[Path]:
    """Write pictures and animations as `<name>_<n>.png`, `.webp`, with a `-<part>` where the prefix names one."""
    files, counts = [], dict[str, int]()
    for picture in pictures:
        stem = output_stem(name, str(prompt[picture.node]["inputs"].get("filename_prefix", "")))
        counts[stem] = counts.get(stem, 0) + 1
        file = folder / f"{stem}_{counts[stem]}{Path(picture.filename).suffix}"
        folder.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture.data)
        files.append(file)
    return files


def output_stem(name: str, prefix: str) -> str:
    """Return the file stem for a picture of graph `name` saved under `prefix`: both, and nothing twice."""
    part = prefix.replace("\\", "/").rsplit("/", 1)[-1].removeprefix(name).strip("-_ ")
    return f"{name}-{part}" if part else name
