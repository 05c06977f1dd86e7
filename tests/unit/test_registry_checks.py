"""What the registry and the public checker ask of a pack, of exactly the files that `comfy node publish` ships.

`comfy node validate` and `comfy-test lint` need hundreds of megabytes and a network; these are their static rules.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from comfy_host.places import ROOT
from comfy_host.shipped import shipped

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings the same under this name
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMFY = PROJECT["tool"]["comfy"]
HOSTS_OWN = {
    "torch",
    "torchvision",
    "torchaudio",
    "numpy",
    "pillow",
    "safetensors",
    "transformers",
    "aiohttp",
}
# exec, eval, several statements in a line, pickle, telnet and ftp, subprocesses and shells
SECURITY = "S102,S307,E702,S301,S302,S312,S321,S602,S603,S604,S605,S606,S607,S609"
# as the checker's level `syntax` has them: the host places weights, casts them and moves them
NOT_NATIVE = {
    "a fixed device": r"\.cuda\s*\(|\.to\s*\(\s*(torch\.device\s*\(\s*)?[\"']cuda",
    "autocast": r"torch\.(cuda\.)?(amp\.)?autocast",
    "layers that the host cannot cast": r"(?<![\w.])(torch\.)?nn\."
    r"(Linear|Conv[123]d|ConvTranspose[12]d|LayerNorm|GroupNorm|Embedding)\s*\(",
    "pickles": r"torch\.load\s*\(|\bimport pickle\b",
    "a cache of one maker of GPUs": r"torch\.cuda\.empty_cache\s*\(",
    "connections and processes": r"\b(import|from) (socket|subprocess|requests|urllib)\b",
}
# as its level `javascript`: one page is shared by all packs
NOT_OURS = {
    "listeners of the whole page": r"\bdocument\.(body\.)?addEventListener",
    "elements outside of the node": r"\bdocument\.(body|head)\.(append|prepend|insert)",
    "globals": r"\b(window|globalThis)\.\w+\s*=[^=]",
    "code out of texts": r"\beval\s*\(|\bnew Function\b|\.(inner|outer)HTML\b|insertAdjacentHTML|document\.write",
}


SHIPPED = shipped()
SCRIPTS = [f for f in SHIPPED if f.suffix == ".py" and ROOT / "example_workflows" not in f.parents]
MODULES = [file for file in SHIPPED if file.suffix == ".js"]


def found(files: list[Path], pattern: str) -> list[str]:
    """Return where `pattern` stands in the code of `files`, comments left out."""
    comment = ("#", "//", "*", "/*")
    return [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line) and not line.lstrip().startswith(comment)
    ]


def test_the_archive_holds_the_pack_and_not_its_tests():
    names = {file.relative_to(ROOT).parts[0] for file in SHIPPED}
    assert {"__init__.py", "nodes", "guidance", "attention", "js", "pyproject.toml", "LICENSE"} <= names
    assert not names & {"tests", "run.py", ".ci", ".github", ".venv", ".host", "outputs"}
    assert len(SCRIPTS) > 50 and len(MODULES) > 5


def test_the_archive_is_small_and_holds_no_weights_and_no_installer():
    endings = {".safetensors", ".ckpt", ".pt", ".pth", ".pkl", ".exe"}
    programs = {"install.py", "uninstall.py", "prestartup_script.py"}
    assert sum(file.stat().st_size for file in SHIPPED) < 6e6
    assert not [f for f in SHIPPED if f.suffix in endings or f.name in programs or f.is_symlink()]


def test_the_project_is_described_as_the_registry_wants_it():
    project = PROJECT["project"]
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,99}", project["name"]) and "comfyui" not in project["name"]
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", COMFY["PublisherId"])
    assert COMFY["DisplayName"] and project["description"]
    assert (ROOT / project["license"]["file"]).is_file() and (ROOT / project["readme"]).is_file()
    assert re.fullmatch(r"(https://\S+\.(svg|png|jpg|gif))?", COMFY["Icon"])
    assert re.fullmatch(r">=\d+\.\d+\.\d+", COMFY["requires-comfyui"])


def test_dependencies_are_what_the_host_lacks_and_come_from_the_registry():
    wanted = PROJECT["project"]["dependencies"]
    assert all(re.fullmatch(r"[a-z0-9-]+(>=[\d.]+)?", entry) for entry in wanted), wanted
    assert not {re.split(r"[<>=]", entry)[0] for entry in wanted} & HOSTS_OWN


def test_no_code_runs_texts_pickles_or_programs():
    select = ["--isolated", "--select", SECURITY, "--output-format", "concise"]
    ran = subprocess.run(
        [sys.executable, "-m", "ruff", "check", *select, *SCRIPTS], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("what", NOT_NATIVE)
def test_the_nodes_leave_to_the_host(what: str):
    assert found(SCRIPTS, NOT_NATIVE[what]) == []


@pytest.mark.parametrize("what", NOT_OURS)
def test_the_page_of_all_packs_is_free_of(what: str):
    assert found(MODULES, NOT_OURS[what]) == []


def test_extensions_of_the_page_have_the_packs_name_in_front():
    space = re.sub(r"[^a-z0-9]+", "", COMFY["DisplayName"].lower())
    code = "\n".join(file.read_text(encoding="utf-8") for file in MODULES)
    names = re.findall(r"registerExtension\(\{\s*name:\s*\"([^\"]+)\"", code)
    assert names and [name for name in names if not name.startswith(f"{space}.")] == []
