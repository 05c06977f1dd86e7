"""The files for GitHub: they parse, and what they run, ask for and name is there."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from comfy_host.places import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
KINDS = {"input", "textarea", "dropdown", "checkboxes", "markdown"}


def read(file: Path) -> dict[str, Any]:
    # in YAML 1.1 the key `on` is the truth value, which GitHub's reader does not share
    return {"on" if key is True else key: value for key, value in yaml.safe_load(file.read_text()).items()}


def steps(file: Path) -> list[dict[str, Any]]:
    return [step for job in read(file)["jobs"].values() for step in job.get("steps", ())]


def workflow(name: str) -> dict[str, Any]:
    return read(ROOT / ".github" / "workflows" / name)


def by_name(file: Path) -> str:
    return file.name


@pytest.mark.parametrize("file", WORKFLOWS, ids=by_name)
def test_every_file_that_a_command_names_is_there(file):
    words = [word for step in steps(file) for word in shlex.split(step.get("run", ""), comments=True)]
    ours = [word for word in words if re.fullmatch(r"[\w.]+(/[\w.]+)*\.(py|txt)|\.ci/run|tests/\w+", word)]
    assert ours and [word for word in ours if not (ROOT / word).exists()] == []
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("file", WORKFLOWS, ids=by_name)
def test_jobs_wait_for_jobs_that_exist_and_have_no_more_rights_than_they_say(file):
    jobs = read(file)["jobs"]
    assert [job["needs"] for job in jobs.values() if "needs" in job and job["needs"] not in jobs] == []
    assert read(file)["permissions"] == {"contents": "read"}
    called = [job["uses"] for job in jobs.values() if "uses" in job]
    assert [path for path in called if "workflow_call" not in read(ROOT / path)["on"]] == []


@pytest.mark.parametrize("file", WORKFLOWS, ids=by_name)
def test_actions_of_others_than_github_are_fixed_to_a_commit(file):
    used = [step["uses"] for step in steps(file) if "uses" in step]
    assert used and all(
        re.fullmatch(r"actions/[\w-]+@v\d+|[\w-]+/[\w-]+@[0-9a-f]{40}", name) for name in used
    )


def test_everything_is_tested_on_the_oldest_python_and_on_a_new_one():
    jobs = workflow("ci.yml")["jobs"]
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert jobs["everything"]["strategy"]["matrix"]["python"] == [oldest, "3.12"]
    assert jobs["everything"]["steps"][-2]["run"] == ".ci/run"
    assert "COMFYUI_PATH" in jobs["newest-comfyui"]["env"]


def test_only_a_tag_publishes_and_only_what_passed_the_tests():
    publish = workflow("publish.yml")
    assert publish["on"] == {"push": {"tags": ["v*"]}}
    jobs = publish["jobs"]
    assert [jobs[name]["needs"] for name in ("tests", "release", "registry")] == ["check", "tests", "release"]
    assert [name for name, job in jobs.items() if "write" in str(job.get("permissions"))] == ["release"]
    assert "ci.yml" in jobs["tests"]["uses"] and "release_notes.py" in jobs["check"]["steps"][-1]["run"]
    token = jobs["registry"]["steps"][-1]["with"]["personal_access_token"]
    assert token == "${{ secrets.REGISTRY_ACCESS_TOKEN }}"


@pytest.mark.parametrize("file", FORMS, ids=by_name)
def test_issue_forms_have_the_fields_that_github_wants(file):
    form = read(file)
    assert form["name"] and form["description"] and set(form) == {"name", "description", "labels", "body"}
    assert {field["type"] for field in form["body"]} <= KINDS
    names = [field["id"] for field in form["body"]]
    assert len(set(names)) == len(names)
    for field in form["body"]:
        assert set(field) <= {"type", "id", "attributes", "validations"} and field["attributes"]["label"]
        assert ("options" in field["attributes"]) == (field["type"] in ("dropdown", "checkboxes"))


def test_the_forms_ask_for_what_an_answer_needs():
    bug, technique = (
        {field["id"]: field.get("validations", {}).get("required", False) for field in read(file)["body"]}
        for file in FORMS
    )
    assert {name for name, required in bug.items() if required} == {
        "happened",
        "workflow",
        "comfyui",
        "pack",
        "machine",
    }
    assert {"sentence", "log"} <= set(bug) and technique["paper"]
