r"""Run a workflow with every combination of some values on several ComfyUIs; if one dies, the others do its jobs.

    python sweep.py WORKFLOW_API.json --host http://a:8188 --host http://b:8188 --out DIR \
        --set 6.text="a fox" "a cat" --set 3.seed=1..4

Dask hands the jobs out, one at a time to each host. What is in DIR already is not done again.
Needs `pip install distributed requests`; docs/api.md says more.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import json
import math
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import dask
import requests
from client import run
from distributed import Client, LocalCluster, as_completed, get_worker

NO_COMFYUI = (LookupError, TypeError, AttributeError)  # what `run` raises if something else answers


class HostLost(Exception):
    """A host does not answer: its place in the list of hosts, and why."""


@dataclass(frozen=True)
class Job:
    """One combination: the name with which its files begin, its values {"3.seed": 1}, the workflow with them."""

    name: str
    values: dict
    workflow: dict


def main(words: list[str] | None = None) -> int:
    """Do what the command line says; return 0 if every job is done, 1 if some are left."""
    asked = command_line().parse_args(words)
    workflow = read_workflow(asked.workflow)
    jobs = grid(workflow, settings(workflow, asked.set))
    index = read_index(asked.out)
    left = {name: job for name, job in jobs.items() if name not in index}
    print(f"{len(jobs)} jobs, {len(jobs) - len(left)} of them done already", flush=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    hosts = [host.rstrip("/") for host in asked.host]
    for job, record in results(list(left.values()), hosts, asked.out, asked.patience):
        if "files" in record:
            index[job.name] = record
            write(asked.out / "index.json", json.dumps(index, indent=1).encode())
            del left[job.name]
        print(f"{job.name}: {record.get('problem', 'done')} ({record['host']})", flush=True)
    if left:
        print(f"{len(left)} jobs are not done: the same command tries them again", flush=True)
    return int(bool(left))


def command_line() -> argparse.ArgumentParser:
    """Return the description of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("workflow", type=Path, help="a workflow in API form")
    parser.add_argument(
        "--host", action="append", required=True, help="http://NAME:8188; again for each ComfyUI"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures and index.json")
    sets = "values for an input, one after the other; again for each input; 1..4 is 1 2 3 4"
    parser.add_argument("--set", action="append", default=[], nargs="+", metavar="NODE.INPUT=X", help=sets)
    patience = "give up a host that has not ended a job after so long; without it a job may take any time"
    parser.add_argument("--patience", type=float, default=math.inf, metavar="SECONDS", help=patience)
    return parser


def read_workflow(file: Path) -> dict:
    """Return the workflow in `file`; leave with a sentence if it is not in API form."""
    try:
        workflow = json.loads(file.read_text(encoding="utf-8"))
        if all("class_type" in node for node in workflow.values()):
            return workflow
    except (OSError, AttributeError, TypeError, ValueError):
        pass
    raise SystemExit(f"{file} is no workflow in API form: export it in ComfyUI with File, Export (API).")


def settings(workflow: dict, sets: list[list[str]]) -> dict[str, list]:
    """Read the words of every --set; leave with a sentence if two are of the same input."""
    read: dict[str, list] = {}
    for words in sets:
        place, values = setting(workflow, *words)
        if place in read:
            raise SystemExit(f"--set {place} is there twice: name all its values after one --set {place}=.")
        read[place] = values
    return read


def setting(workflow: dict, first: str, *more: str) -> tuple[str, list]:
    """Read the words of one --set: ("3.seed", [1, 2, 7]) for "3.seed=1..2" and "7"."""
    place, _, word = first.partition("=")
    known = {f"{node}.{name}": value for node in workflow for name, value in workflow[node]["inputs"].items()}
    if place not in known:
        raise SystemExit(f"--set {place}: the workflow has no such input; it has {', '.join(known)}.")
    return place, [value for text in (word, *more) for value in meant(text, known[place], place)]


def meant(text: str, now: object, place: str) -> list:
    """Return the values that `text` stands for: a text where the workflow has one `now`, elsewhere numbers."""
    if isinstance(now, str):
        return [text]
    if steps := re.fullmatch(r"(-?\d+)\.\.(-?\d+)", text):
        if int(steps[1]) > int(steps[2]):
            raise SystemExit(f"--set {place}: {text} has no values: put the smaller number first.")
        return list(range(int(steps[1]), int(steps[2]) + 1))
    try:
        return [json.loads(text)]
    except ValueError:
        raise SystemExit(f"--set {place}: {text!r} is no number; the workflow has {now!r} there.") from None


def grid(workflow: dict, values: dict[str, list]) -> dict[str, Job]:
    """Return a job for every combination of the values, by its name: equal ones are one."""
    combinations = itertools.product(*values.values())
    jobs = [make_job(workflow, dict(zip(values, chosen, strict=True))) for chosen in combinations]
    return {job.name: job for job in jobs}


def make_job(workflow: dict, values: dict) -> Job:
    """Return the job of these values; its name says them, and differs if anything in the workflow does."""
    workflow = copy.deepcopy(workflow)
    for place, value in values.items():
        node, name = place.split(".", 1)
        workflow[node]["inputs"][name] = value
    readable = re.sub(r"[^\w.]+", "_", "_".join(str(values[place]) for place in sorted(values)))[:50]
    exact = hashlib.sha256(json.dumps(workflow, sort_keys=True).encode()).hexdigest()[:12]
    return Job(f"{readable}-{exact}".lstrip("-._"), values, workflow)


def read_index(out: Path) -> dict[str, dict]:
    """Return the records of the jobs whose files are all in the folder `out`, by their names."""
    file = out / "index.json"
    index = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {name: it for name, it in index.items() if all((out / file).is_file() for file in it["files"])}


def results(jobs: list[Job], hosts: list[str], out: Path, patience: float) -> Iterator[tuple[Job, dict]]:
    """Yield each job with its record as soon as it is done, or has failed; end early if no host is left."""
    lost_hosts: dict[str, list[str]] = {job.name: [] for job in jobs}
    alive = set(range(len(hosts)))
    with dask_workers(len(hosts)) as engine:
        tasks = engine.map(render, jobs, hosts=hosts, out=out, patience=patience)
        futures = dict(zip(tasks, jobs, strict=True))
        finished = as_completed(futures)
        for future in finished:
            job, error = futures[future], future.exception()
            if not isinstance(error, HostLost):
                yield job, future.result() | {"lost_hosts": lost_hosts[job.name]}
                continue
            number, reason = error.args
            print(f"{job.name}: lost its host {hosts[number]}: {reason}", flush=True)
            lost_hosts[job.name].append(hosts[number])
            alive.discard(number)
            if not alive:
                return
            engine.retire_workers(names=[number])
            future.retry()
            finished.add(future)


@contextmanager
def dask_workers(number: int) -> Iterator[Client]:
    """Start `number` Dask workers, threads of this process, that take one job at a time."""
    plain = {"dashboard_address": None, "silence_logs": "critical", "memory_limit": 0}
    with (
        dask.config.set({"distributed.scheduler.worker-saturation": 1.0}),
        LocalCluster(n_workers=number, threads_per_worker=1, processes=False, **plain) as cluster,
        Client(cluster) as engine,
    ):
        yield engine


def render(job: Job, hosts: list[str], out: Path, patience: float) -> dict:
    """Do a job on the host of this Dask worker and write its pictures; raise HostLost if the host is gone."""
    worker = get_worker()
    host = hosts[worker.name]
    if lost := getattr(worker, "lost", None):
        time.sleep(1)  # until this worker is retired it fails with one job, and not with all that are left
        raise lost
    try:
        pictures = run_or_clear(host, job.workflow, time.monotonic() + patience)
    except (requests.RequestException, *NO_COMFYUI) as error:
        worker.lost = HostLost(worker.name, f"{type(error).__name__} {error}")
        raise worker.lost from None
    except RuntimeError as refusal:
        return {"host": host, "problem": str(refusal)}
    if not pictures:
        return {"host": host, "problem": "the workflow saves no picture: give it a Save Image node"}
    files = [f"{job.name}_{count}{Path(name).suffix}" for count, (name, _) in enumerate(pictures, 1)]
    for file, (_, picture) in zip(files, pictures, strict=True):
        write(out / file, picture)
    return {"values": job.values, "host": host, "files": files}


def run_or_clear(host: str, workflow: dict, until: float) -> list[tuple[str, bytes]]:
    """Do as `run`; if that raises, leave nothing of the workflow in the host's queue."""
    name = str(uuid.uuid4())
    try:
        return run(host, workflow, until, prompt_id=name)
    except Exception:  # a host that refuses a part of the workflow runs the rest; one that hangs may go on
        with suppress(requests.RequestException):
            requests.post(f"{host}/queue", json={"delete": [name]}, timeout=10)
            requests.post(f"{host}/interrupt", json={"prompt_id": name}, timeout=10)
        raise


def write(file: Path, data: bytes) -> None:
    """Write a file so that it is there as a whole or not at all."""
    part = file.with_name(f"{file.name}.part")
    part.write_bytes(data)
    part.replace(file)


if __name__ == "__main__":
    # Ctrl-C ends it at once: what is done is written, and Dask would wait half a minute for the jobs that run.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    sys.exit(main())
