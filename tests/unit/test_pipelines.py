"""The scripts for pipeline authors, with stand-ins for the hosts: the grid, names, resuming, refusals, lost hosts."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread
from types import ModuleType

import pytest
import requests
from urllib3 import Retry

from comfy_host.places import WORKFLOWS
from comfy_host.server import free_port

PIPELINES = WORKFLOWS / "pipelines"
WORKFLOW = {
    "3": {"class_type": "Sample", "inputs": {"seed": 1, "strength": 0.5, "tiled": False, "text": ["6", 0]}},
    "6": {"class_type": "Text", "inputs": {"text": "a fox"}},
}
UNLUCKY = 13  # the stand-in refuses the part of a workflow that has this seed, and never has done the rest
STRANGERS = {
    "object": {"detail": "Not found"},
    "text": "Hello",
    "list": ["Hello"],
    "nothing": None,
    "namesake": {"node_errors": []},
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """Return the module sweep.py; Dask keeps its configuration in a temporary folder, and no try waits for long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DASK_CONFIG", str(tmp_path_factory.mktemp("dask")))
        patch.syspath_prepend(PIPELINES)
        patch.setattr(Retry, "get_backoff_time", lambda _: 0.01)
        yield __import__("sweep")
    sys.modules.pop("client"), sys.modules.pop("sweep")


@pytest.fixture
def start(sweep: ModuleType, tmp_path: Path):
    """Return a function that runs the sweep of some seeds on some hosts; its results go to `tmp_path / "out"`."""
    file = tmp_path / "workflow.json"
    file.write_text(json.dumps(WORKFLOW), encoding="utf-8")

    def run(*hosts: str, seeds: str = "1..4", options: tuple[str, ...] = ()) -> int:
        words = [str(file), "--out", str(tmp_path / "out"), *(f"--host={host}" for host in hosts)]
        return sweep.main([*words, "--set", *f"3.seed={seeds}".split(), *options])

    return run


def index(folder: Path) -> dict[int, dict]:
    """Return the records of a sweep by their seeds."""
    records = json.loads((folder / "out" / "index.json").read_text(encoding="utf-8"))
    return {record["values"]["3.seed"]: record for record in records.values()}


@contextmanager
def stand_in(fault: str = "", pictures: int = 1, heard: Queue | None = None) -> Iterator[str]:
    """Run what answers like a host that does each job at once, and yield its address.

    Its `fault`: a "restarted" one has no record of its jobs, a "silent" one no messages in it, an "emptied" one no
    pictures, a "slow" one never has done, a "flaky" one breaks off the first GET of each thing and has an error for
    the second, a "deaf" one breaks off every POST, and STRANGERS are no ComfyUI. What it is asked, it puts into
    `heard`: a path, and None or what came with it.
    """
    heard = heard or Queue()
    jobs: list[str] = []  # in the queue
    tries: Counter[str] = Counter()

    class Host(BaseHTTPRequestHandler):
        def answer(self, reply: object, code: int = 200) -> None:
            body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            heard.put((self.path, asked))
            if fault == "deaf":
                return
            if fault in STRANGERS:
                self.answer(STRANGERS[fault], 404)
            elif self.path == "/prompt":
                self.answer({"prompt_id": asked["prompt_id"], "node_errors": self.refused(asked)})
            else:
                jobs[:] = set(jobs) - set(asked.get("delete", ()))
                self.answer(b"")

        def refused(self, asked: dict) -> dict:
            """Return what is wrong with a workflow, and keep in the queue what is never done."""
            unlucky = asked["prompt"]["3"]["inputs"]["seed"] == UNLUCKY
            if unlucky or fault == "slow":
                jobs.append(asked["prompt_id"])
            error = {"message": "Value 13 is unlucky", "details": "seed"}
            return {"3": {"errors": [error]}} if unlucky else {}

        def do_GET(self) -> None:
            heard.put((self.path, None))
            tries[self.path] += 1
            if fault == "flaky" and tries[self.path] == 1:
                return
            if fault == "flaky" and tries[self.path] == 2:
                self.answer({}, 500)
            elif self.path == "/queue":
                self.answer(jobs)
            elif self.path.startswith("/view"):
                self.answer(self.path.encode(), 404 if fault == "emptied" else 200)
            else:
                self.answer({} if fault in ("restarted", "slow") else {"job": self.record()})

        def record(self) -> dict:
            """Return what the host keeps of a job."""
            saved = [{"filename": f"{number}.webp", "type": "output"} for number in range(pictures)]
            images = {"9": {"images": [*saved, {"filename": "preview.png", "type": "temp"}]}, "10": {}}
            messages = [] if fault == "silent" else [["execution_success", {}]]
            return {"outputs": images, "status": {"messages": messages}}

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def posted(heard: Queue) -> list[tuple[str, dict]]:
    """Return what was sent to a stand-in: paths, and what came with them."""
    return [(path, sent) for path, sent in heard.queue if sent is not None]


