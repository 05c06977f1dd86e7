"""The languages beside English say what the English says: every text, its numbers, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import locale_file

LANGUAGES = locale_file.languages()
# Names that a language keeps as they are.
KEPT = {"zh": {"GradOP", "gamma", "beta", "sigma", "t0", "PSNR", "SSIM", "LPIPS", "CLIPScore"}}
# The host compiles its texts: {name} is a placeholder, @ links another text, | parts singular and plural.
TAKEN = re.compile(r"[{}@|]")
# Not those within names: img2img, x0.
NUMBER = re.compile(r"(?<![A-Za-z])\d+(?:\.\d+)?")


def test_english_is_not_the_only_language():
    assert "zh" in LANGUAGES


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_there_and_follows_the_english_of_today(language):
    found = locale_file.outdated(language)
    assert not found, "\n".join(
        [*found, f"Edit locales/{language}, then type: python tests/locale_file.py {language}"]
    )


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_no_text_is_empty(language):
    assert [path for path, text in locale_file.texts(language).items() if not (text or "").strip()] == []


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_the_host_shows_every_text_as_it_is_written(language):
    assert {path: text for path, text in locale_file.texts(language).items() if TAKEN.search(text)} == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_only_names_are_left_in_english(language):
    english = locale_file.texts("en")
    same = {text for path, text in locale_file.texts(language).items() if text == english.get(path)}
    assert same == KEPT[language]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_text_has_the_numbers_of_the_english_text(language):
    own = locale_file.texts(language)
    for path, text in locale_file.texts("en").items():
        assert numbers(own[path]) == numbers(text), f"{path}: {text} / {own[path]}"


def numbers(text: str) -> list[float]:
    """Return the numbers of a text from small to large: languages put them into different orders."""
    return sorted(map(float, NUMBER.findall(text)))


@pytest.fixture
def copied(tmp_path, monkeypatch) -> Path:
    """Let `locale_file` read a copy of the locales; return its English file."""
    monkeypatch.setattr(locale_file, "LOCALES", shutil.copytree(locale_file.LOCALES, tmp_path / "locales"))
    return tmp_path / "locales" / "en" / "nodeDefs.json"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_changed_a_new_and_a_lost_english_text_are_each_named(copied, language):
    english = json.loads(copied.read_text(encoding="utf-8"))
    inputs = english["GuidedSynthesis_View"]["inputs"]
    inputs["angle"]["tooltip"] += " And more."
    inputs["tilt"] = {"name": "tilt"}
    del inputs["seed"]["tooltip"]
    copied.write_text(json.dumps(english), encoding="utf-8")
    found = locale_file.outdated(language)
    where = "GuidedSynthesis_View.inputs"
    assert [line.split(";")[0] for line in found] == [
        f"{language} lacks {where}.tilt.name",
        f"{language} has {where}.seed.tooltip, which English has not",
        f"{language} has {where}.angle.tooltip of another English text",
    ]
