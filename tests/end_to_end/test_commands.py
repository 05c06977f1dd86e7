"""`run.py demo` and `run.py ui` as a person types them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from comfy_host.places import ROOT
from comfy_host.server import answers
from imagenet.weights import weights_file

# Whatever would go to a registry ends here.
NO_NETWORK = {
    name: "http://127.0.0.1:9" for name in ("PIP_INDEX_URL", "http_proxy", "https_proxy", "HTTPS_PROXY")
}
COMMAND = [sys.executable, str(ROOT / "run.py")]


def test_a_second_demo_needs_no_network_and_names_its_files(tmp_path: Path):
    weights_file("vgg16")  # the first demo fetched it
    ran = subprocess.run(
        [*COMMAND, "demo", "--only", "gradop_painting", "--out", "pictures"],
        capture_output=True,
        text=True,
        env=os.environ | NO_NETWORK,
        cwd=tmp_path,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    last = ran.stdout.splitlines()[-1]
    assert re.match(r"gradop_painting  \d+\.\d s  \S+gradop_painting-guided_1\.png ", last)
    files = sorted(file.name for file in (tmp_path / "pictures").iterdir())
    assert files == ["gradop_painting-guided_1.png", "gradop_painting-sdedit_1.png"]
    assert all(str(Path("pictures", name)) in last.split() for name in files)


def test_ui_prints_its_address_and_ctrl_c_ends_everything():
    process = subprocess.Popen([*COMMAND, "ui"], stdout=subprocess.PIPE, text=True, start_new_session=True)
    watchdog = threading.Timer(240, lambda: os.killpg(process.pid, signal.SIGKILL))
    watchdog.start()
    try:
        port = next(
            int(found[1])
            for line in process.stdout or ()
            if (found := re.search(r"http://127\.0\.0\.1:(\d+)", line))
        )
        assert answers(port)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
        assert process.wait(60) == 130
        for _ in range(50):
            if not answers(port):
                break
            time.sleep(0.1)
        assert not answers(port)
    finally:
        watchdog.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
