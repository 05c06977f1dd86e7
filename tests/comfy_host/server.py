"""Starts a ComfyUI server on a free port, waits until it answers, and ends it whatever happens."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from comfy_host.base import prepare_base
from comfy_host.locate import Host
from comfy_host.places import HOST, LOG, inside_checkout
from comfy_host.problems import Problem

ATTEMPTS = 4
PATIENCE = 600.0  # seconds; a cold start from a slow disk takes minutes
LOCALHOST = "127.0.0.1"


class PortTaken(Exception):
    """Somebody else took the port between our asking for a free one and the host's start."""


@dataclass(frozen=True)
class Server:
    """A running host."""

    port: int
    process: subprocess.Popen

    @property
    def address(self) -> str:
        """Return the address to open in a browser or to send requests to."""
        return f"http://{LOCALHOST}:{self.port}"


@contextmanager
def running(
    host: Host, checkpoint: Path | None = None, log: Path = LOG, further: Sequence[str] = ()
) -> Iterator[Server]:
    """Run `host` with this pack and yield the server; leaving ends it, also by an error or Ctrl-C.

    `further` are more options of its command line.
    """
    options = [*prepare_base(host, checkpoint), *further]
    for _ in range(ATTEMPTS):
        port = free_port()
        try:
            process = start(host, [*options, "--port", str(port)], port, log)
        except PortTaken:
            continue
        try:
            yield Server(port, process)
        finally:
            stop(process)
        return
    raise Problem(
        f"The host found its port taken {ATTEMPTS} times in a row: another program takes them; try again."
    )


def free_port() -> int:
    """Return a TCP port that is free on the loopback address at this moment."""
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        return int(probe.getsockname()[1])


def start(host: Host, options: list[str], port: int, log: Path) -> subprocess.Popen:
    """Start the host and wait until it answers on `port`; raise PortTaken, or Problem with its last words."""
    command = [str(host.python), str(host.tree / "main.py"), *options]
    environment = inside_checkout()
    if host.users:  # not even byte code is left in the user's own ComfyUI
        environment["PYTHONPYCACHEPREFIX"] = str(HOST / "cache" / "pycache")
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=subprocess.STDOUT, cwd=host.tree, env=environment
        )
    deadline = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise _died(log, host, process.returncode)
            if answers(port):
                return process
            time.sleep(0.2)
        raise Problem(f"The host did not answer within {PATIENCE:.0f} seconds: its last words are in {log}.")
    except BaseException:
        stop(process)
        raise


def stop(process: subprocess.Popen) -> None:
    """End the host: politely first, by force after ten seconds."""
    with suppress(ProcessLookupError):
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(port: int) -> bool:
    """Tell whether a ComfyUI answers on `port`. (Not through urllib: that would ask a proxy.)"""
    connection = http.client.HTTPConnection(LOCALHOST, port, timeout=5)
    try:
        connection.request("GET", "/system_stats")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def check_pack(object_info: dict, log: Path = LOG) -> None:
    """Raise Problem with the host's own words if the pack did not load."""
    if any(name.startswith("GuidedSynthesis_") for name in object_info):
        return
    text = log.read_text(encoding="utf-8", errors="replace")
    reason = re.search(r"Cannot import \S*guided_synthesis module for custom nodes: (.*)", text)
    cause = reason[1].strip() if reason else "it gives no reason"
    raise Problem(f"ComfyUI runs, but it could not load this pack: {cause} (details in {log}).")


def _died(log: Path, host: Host, code: int) -> Exception:
    text = log.read_text(encoding="utf-8", errors="replace")
    if re.search(
        r"address already in use|only one usage of each socket address|Errno (98|48|10048)", text, re.I
    ):
        return PortTaken()
    if missing := re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", text):
        name = missing[1].split(".")[0]
        return Problem(
            f'The host lacks the Python module {name}; type: "{host.python}" -m pip install {name}'
        )
    if "No space left on device" in text:
        return Problem("The disk is full: make room and try again.")
    last = " | ".join([line.strip() for line in text.splitlines() if line.strip()][-3:]) or "nothing"
    return Problem(
        f"The host stopped while starting (exit code {code}); its last words: {last} (all of them in {log})."
    )
