"""The scripts for pipeline authors, with stand-ins for the hosts: the grid, names, resuming, refusals, lost hosts."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType

import pytest

from comfy_host.places import WORKFLOWS
from comfy_host.server import free_port

PIPELINES = WORKFLOWS / "pipelines"
WORKFLOW = {
    "3": {"class_type": "Sample", "inputs": {"seed": 1, "strength": 0.5, "tiled": False, "text": ["6", 0]}},
    "6": {"class_type": "Text", "inputs": {"text": "a fox"}},
}
UNLUCKY = 13  # the stand-in refuses this seed


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """Return the module sweep.py; Dask keeps its configuration in a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DASK_CONFIG", str(tmp_path_factory.mktemp("dask")))
        patch.syspath_prepend(PIPELINES)
        yield __import__("sweep")
    sys.modules.pop("client"), sys.modules.pop("sweep")


@pytest.fixture
def start(sweep: ModuleType, tmp_path: Path):
    """Return a function that runs the sweep of some seeds on some hosts; its results go to `tmp_path / "out"`."""
    file = tmp_path / "workflow.json"
    file.write_text(json.dumps(WORKFLOW), encoding="utf-8")

    def run(*hosts: str, seeds: str = "1..4") -> int:
        words = [str(file), "--out", str(tmp_path / "out"), *(f"--host={host}" for host in hosts)]
        return sweep.main([*words, "--set", *f"3.seed={seeds}".split()])

    return run


def index(folder: Path) -> dict[int, dict]:
    """Return the records of a sweep by their seeds."""
    records = json.loads((folder / "out" / "index.json").read_text(encoding="utf-8"))
    return {record["values"]["3.seed"]: record for record in records.values()}


@contextmanager
def stand_in(fault: str = "", pictures: int = 1) -> Iterator[str]:
    """Run what answers like a host that does each job at once, and yield its address.

    Its `fault`: a "restarted" one has no record of its jobs, an "emptied" one no pictures, a "slow" one never has
    done, a "stranger" is no ComfyUI.
    """

    class Host(BaseHTTPRequestHandler):
        def answer(self, reply: object, code: int = 200) -> None:
            body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
            if fault == "stranger":
                self.answer({"detail": "Not found"}, 404)
            elif prompt["3"]["inputs"]["seed"] == UNLUCKY:
                error = {"message": "Value 13 is unlucky", "details": "seed"}
                # What the host says of a workflow that it runs in part.
                self.answer({"prompt_id": "job", "node_errors": {"3": {"errors": [error]}}})
            else:
                self.answer({"prompt_id": "job", "node_errors": {}})

        def do_GET(self) -> None:
            saved = [{"filename": f"{number}.webp", "type": "output"} for number in range(pictures)]
            images = {"9": {"images": [*saved, {"filename": "preview.png", "type": "temp"}]}, "10": {}}
            job = {"job": {"outputs": images, "status": {"messages": [["execution_success", {}]]}}}
            if fault == "slow":
                self.answer(["job"])
            elif self.path.startswith("/view"):
                self.answer(self.path.encode(), 404 if fault == "emptied" else 200)
            else:
                self.answer({} if fault == "restarted" or self.path == "/queue" else job)

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def nobody() -> str:
    """Return an address where nobody answers."""
    return f"http://127.0.0.1:{free_port()}"


def test_the_client_has_at_most_20_lines_of_code():
    source = (PIPELINES / "client.py").read_text(encoding="utf-8")
    documented = (ast.Module, ast.FunctionDef)
    strings = [node.body[0] for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
    told = {line for text in strings for line in range(text.lineno, (text.end_lineno or 0) + 1)}
    lines = enumerate(source.splitlines(), 1)
    code = [line for number, line in lines if line.strip() and number not in told]
    assert 10 < len([line for line in code if not line.strip().startswith("#")]) <= 20


def test_the_grid_has_every_combination_once(sweep):
    settings = [("6.text=a fox", "7"), ("3.seed=1..3", "9"), ("3.tiled=true",)]
    jobs = sweep.grid(WORKFLOW, dict(sweep.setting(WORKFLOW, *words) for words in settings))
    asked = [tuple(job.values.values()) for job in jobs]
    assert asked == [(text, seed, True) for text in ("a fox", "7") for seed in (1, 2, 3, 9)]
    assert len({job.name for job in jobs}) == 8
    for job in jobs:
        assert job.workflow["6"]["inputs"]["text"] == job.values["6.text"]
        assert job.workflow["3"]["inputs"] == WORKFLOW["3"]["inputs"] | {
            "seed": job.values["3.seed"],
            "tiled": True,
        }
    assert WORKFLOW["3"]["inputs"]["seed"] == 1


def test_a_name_is_that_of_the_graph_that_runs(sweep):
    one = sweep.make_job(WORKFLOW, {"3.seed": 2, "6.text": "a fox"})
    assert one.name == sweep.make_job(WORKFLOW, {"6.text": "a fox", "3.seed": 2}).name
    assert one.name.startswith("2_a_fox-")
    stronger = sweep.make_job(WORKFLOW, {"3.strength": 0.6}).workflow
    assert sweep.make_job(stronger, one.values).name != one.name


@pytest.mark.parametrize("text", ["../../etc/passwd", "a:b?*<>|\\c", "", "long " * 100, ".hidden"])
def test_a_name_is_a_file_name_whatever_the_prompt(sweep, tmp_path: Path, text: str):
    name = sweep.make_job(WORKFLOW, {"6.text": text}).name
    sweep.write(tmp_path / f"{name}_1.png", b"picture")
    assert [file.name for file in tmp_path.iterdir()] == [f"{name}_1.png"]
    assert name[0].isalnum()
    assert not set(name) & set('/\\:*?"<>| ')


def test_a_setting_that_the_workflow_lacks_is_answered_with_those_it_has(sweep):
    for place in ("3.sede", "4.seed", "seed", ""):
        with pytest.raises(SystemExit, match=f"--set {place}: .* 3.seed, 3.strength.* 6.text"):
            sweep.setting(WORKFLOW, f"{place}=1")
    with pytest.raises(SystemExit, match="--set 3.seed: 'many' is no number; the workflow has 1 there"):
        sweep.setting(WORKFLOW, "3.seed=many")


@pytest.mark.parametrize("text", ['{"nodes": [], "links": []}', "[]", "no JSON", '{"1": 1}', None])
def test_a_workflow_that_is_not_in_api_form_is_told_how_to_export_it(sweep, tmp_path: Path, text: str | None):
    file = tmp_path / "workflow.json"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit, match=r"workflow.json is no workflow in API form: .*Export \(API\)"):
        sweep.read_workflow(file)


