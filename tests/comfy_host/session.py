"""What the commands share: run a program, end it cleanly, say problems in one sentence."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from comfy_host.places import ROOT
from comfy_host.problems import Problem, disk_problem


def guarded(work: Callable[[], int]) -> int:
    """Run `work`, return its exit code; a Problem becomes one sentence and 1, Ctrl-C 130: no traceback."""
    with suppress(ValueError):  # not in the main thread: then there are no signals to turn
        signal.signal(signal.SIGTERM, _stop)
    try:
        return work()
    except Problem as problem:
        print(f"\n{problem}" if sys.stdout.isatty() else str(problem), file=sys.stderr, flush=True)
        return 1
    except OSError as error:
        problem = disk_problem(error, ROOT)
        if problem is None:
            raise
        print(str(problem), file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


def run_child(command: Sequence[str], folder: Path, environment: dict[str, str]) -> int:
    """Run a program in the same terminal and return its exit code; it never outlives this one."""
    process = subprocess.Popen(list(command), cwd=folder, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)  # the terminal has told it too
        return 130
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
