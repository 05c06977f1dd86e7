"""`python run.py ui`, the part inside the environment: the host, kept running, with the graphs to open."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from comfy_host.graphs import DEMO_SHRINK, LOADER, load_graph, shrunk
from comfy_host.locate import Host
from comfy_host.places import BASE, DEMO_MODEL, WORKFLOWS, graph_names
from comfy_host.server import running
from comfy_host.session import guarded


def ui(host: Host) -> int:
    """Start the host, print its address, and stay until Ctrl-C or until the host ends."""
    lay_out_graphs(BASE)
    print("Starting ComfyUI ...", flush=True)
    with running(host) as server:
        print(f"ComfyUI runs at {server.address}", flush=True)
        print("The graphs are under Workflows, in guided_synthesis. Ctrl-C ends it.", flush=True)
        return server.process.wait()


def lay_out_graphs(base: Path) -> None:
    """Put the shipped graphs, set to the demo model, and their pictures where the host's page finds them."""
    folder = base / "user" / "default" / "workflows" / "guided_synthesis"
    folder.mkdir(parents=True, exist_ok=True)
    (base / "input").mkdir(parents=True, exist_ok=True)
    for name in graph_names():
        graph = load_graph(name)
        for node in graph["nodes"]:
            if node["type"] == LOADER:
                node["widgets_values"] = [DEMO_MODEL.name]
        (folder / f"{name}.json").write_text(json.dumps(graph), encoding="utf-8")
    for picture in (WORKFLOWS / "inputs").glob("*.png"):
        (base / "input" / picture.name).write_bytes(shrunk(picture, DEMO_SHRINK))


def main(order: str) -> int:
    """Run what stage one (command_line) ordered, as JSON."""
    wanted = json.loads(order)
    host = Host(Path(wanted["tree"]), Path(wanted["python"]), wanted["cpu"], wanted["users"])
    return guarded(lambda: ui(host))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