def test_a_file_is_there_as_a_whole_or_not_at_all(sweep, tmp_path: Path, monkeypatch):
    file = tmp_path / "index.json"
    sweep.write(file, b"old")

    def fail(path: Path, data: bytes) -> None:
        with path.open("wb") as sink:
            sink.write(data[:1])
        raise OSError("The disk is full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="full"):
        sweep.write(file, b"new")
    assert file.read_bytes() == b"old"


def test_only_what_is_missing_is_done_again(start, tmp_path: Path, capsys):
    with stand_in(pictures=2) as host:
        assert start(host) == 0
        record = index(tmp_path)[3]
        assert [Path(name).suffix for name in record["files"]] == [".webp", ".webp"]
        (tmp_path / "out" / record["files"][1]).unlink()
        capsys.readouterr()
        assert start(host) == 0
    name = record["files"][1].rpartition("_")[0]
    assert capsys.readouterr().out.splitlines() == [
        "4 jobs, 3 of them done already",
        f"{name}: done ({host})",
    ]
    assert set(index(tmp_path)) == {1, 2, 3, 4}
    assert len({(tmp_path / "out" / name).read_bytes() for name in record["files"]}) == 2


def test_a_refused_job_is_told_in_the_hosts_words_and_the_others_go_on(start, tmp_path: Path, capsys):
    with stand_in() as host:
        assert start(f"{host}/", host, seeds=f"1 {UNLUCKY} 2") == 1
    said = capsys.readouterr().out
    assert said.count("node 3: Value 13 is unlucky: seed") == 1
    assert "1 jobs are not done" in said and "lost its host" not in said
    assert set(index(tmp_path)) == {1, 2}


def test_a_job_whose_host_is_lost_goes_to_another(start, sweep, tmp_path: Path, capsys, monkeypatch):
    retired: list[int] = []
    retire = sweep.Client.retire_workers

    def note(client: object, names: list[int]) -> None:
        retired.extend(names)
        retire(client, names=names)

    monkeypatch.setattr(sweep.Client, "retire_workers", note)
    with stand_in() as host, ExitStack() as stack:
        faulty = [stack.enter_context(stand_in(fault)) for fault in ("restarted", "emptied", "stranger")]
        hosts = [nobody(), host, *faulty]
        assert start(*hosts, seeds="1..8") == 0
    records = index(tmp_path)
    assert set(records) == set(range(1, 9))
    assert {record["host"] for record in records.values()} == {host}
    lost = [address for record in records.values() for address in record["lost_hosts"]]
    assert set(lost) == set(hosts) - {host} == {hosts[number] for number in retired}
    said = capsys.readouterr().out
    assert said.count("lost its host") == len(lost)
    assert "the host lost the job" in said and "404" in said and "Connection refused" in said


def test_with_no_host_left_it_ends_and_the_same_command_goes_on(start, tmp_path: Path, capsys):
    assert start(nobody(), nobody()) == 1
    assert "4 jobs are not done: the same command tries them again" in capsys.readouterr().out
    with stand_in() as host:
        assert start(host) == 0
    assert set(index(tmp_path)) == {1, 2, 3, 4}


def test_a_workflow_that_saves_nothing_is_told_what_it_needs(start, tmp_path: Path, capsys):
    with stand_in(pictures=0) as host:
        assert start(host, seeds="1") == 1
    assert "the workflow saves no picture: give it a Save Image node" in capsys.readouterr().out


def test_ctrl_c_ends_it_at_once_while_a_host_works(tmp_path: Path):
    (tmp_path / "workflow.json").write_text(json.dumps(WORKFLOW), encoding="utf-8")
    surroundings = os.environ | {"DASK_CONFIG": str(tmp_path / "dask"), "TMPDIR": str(tmp_path)}
    with stand_in("slow") as host:
        command = [
            sys.executable,
            str(PIPELINES / "sweep.py"),
            "workflow.json",
            f"--host={host}",
            "--out=out",
        ]
        sweep = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=surroundings, cwd=tmp_path)
        assert sweep.stdout is not None
        assert sweep.stdout.readline() == "1 jobs, 0 of them done already\n"
        sweep.send_signal(signal.SIGINT)
        assert sweep.communicate(timeout=120)[0] == ""
    assert sweep.returncode == 130
