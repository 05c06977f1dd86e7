"""The English locale file follows from the schemas: `python tests/locale_file.py` (in the environment) rewrites it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parents[1] / "locales" / "en" / "nodeDefs.json"


def node_definitions() -> dict[str, Any]:
    """Return display names, descriptions and tooltips of all nodes in the host's locale format; needs the host."""
    from guided_synthesis.nodes import GuidedSynthesis

    return {
        node.define_schema().node_id: _node(node.define_schema())
        for node in asyncio.run(_nodes(GuidedSynthesis))
    }


async def _nodes(extension: type) -> list[Any]:
    return await extension().get_node_list()


def _node(schema: Any) -> dict[str, Any]:
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {entry.id: {"name": entry.id, "tooltip": entry.tooltip} for entry in schema.inputs},
        "outputs": {
            str(index): {"name": entry.display_name, "tooltip": entry.tooltip}
            for index, entry in enumerate(schema.outputs)
        },
    }


def text() -> str:
    """Return what the file shall hold."""
    return json.dumps(node_definitions(), indent=2) + "\n"


if __name__ == "__main__":
    from tiny_sd.host_model import open_host

    open_host()
    FILE.write_text(text(), encoding="utf-8")
