"""Prints what CHANGELOG.md says about the version of a tag: `python3 .github/release_notes.py v1.2.3`.

Ends with a sentence if the tag is not the version of pyproject.toml, or not the newest of CHANGELOG.md.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def version() -> str:
    """Return the version in pyproject.toml: the one place that sets it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r'^version = "(.*)"$', text, re.MULTILINE)[0]


def newest_section() -> tuple[str, str]:
    """Return the heading of the topmost section of CHANGELOG.md, and its text."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heading, _, body = text.split("\n## ", 2)[1].partition("\n")
    return heading.strip(), body.strip()


def notes(tag: str) -> str:
    """Return the text about the version of `tag`; raise ValueError if the three do not agree."""
    heading, body = newest_section()
    if tag != f"v{version()}":
        raise ValueError(f"The tag is {tag}, but pyproject.toml has version {version()}: tag v{version()}.")
    if heading != version():
        raise ValueError(f"CHANGELOG.md begins with {heading}, not with {version()}: write its section.")
    return body


if __name__ == "__main__":
    try:
        print(notes(sys.argv[1]))
    except ValueError as problem:
        sys.exit(str(problem))
