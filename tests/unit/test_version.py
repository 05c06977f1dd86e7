"""One place sets the version, and a release agrees with it."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest

from comfy_host.places import ROOT

PROJECT = '[project]\nname = "x"\nversion = "1.2.3"\n[tool.ruff]\ntarget-version = "py310"\n'
CHANGES = "# Changelog\n\n## 1.2.3\n\n- A new thing.\n- Another.\n\n## 1.2.2\n\n- An old thing.\n"


def release_notes() -> ModuleType:
    """Return .github/release_notes.py, which lies where no import leads."""
    spec = importlib.util.spec_from_file_location("release_notes", ROOT / ".github" / "release_notes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def release(tmp_path, monkeypatch) -> ModuleType:
    (tmp_path / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text(CHANGES, encoding="utf-8")
    module = release_notes()
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def test_the_changelog_begins_with_the_version_of_the_project():
    module = release_notes()
    assert re.fullmatch(r"\d+\.\d+\.\d+", module.version())
    assert module.notes(f"v{module.version()}")


def test_versions_of_the_changelog_go_down():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    numbers = [tuple(map(int, heading.split("."))) for heading in headings]
    assert numbers == sorted(set(numbers), reverse=True)


def test_no_package_file_of_the_browser_parts_has_a_version_of_its_own():
    files = [file for folder in ("js", "tests/js") for file in (ROOT / folder).glob("package.json")]
    assert [str(file) for file in files if '"version"' in file.read_text(encoding="utf-8")] == []


def test_the_notes_of_a_release_are_the_section_of_its_version(release):
    assert release.notes("v1.2.3") == "- A new thing.\n- Another."


def test_a_tag_that_is_not_the_version_is_refused(release):
    with pytest.raises(ValueError, match="The tag is v1.3.0, but pyproject.toml has version 1.2.3"):
        release.notes("v1.3.0")


def test_a_release_without_its_section_is_refused(release):
    (release.ROOT / "CHANGELOG.md").write_text(
        "# Changelog\n\n## 1.2.2\n\n- An old thing.\n", encoding="utf-8"
    )
    with pytest.raises(ValueError, match="begins with 1.2.2, not with 1.2.3"):
        release.notes("v1.2.3")
