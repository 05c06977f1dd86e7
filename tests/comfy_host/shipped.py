"""What the Comfy registry ships of this checkout."""

from __future__ import annotations

from pathlib import Path

from pathspec import GitIgnoreSpec

from comfy_host.places import ROOT


def shipped() -> list[Path]:
    """Return the files of the registry's archive: those that git and .comfyignore leave."""
    rules = [
        line for name in (".gitignore", ".comfyignore") for line in (ROOT / name).read_text().splitlines()
    ]
    left_out = GitIgnoreSpec.from_lines([*rules, "/.git/"])
    tops = [top for top in ROOT.iterdir() if not left_out.match_file(top.name + "/" * top.is_dir())]
    files = [file for top in tops for file in (top.rglob("*") if top.is_dir() else [top]) if file.is_file()]
    return [file for file in files if not left_out.match_file(file.relative_to(ROOT).as_posix())]
