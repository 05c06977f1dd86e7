"""Starting a host, with a stand-in of a few lines for ComfyUI: taken ports, early deaths, clean ends."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import pytest

from comfy_host import server
from comfy_host.locate import Host
from comfy_host.problems import Problem

ANSWERS = """
import http.server, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/system_stats" else 404)
        self.end_headers()
class Server(http.server.HTTPServer):
    allow_reuse_address = False
Server(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a maker of hosts whose main.py is the given program."""
    monkeypatch.setattr(server, "prepare_base", lambda host, checkpoint: [])

    def make(program: str) -> Host:
        (tmp_path / "main.py").write_text(program)
        return Host(tmp_path, Path(sys.executable), cpu=True, users=False)

    return make


def test_a_host_runs_while_it_is_needed_and_not_longer(stand_in, tmp_path: Path):
    with server.running(stand_in(ANSWERS), log=tmp_path / "log") as running:
        assert server.answers(running.port)
        assert running.address == f"http://127.0.0.1:{running.port}"
    assert running.process.poll() is not None
    assert not server.answers(running.port)


def test_a_host_ends_when_the_work_with_it_fails(stand_in, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), server.running(stand_in(ANSWERS), log=tmp_path / "log") as running:
        raise KeyboardInterrupt
    assert running.process.poll() is not None


def test_a_taken_port_is_exchanged_for_another(stand_in, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    free = server.free_port
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        ports = [squatter.getsockname()[1], free()]
        monkeypatch.setattr(server, "free_port", lambda: ports.pop(0))
        monkeypatch.setattr(server, "answers", answers_but_not_at(ports[0]))
        with server.running(stand_in(ANSWERS), log=tmp_path / "log") as running:
            assert running.port != squatter.getsockname()[1]
    assert ports == []


def answers_but_not_at(port: int):
    """Return `answers`, saved the five seconds of patience with a squatter that never answers."""
    ask = server.answers
    return lambda asked: asked != port and ask(asked)


def test_ports_that_are_always_taken_are_a_sentence(stand_in, tmp_path: Path):
    host = stand_in("raise OSError(98, 'address already in use')")
    with pytest.raises(Problem, match="port taken 4 times"), server.running(host, log=tmp_path / "log"):
        pass


def test_a_host_that_lacks_a_module_is_told_which(stand_in, tmp_path: Path):
    host = stand_in("import no_such_module.part")
    with (
        pytest.raises(Problem, match="pip install no_such_module$"),
        server.running(host, log=tmp_path / "log"),
    ):
        pass


def test_a_host_that_dies_leaves_its_last_words(stand_in, tmp_path: Path):
    host = stand_in("print('one'); print('the reason'); raise SystemExit(3)")
    with pytest.raises(Problem, match=r"exit code 3.*one \| the reason"):
        with server.running(host, log=tmp_path / "log"):
            pass


def test_a_full_disk_in_the_host_is_a_sentence(stand_in, tmp_path: Path):
    host = stand_in("raise OSError(28, 'No space left on device')")
    with pytest.raises(Problem, match="disk is full"), server.running(host, log=tmp_path / "log"):
        pass


def test_a_host_that_never_answers_is_given_up_and_ended(
    stand_in, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server, "PATIENCE", 0.5)
    began = time.monotonic()
    with pytest.raises(Problem, match="did not answer"):
        with server.running(stand_in("import time; time.sleep(60)"), log=tmp_path / "log"):
            pass
    assert time.monotonic() - began < 20


def test_a_pack_that_did_not_load_is_reported_with_the_hosts_words(tmp_path: Path):
    log = tmp_path / "log"
    log.write_text("Cannot import /x/guided_synthesis module for custom nodes: No module named 'kornia'\n")
    server.check_pack({"GuidedSynthesis_PaintingGuide": {}}, log)
    with pytest.raises(Problem, match="could not load this pack: No module named 'kornia'"):
        server.check_pack({"KSampler": {}}, log)
