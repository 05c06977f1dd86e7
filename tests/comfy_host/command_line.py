"""The commands of run.py: reads the arguments, makes the environment, hands over to the Python inside it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from comfy_host.locate import Host, find_host
from comfy_host.places import OUTPUTS, ROOT, TESTS, graph_names, inside_checkout
from comfy_host.problems import Problem
from comfy_host.session import guarded, run_child

# `python -m pytest` would put this checkout on the module path, where its `nodes` would hide the host's.
PYTEST = "import sys; sys.path.pop(0); import pytest; sys.exit(pytest.main())"
CHECKPOINT_KINDS = {".safetensors", ".ckpt", ".sft"}


def command_line(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    if arguments[:1] == ["test"]:  # not read by argparse: all the rest is pytest's, in its order
        return guarded(lambda: test(arguments[1:]))
    options = parser().parse_args(arguments)
    commands = {"demo": demo, "ui": ui, "bench": bench, "gallery": gallery, "matrix": matrix}
    return guarded(lambda: commands[options.command](options))


def parser() -> argparse.ArgumentParser:
    """Return the parser of run.py's arguments."""
    top = argparse.ArgumentParser(prog="run.py", description="Guided Synthesis: try, open, test, measure.")
    commands = top.add_subparsers(dest="command", required=True)
    shown = commands.add_parser("demo", help="make the pictures of the example graphs with a real ComfyUI")
    shown.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these graphs")
    shown.add_argument("--out", type=Path, default=OUTPUTS, metavar="DIR", help="where the pictures go")
    shown.add_argument("--checkpoint", metavar="FILE", help="your own checkpoint instead of the demo model")
    commands.add_parser("ui", help="start ComfyUI with this pack and the demo model, and print its address")
    commands.add_parser("test", help="run the tests; everything after `test` goes to pytest")
    measured = commands.add_parser("bench", help="run the benchmarks and write tests/benchmarks/RESULTS.md")
    measured.add_argument("name", nargs="?", metavar="NAME", help="only this benchmark")
    drawn = commands.add_parser("gallery", help="make the pictures of the README and the help pages again")
    drawn.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only of these graphs")
    commands.add_parser(
        "matrix", help="try all nodes with all samplers and model families, write docs/compatibility.md"
    )
    return top


def demo(options: argparse.Namespace) -> int:
    """Check what can be checked at once, then run the graphs inside the environment."""
    names = chosen_names(options.only)
    name, file = checkpoint(options.checkpoint)
    host = find_host()
    order = {"names": names, "out": str(options.out.absolute()), "checkpoint": name}
    order["folder"] = str(Path.cwd())
    order["checkpoint_file"] = file and str(file)
    return _inside(host, "comfy_host.demo", json.dumps({**_written(host), **order}))


def ui(options: argparse.Namespace) -> int:
    """Keep the host running."""
    host = find_host()
    return _inside(host, "comfy_host.ui", json.dumps(_written(host)))


def test(pytest_arguments: Sequence[str]) -> int:
    """Run pytest with the remaining arguments, from this folder."""
    host = find_host(for_tests=True)
    return run_child([str(host.python), "-c", PYTEST, *pytest_arguments], ROOT, inside_checkout())


def bench(options: argparse.Namespace) -> int:
    """Run one benchmark or all."""
    return _inside(find_host(for_tests=True), "benchmarks", *([options.name] if options.name else []))


def gallery(options: argparse.Namespace) -> int:
    """Run the graphs on the demo model and make the pictures that are shown of them."""
    names, host = chosen_names(options.only), find_host()
    return _inside(host, "comfy_host.gallery", json.dumps({**_written(host), "names": list(names)}))


def matrix(options: argparse.Namespace) -> int:
    """Write docs/compatibility.md."""
    return _inside(find_host(for_tests=True), "compatibility")


def chosen_names(only: Sequence[str]) -> list[str]:
    """Return the graphs to run: `only`, or all; raise Problem for a name that does not exist."""
    names = graph_names()
    wanted = [name.removesuffix(".json") for name in only]
    if unknown := [name for name in wanted if name not in names]:
        raise Problem(f"There is no graph {', '.join(unknown)}; there are: {', '.join(names) or 'none'}.")
    return wanted or names


def checkpoint(given: str | None) -> tuple[str | None, Path | None]:
    """Return the name under which the host will list the given checkpoint, and the file if it is one."""
    if not given:
        return None, None
    file = Path(given).expanduser().absolute()
    if file.is_file():
        if file.suffix.lower() not in CHECKPOINT_KINDS:
            kinds = ", ".join(sorted(CHECKPOINT_KINDS))
            raise Problem(f"{file} is not a checkpoint: --checkpoint takes a file that ends in {kinds}.")
        return file.name, file
    if os.environ.get("COMFYUI_PATH"):
        return given, None  # a name in the list of the user's own ComfyUI
    raise Problem(f"There is no file {file}: --checkpoint takes the path of a .safetensors file.")


def _inside(host: Host, module: str, *arguments: str) -> int:
    return run_child([str(host.python), "-m", module, *arguments], TESTS, inside_checkout())


def _written(host: Host) -> dict:
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(host).items()}