def taken_back(heard: Queue) -> bool:
    """Tell whether the only workflow that was sent was taken out of the queue, and then interrupted."""
    (_, workflow), *later = posted(heard)
    name = workflow["prompt_id"]
    return later == [("/queue", {"delete": [name]}), ("/interrupt", {"prompt_id": name})]


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
    words = [["6.text=a fox", "7", "a fox"], ["3.seed=1..3", "9", "2..3"], ["3.tiled=true"]]
    jobs = list(sweep.grid(WORKFLOW, sweep.settings(WORKFLOW, words)).values())
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


def test_a_setting_that_would_lose_values_is_told_how_to_keep_them(sweep):
    with pytest.raises(SystemExit, match="--set 3.seed is there twice: name all its values after one"):
        sweep.settings(WORKFLOW, [["3.seed=1..2"], ["6.text=a fox"], ["3.seed=5"]])
    with pytest.raises(SystemExit, match="--set 3.seed: 4..1 has no values: put the smaller number first"):
        sweep.setting(WORKFLOW, "3.seed=7", "4..1")


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


def test_a_value_that_is_named_twice_counts_once(start, tmp_path: Path, capsys):
    with stand_in() as host:
        assert start(host, seeds="1..3 2") == 0
    assert capsys.readouterr().out.splitlines()[0] == "3 jobs, 0 of them done already"
    assert set(index(tmp_path)) == {1, 2, 3}


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
        faults = ("restarted", "silent", "emptied", "deaf", *STRANGERS)
        hosts = [nobody(), host, *(stack.enter_context(stand_in(fault)) for fault in faults)]
        assert start(*hosts, seeds="21..40") == 0
    records = index(tmp_path)
    assert set(records) == set(range(21, 41))
    assert {record["host"] for record in records.values()} == {host}
    lost = [address for record in records.values() for address in record["lost_hosts"]]
    assert set(lost) == set(hosts) - {host} == {hosts[number] for number in retired}
    said = capsys.readouterr().out
    assert said.count("lost its host") == len(lost)
    reasons = (
        "the host was started anew",
        "404",
        "Connection refused",
        "KeyError",
        "IndexError",
        "TypeError",
    )
    assert [reason for reason in reasons if reason not in said] == []


def test_a_host_that_now_and_then_fails_to_answer_keeps_its_jobs(start, tmp_path: Path, capsys):
    with stand_in("flaky") as host:
        assert start(host) == 0
    assert "lost its host" not in capsys.readouterr().out
    assert set(index(tmp_path)) == {1, 2, 3, 4}


def test_a_workflow_that_may_have_reached_the_host_is_not_sent_again(sweep):
    heard: Queue = Queue()
    with stand_in("deaf", heard=heard) as host, pytest.raises(requests.ConnectionError):
        sweep.run(host, WORKFLOW)
    assert [path for path, _ in posted(heard)] == ["/prompt"]


def test_a_host_that_hangs_loses_its_job_to_another(start, tmp_path: Path, capsys):
    heard: Queue = Queue()
    with stand_in("slow", heard=heard) as hung, stand_in() as host:
        assert start(hung, host, options=("--patience", "0.5")) == 0
    records = index(tmp_path)
    assert set(records) == {1, 2, 3, 4}
    assert {record["host"] for record in records.values()} == {host}
    assert [hung] in [record["lost_hosts"] for record in records.values()]
    assert f"lost its host {hung}: ConnectionError no result" in capsys.readouterr().out
    assert taken_back(heard)  # and it got no other


def test_what_a_host_accepts_of_a_workflow_that_it_refuses_is_taken_back(start, tmp_path: Path):
    heard: Queue = Queue()
    with stand_in(heard=heard) as host:
        assert start(host, seeds=f"{UNLUCKY}") == 1
    assert taken_back(heard)


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
    heard: Queue = Queue()
    with stand_in("slow", heard=heard) as host:
        command = [
            sys.executable,
            str(PIPELINES / "sweep.py"),
            "workflow.json",
            f"--host={host}",
            "--out=out",
        ]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=surroundings, cwd=tmp_path
        ) as sweep:
            try:
                while heard.get(timeout=120) != ("/queue", None):
                    pass
                sweep.send_signal(signal.SIGINT)
                said = sweep.communicate(timeout=10)[0]
            finally:
                sweep.kill()
    assert (sweep.returncode, said) == (130, "1 jobs, 0 of them done already\n")
