"""Formatter, linter and type checker pass: what CI would say, said by the tests."""

from __future__ import annotations

import subprocess
import sys

import pytest

from comfy_host.places import ROOT

TOOLS = {
    "linter": ["ruff", "check", "--output-format", "concise"],
    "formatter": ["ruff", "format", "--check"],
    "type checker": ["mypy"],
}


@pytest.mark.parametrize("tool", TOOLS)
def test_the_code_pleases_the(tool: str):
    ran = subprocess.run([sys.executable, "-m", *TOOLS[tool]], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_sources_are_plain_ascii():
    sources = [
        file
        for pattern in (
            "*.py",
            "nodes/**/*.py",
            "guidance/**/*.py",
            "attention/**/*.py",
            "tests/**/*.py",
            "example_workflows/**/*.py",
            "js/**/*.js",
        )
        for file in ROOT.glob(pattern)
    ]
    assert len(sources) > 10
    assert [str(file) for file in sources if not file.read_bytes().isascii()] == []


def test_requirements_name_what_pyproject_names():
    declared = (ROOT / "pyproject.toml").read_text().split("dependencies = [")[1].split("]")[0]
    wanted = [name.strip().strip('"') for name in declared.split(",") if name.strip()]
    assert (ROOT / "requirements.txt").read_text().split() == wanted
