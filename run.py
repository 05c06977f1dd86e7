"""One command for everything: `python run.py demo`, `ui`, `test`, `bench` and more; `--help` lists them.

Needs nothing but Python: the first run makes `.venv` and `.host` in this folder, later runs start at once.
"""

import sys
from pathlib import Path

OLDEST_PYTHON = (3, 10)


def main():
    """Check the Python version in words an old Python understands, then hand over to tests/comfy_host."""
    if sys.version_info < OLDEST_PYTHON:
        sys.exit("run.py needs Python 3.10 or newer; this is " + sys.version.split()[0] + ".")
    # This folder must not be importable: its `nodes` would hide the module of the same name in ComfyUI.
    sys.path[0] = str(Path(__file__).resolve().parent / "tests")
    from comfy_host.command_line import command_line

    return command_line(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
