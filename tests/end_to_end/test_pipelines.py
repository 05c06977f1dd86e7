"""The scripts for pipeline authors on real hosts: the client, and a sweep over two hosts of which one is killed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from PIL import Image

from comfy_host.client import Client
from comfy_host.graphs import DEMO_SHRINK, Choice, load_graph, prepare
from comfy_host.locate import Host
from comfy_host.places import DEMO_MODEL, ROOT, WORKFLOWS, graph_names
from comfy_host.server import Server, running
from comfy_host.workflow import widgets

PIPELINES = WORKFLOWS / "pipelines"
PROMPT, GUIDE, SAMPLER, DECODE = "3", "6", "7", "8"  # nodes of the workflow
GRID = [f"{PROMPT}.text=a photo of a fox", "a photo of a cat", "--set", f"{SAMPLER}.seed=1..2"]
GRID += ["--set", f"{GUIDE}.tolerance=0.05", "0.2"]
JOBS = 8


@dataclass(frozen=True)
class Sweeps:
    """Runs of sweep.py in one folder, and what the one with the killed host left there."""

    folder: Path
    survivor: Server

    @contextmanager
    def start(self, *hosts: Server) -> Iterator[subprocess.Popen]:
        """Start the sweep on these hosts; leaving ends it, also by an error."""
        command = [sys.executable, str(PIPELINES / "sweep.py"), str(self.folder / "workflow.json")]
        command += ["--out", str(self.out)] + [f"--host={host.address}" for host in hosts] + ["--set", *GRID]
        inside = {"DASK_CONFIG": str(self.folder / "dask"), "TMPDIR": str(self.folder)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | inside) as sweep:
            try:
                yield sweep
            finally:
                sweep.kill()

    @property
    def out(self) -> Path:
        """Return the folder of the results."""
        return self.folder / "out"

    def records(self) -> dict[str, dict]:
        """Return the index of the results."""
        index = self.out / "index.json"
        return json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}


@dataclass(frozen=True)
class Killed:
    """How a sweep went of which a host was killed on the way."""

    address: str
    said: str
    code: int
    done_by_the_other: int


@pytest.fixture(scope="module")
def workflow(talk, object_info: dict) -> dict:
    """Return the guided half of a shipped workflow in API form, for the demo model, in few steps."""

    async def export(client: Client) -> dict:
        choice = Choice(DEMO_MODEL.name, DEMO_SHRINK)
        return await prepare(client, load_graph("gradop_painting"), object_info, choice)

    exported = talk(export)
    exported[SAMPLER]["inputs"]["steps"] = 4
    return {node: exported[node] for node in "123456789"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict], list[tuple[str, bytes]]]:
    """Return `run` of client.py."""
    monkeypatch.syspath_prepend(PIPELINES)
    return __import__("client").run


@pytest.fixture(scope="module")
def sweeps(server: Server, workflow: dict, tmp_path_factory: pytest.TempPathFactory) -> Sweeps:
    """Return the folder of a sweep."""
    folder = tmp_path_factory.mktemp("sweeps")
    (folder / "workflow.json").write_text(json.dumps(workflow), encoding="utf-8")
    return Sweeps(folder, server)


@pytest.fixture(scope="module")
def killed(sweeps: Sweeps, program: Host) -> Killed:
    """Sweep over two hosts and kill one of them while it works."""
    before = done_by(sweeps.survivor)
    with (
        second_host(program, sweeps.folder / "second") as second,
        sweeps.start(sweeps.survivor, second) as sweep,
    ):
        while not (sweeps.records() and busy(second)):
            assert sweep.poll() is None
            time.sleep(0.05)
        second.process.kill()
        said = sweep.communicate(timeout=300)[0]
    return Killed(second.address, said, sweep.returncode, done_by(sweeps.survivor) - before)


def second_host(program: Host, folder: Path) -> AbstractContextManager[Server]:
    """Run one more host on the same models and input pictures; what it writes goes to `folder`."""
    (folder / "user").mkdir(parents=True)
    own = [f"--{kind}-directory={folder / kind}" for kind in ("output", "temp", "user")]
    return running(program, log=folder / "host.log", further=own)


def busy(server: Server) -> bool:
    """Tell whether the host runs a job at this moment."""
    return bool(requests.get(f"{server.address}/queue", timeout=60).json()["queue_running"])


def done_by(server: Server) -> int:
    """Return how many jobs the host has done since it was started."""
    return len(requests.get(f"{server.address}/history", timeout=60).json())


def values_of(workflow: dict) -> dict:
    """Return the values of a workflow by their places, {"7.seed": 1}."""
    return {f"{node}.{name}": value for node in workflow for name, value in workflow[node]["inputs"].items()}


def made_with(picture: bytes) -> dict:
    """Return the values of the workflow that the host wrote into a picture."""
    return values_of(json.loads(Image.open(io.BytesIO(picture)).info["prompt"]))


def test_the_program_of_the_documentation_fetches_the_picture(server: Server, workflow: dict, tmp_path: Path):
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    program = text.split("```python")[1].split("```")[0].replace("http://127.0.0.1:8188", server.address)
    (tmp_path / "workflow_api.json").write_text(json.dumps(workflow), encoding="utf-8")
    surroundings = os.environ | {"PYTHONPATH": str(PIPELINES)}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=surroundings, check=True)
    [file] = tmp_path.glob("*.png")
    assert Image.open(file).size == (128, 128)
    asked = {"3.text": "a photo of a cat", "7.seed": 7, "6.tolerance": 0.05}
    assert asked.items() <= made_with(file.read_bytes()).items()


def test_the_client_gets_the_same_picture_again_out_of_the_hosts_cache(server: Server, workflow: dict, run):
    [(name, first)] = run(server.address, workflow)
    assert name.endswith(".png") and made_with(first) == values_of(workflow)
    assert run(server.address, workflow) == [(name, first)]


def test_the_client_tells_a_refusal_and_a_failure_in_the_hosts_words(server: Server, workflow: dict, run):
    refused, failing = deepcopy(workflow), deepcopy(workflow)
    refused[GUIDE]["inputs"]["tolerance"] = 5.0
    with pytest.raises(RuntimeError, match=f"^node {GUIDE}: Value 5.0 bigger than max of 1.0: tolerance$"):
        run(server.address, refused)
    size = {"width": 128, "height": 128, "batch_size": 1}
    failing["20"] = {"class_type": "EmptySD3LatentImage", "inputs": size}
    failing[DECODE]["inputs"]["samples"] = ["20", 0]
    with pytest.raises(RuntimeError, match=f"node {DECODE}: .*channels"):
        run(server.address, failing)
    with pytest.raises(RuntimeError, match="NoSuchNode"):
        run(server.address, {"1": {"class_type": "NoSuchNode", "inputs": {}}})


def test_a_sweep_takes_back_what_the_host_accepts_of_a_workflow_that_it_refuses(
    server: Server, workflow: dict, tmp_path: Path, monkeypatch
):
    monkeypatch.syspath_prepend(PIPELINES)
    monkeypatch.setenv("DASK_CONFIG", str(tmp_path))
    half = deepcopy(workflow) | {"20": {"class_type": "SaveImage", "inputs": {"filename_prefix": "half"}}}
    half[SAMPLER]["inputs"]["steps"] = 10000  # minutes
    with pytest.raises(RuntimeError, match="^node 20: Required input is missing: images$"):
        __import__("sweep").run_or_clear(server.address, half, time.monotonic())
    deadline = time.monotonic() + 60
    while busy(server):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_sweep_loses_no_job_to_a_killed_host_and_does_none_twice(sweeps: Sweeps, killed: Killed):
    assert killed.code == 0, killed.said
    records = sweeps.records()
    assert len({json.dumps(record["values"], sort_keys=True) for record in records.values()}) == JOBS
    for record in records.values():
        [picture] = record["files"]
        assert record["values"].items() <= made_with((sweeps.out / picture).read_bytes()).items()
    assert len(list(sweeps.out.iterdir())) == JOBS + 1  # and the index
    by_the_other = [record for record in records.values() if record["host"] != killed.address]
    assert len(by_the_other) == killed.done_by_the_other


def test_a_sweep_names_the_jobs_that_it_had_to_give_to_another_host(sweeps: Sweeps, killed: Killed):
    retried = {name: record for name, record in sweeps.records().items() if record["lost_hosts"]}
    assert retried
    for name, record in retried.items():
        assert (record["host"], record["lost_hosts"]) == (sweeps.survivor.address, [killed.address])
        assert f"{name}: lost its host {killed.address}" in killed.said


def test_a_second_sweep_does_nothing_but_what_was_deleted(sweeps: Sweeps, killed: Killed):
    name, record = next(iter(sweeps.records().items()))
    before = done_by(sweeps.survivor)
    for deleted in (0, 1):
        if deleted:
            (sweeps.out / record["files"][0]).unlink()
        with sweeps.start(sweeps.survivor) as sweep:
            said = sweep.communicate(timeout=300)[0].splitlines()
        assert sweep.returncode == 0
        assert said[0] == f"{JOBS} jobs, {JOBS - deleted} of them done already"
        assert said[1:] == [f"{name}: done ({sweeps.survivor.address})"][:deleted]
        assert done_by(sweeps.survivor) - before == deleted
    assert (sweeps.out / record["files"][0]).is_file() and len(sweeps.records()) == JOBS


def test_the_host_tells_of_every_value_of_our_nodes_what_it_may_be(object_info: dict):
    """So that no catalogue of our own is needed."""
    number = {"default", "min", "max"}
    told = {"INT": number, "FLOAT": number, "BOOLEAN": {"default"}, "COMBO": {"options"}, "STRING": set()}
    seen = 0
    for name, info in object_info.items():
        if name.startswith("GuidedSynthesis_"):
            for value, kind, options in widgets(info):
                assert told[kind] | {"tooltip"} <= options.keys(), (name, value)
                seen += 1
    assert seen > 100


def test_the_scripts_are_not_taken_for_workflows(server: Server):
    templates = requests.get(f"{server.address}/workflow_templates", timeout=60).json()
    assert sorted(templates["guided_synthesis"]) == graph_names()
