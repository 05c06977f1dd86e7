"""The scripts for the browser: linter, type checker and their own tests, on Node.js."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from comfy_host.places import HOST, ROOT, TESTS, inside_checkout

SOURCES, INSTALLED = TESTS / "js", HOST / "js"
PACKAGES, LOCK, CONFIG = "package.json", "package-lock.json", "eslint.config.js"


@pytest.fixture(scope="module")
def node() -> str:
    """Return the program that runs scripts without a browser."""
    return program("node")


@pytest.fixture(scope="module")
def tools() -> Path:
    """Install the linter and the type checker into `.host`, unless they are there; return their folder."""
    npm, lock, done = program("npm"), (SOURCES / LOCK).read_bytes(), INSTALLED / "done.json"
    INSTALLED.mkdir(parents=True, exist_ok=True)
    for name in (PACKAGES, LOCK, CONFIG, ".npmrc"):
        shutil.copyfile(SOURCES / name, INSTALLED / name)
    if not done.is_file() or done.read_bytes() != lock:
        passes([npm, "ci"], INSTALLED)
        done.write_bytes(lock)
    return INSTALLED / "node_modules"


def program(name: str) -> str:
    """Return where a program of Node.js is; fail the test, with what to type, if it is missing."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"There is no {name}, which checks the scripts in js/; type: sudo apt install nodejs npm")
    return found


def passes(command: list[str], folder: Path = ROOT) -> None:
    """Run a program in `folder`; fail with all that it says unless it succeeds."""
    environment = inside_checkout() | {"npm_config_cache": str(HOST / "cache" / "npm"), "NO_COLOR": "1"}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_scripts_please_the_linter(node: str, tools: Path):
    linter, config = str(tools / "eslint" / "bin" / "eslint.js"), str(INSTALLED / CONFIG)
    passes([node, linter, "--config", config, "js", "tests/js"])


def test_the_scripts_please_the_type_checker(node: str, tools: Path):
    passes([node, str(tools / "typescript" / "bin" / "tsc"), "--project", str(SOURCES / "tsconfig.json")])


def test_the_scripts_pass_their_own_tests(node: str):
    passes([node, "--test", *map(str, sorted(SOURCES.glob("*.test.js")))])


def test_the_lock_file_pins_everything_and_names_no_registry():
    text = (SOURCES / LOCK).read_text(encoding="utf-8")
    assert '"resolved"' not in text and text.count('"integrity"') > 20
