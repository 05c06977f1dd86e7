"""`python run.py demo`, the part inside the environment: every shipped graph through a real ComfyUI."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from comfy_host.client import Client, Progress, connect
from comfy_host.graphs import choose_checkpoint, load_graph, prepare, write_pictures
from comfy_host.locate import Host
from comfy_host.places import DEMO_MODEL
from comfy_host.problems import Problem
from comfy_host.server import check_pack, running
from comfy_host.session import guarded


@dataclass(frozen=True)
class Task:
    """What the user asked for."""

    names: Sequence[str]
    out: Path
    folder: Path  # where the user typed the command; files are named from there
    checkpoint: str | None = None  # a name in the host's list
    checkpoint_file: Path | None = None  # a file to make visible under that name


@dataclass(frozen=True)
class Result:
    """How one graph ended."""

    name: str
    seconds: float
    files: Sequence[Path]
    error: str = ""

    def __str__(self) -> str:
        shown = " ".join(str(file) for file in self.files)
        return f"{self.name}  {self.seconds:.1f} s  {self.error and 'FAILED: ' + self.error or shown}"


def demo(host: Host, task: Task) -> int:
    """Run the graphs and print one line for each; returns 1 if one failed."""
    print("Starting ComfyUI ...", flush=True)
    with running(host, task.checkpoint_file) as server:
        results = asyncio.run(run_graphs(server.address, task, host.users))
    print(*results, sep="\n", flush=True)
    return int(any(result.error for result in results))


async def run_graphs(address: str, task: Task, users_host: bool) -> list[Result]:
    """Send the graphs of `task` to the host at `address`, one after the other."""
    async with connect(address) as client:
        object_info = await client.object_info()
        check_pack(object_info)
        return [await run_graph(client, object_info, name, task, users_host) for name in task.names]


async def run_graph(client: Client, object_info: dict, name: str, task: Task, users_host: bool) -> Result:
    """Run one shipped graph and write its pictures."""
    began, files, error = time.perf_counter(), [], ""
    try:
        graph = load_graph(name)
        choice = choose_checkpoint(graph, object_info, task.checkpoint, users_host)
        if users_host and choice.checkpoint == DEMO_MODEL.name:
            print(f"{name}: this ComfyUI lacks the graph's checkpoint; the demo model is used.", flush=True)
        prompt = await prepare(client, graph, object_info, choice)
        pictures = await client.run(prompt, lambda progress: show(name, progress))
        files = write_pictures(name, prompt, pictures, task.out)
        files = [seen_from(task.folder, file) for file in files]
        error = "" if files else "the graph saved no picture"
    except Problem as problem:
        error = str(problem)
    clear()
    return Result(name, time.perf_counter() - began, files, error)


def seen_from(folder: Path, file: Path) -> Path:
    """Return `file` as it is typed in `folder`."""
    return file.relative_to(folder) if file.is_relative_to(folder) else file


def show(name: str, progress: Progress) -> None:
    """Show on one terminal line what the host does."""
    if sys.stdout.isatty():
        steps = f" {progress.value}/{progress.maximum}" if progress.maximum else ""
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\033[K{f'{name}: {progress.node}{steps}'[:width]}", end="", flush=True)


def clear() -> None:
    """Take the progress line away."""
    if sys.stdout.isatty():
        print("\r\033[K", end="", flush=True)


def main(order: str) -> int:
    """Run what stage one (command_line) ordered, as JSON."""
    wanted = json.loads(order)
    host = Host(Path(wanted["tree"]), Path(wanted["python"]), wanted["cpu"], wanted["users"])
    file = wanted["checkpoint_file"] and Path(wanted["checkpoint_file"])
    task = Task(wanted["names"], Path(wanted["out"]), Path(wanted["folder"]), wanted["checkpoint"], file)
    return guarded(lambda: demo(host, task))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
