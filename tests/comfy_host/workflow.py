"""Turns a graph as the browser saves it (UI format) into what the host's /prompt takes (API format).

The UI format keeps widget values as a bare list; which value belongs to which input follows from the host's
/object_info, with the extra values that the browser adds after seeds and uploads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from comfy_host.problems import Problem

NEVER, BYPASS = 2, 4  # the browser's node modes: muted, bypassed
NOTES = {"Note", "MarkdownNote"}
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
CONTROL = {"fixed", "increment", "decrement", "randomize", "increment-wrap"}
UPLOADS = {"image_upload": "image", "video_upload": "video", "audio_upload": "audio"}

Json = dict[str, Any]


@dataclass(frozen=True)
class Link:
    """One wire: from output `slot` of node `source`."""

    source: Any
    slot: int
    type: Any


def to_prompt(graph: Json, object_info: Json) -> Json:
    """Return the API prompt of a UI-format `graph`; raise Problem if the host lacks one of its nodes."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    links = dict(_links(graph["links"]))
    prompt = {}
    for node in nodes.values():
        if node["type"] in NOTES | {"Reroute", "PrimitiveNode"} or node.get("mode", 0) in (NEVER, BYPASS):
            continue
        if node["type"] not in object_info:
            raise Problem(f"The host has no node {node['type']} (node {node['id']} of the graph).")
        inputs = widget_values(node, object_info[node["type"]])
        for socket in node.get("inputs") or ():
            if socket.get("link") is not None:
                source = _source(links[socket["link"]], nodes, links)
                inputs.pop(socket["name"], None)
                if source is not None:
                    inputs[socket["name"]] = source
        title = node.get("title") or object_info[node["type"]].get("display_name") or node["type"]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return prompt


def widget_values(node: Json, info: Json) -> Json:
    """Return the values of a node's widgets by input name."""
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        known = {name for name, _, _ in widgets(info)}
        return {name: value for name, value in values.items() if name in known}
    rest, found = list(values), {}
    for name, kind, options in widgets(info):
        if not rest:
            break
        value = rest.pop(0)
        # A list would be read as a wire; the host unwraps this form.
        found[name] = {"__value__": value} if isinstance(value, list) else value
        if rest and isinstance(rest[0], str) and rest[0] in _extra_values(name, kind, options):
            rest.pop(0)
    return found


def widgets(info: Json) -> Iterator[tuple[str, str, Json]]:
    """Yield (name, type, options) of the inputs that are widgets, in the order of their values."""
    for group in ("required", "optional"):
        declared = info["input"].get(group) or {}
        for name in (info.get("input_order") or {}).get(group) or declared:
            kind, options = declared[name][0], (declared[name][1] if len(declared[name]) > 1 else {}) or {}
            kind = "COMBO" if isinstance(kind, list) else options.get("widgetType", kind)
            if kind in WIDGET_TYPES and not options.get("forceInput"):
                yield name, kind, options


def choices(info: Json, name: str) -> list[str]:
    """Return the values that the combo input `name` offers, in either of the two forms hosts use."""
    declared = {**(info["input"].get("required") or {}), **(info["input"].get("optional") or {})}[name]
    return list(declared[0] if isinstance(declared[0], list) else declared[1].get("options", ()))


def upload_inputs(prompt: Json, object_info: Json) -> Iterator[tuple[Json, str]]:
    """Yield (inputs of the node, input name) wherever the prompt names a file that a client has to upload."""
    for node in prompt.values():
        for name, _, options in widgets(object_info[node["class_type"]]):
            if options.get("image_upload") and isinstance(node["inputs"].get(name), str):
                yield node["inputs"], name


def _extra_values(name: str, kind: str, options: Json) -> set[str]:
    """Return the values that may follow this widget's own: what becomes of a seed, an upload button."""
    if options.get("control_after_generate") or (kind == "INT" and name in ("seed", "noise_seed")):
        return CONTROL
    return {word for flag, word in UPLOADS.items() if options.get(flag)}


def _links(links: list) -> Iterator[tuple[Any, Link]]:
    for link in links:
        if isinstance(link, dict):
            yield link["id"], Link(link["origin_id"], link["origin_slot"], link.get("type"))
        else:
            yield link[0], Link(link[1], link[2], link[5] if len(link) > 5 else None)


def _source(link: Link, nodes: Json, links: dict[Any, Link]) -> Any:
    """Follow a wire through reroutes and bypassed nodes to its origin; None if it leads to nothing."""
    while True:
        node = nodes[link.source]
        if node["type"] == "PrimitiveNode":
            return node["widgets_values"][0]
        if node.get("mode", 0) == NEVER:
            return None
        if node["type"] != "Reroute" and node.get("mode", 0) != BYPASS:
            return [str(link.source), link.slot]
        through = _passed_through(node, link)
        if through is None or through not in links:
            return None
        link = links[through]


def _passed_through(node: Json, link: Link) -> Any:
    """Return the id of the wire that is handed on: of the input at the same place, else by type."""
    sockets = node.get("inputs") or []
    if node["type"] == "Reroute":
        return sockets[0].get("link") if sockets else None
    kind = node["outputs"][link.slot].get("type", link.type)
    same_place = sockets[link.slot : link.slot + 1]
    return next(
        (socket.get("link") for socket in [*same_place, *sockets] if socket.get("type") == kind), None
    )
