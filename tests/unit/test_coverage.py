"""Coverage of the maths by tests/unit: measured in CI, of branches, with a limit, and with no way around it."""

from __future__ import annotations

from coverage import Coverage

from comfy_host.places import ROOT


def test_branches_of_the_maths_are_measured_with_a_limit():
    settings = Coverage(config_file=str(ROOT / "pyproject.toml")).config
    assert settings.branch and settings.source == ["guidance", "attention"]
    assert settings.fail_under >= 95


def test_ci_measures_it():
    commands = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "run.py test tests/unit --cov\n" in commands


def test_no_line_is_excused_by_hand():
    files = [file for folder in ("guidance", "attention") for file in (ROOT / folder).rglob("*.py")]
    assert [str(file) for file in files if "no cover" in file.read_text(encoding="utf-8")] == []
