"""`yoloyard image` as a process, with an engine that is made up: a program on PATH that writes down its words."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from commands import not_ignored

ROOT = Path(__file__).parents[2]
ENGINE = f"""#!{sys.executable}
import json, os, pathlib, signal, sys, time
name, words = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
folder = pathlib.Path(sys.argv[0]).parent
with open(folder / "words.jsonl", "a") as file:
    file.write(json.dumps([name, *words]) + "\\n")
if words[0] == "info":
    if name in os.environ.get("SILENT", ""):
        sys.exit("Cannot connect to the Docker daemon at unix:///var/run/docker.sock.")
if words[0] == "inspect" and words[-1] not in os.environ.get("BUILT", "").split():
    sys.exit("no such image")
if words[0] == "build":
    print("STEP 1", flush=True)
    if "WAIT" in os.environ:
        def end(*_):
            time.sleep(0.6)  # longer than a process is given by default
            (folder / "cleaned_up").touch()
            sys.exit(130)
        signal.signal(signal.SIGTERM, end)
        (folder / "building").touch()
        time.sleep(60)
    if "BREAK" in os.environ:
        sys.exit("E: Unable to locate package")
"""


class Machine:
    """A PATH with the engines that are asked for, and git."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        os.symlink(str(shutil.which("git")), folder / "git")

    def install(self, *names: str) -> None:
        for name in names:
            (self.folder / name).write_text(ENGINE)
            (self.folder / name).chmod(0o755)

    def start(self, *words: str, **variables: str) -> "subprocess.Popen[str]":
        kept = {name: value for name, value in os.environ.items() if name != "YOLOYARD_IMAGE"}
        environment = {**kept, "PATH": str(self.folder), "COLUMNS": "200", **variables}
        command = [sys.executable, "-m", "yoloyard", "image", *words]
        return subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )

    def image(self, *words: str, **variables: str) -> tuple[int, str, str]:
        process = self.start(*words, **variables)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def builds(self) -> list[list[str]]:
        lines = (self.folder / "words.jsonl").read_text().splitlines()
        return [words for words in map(json.loads, lines) if words[1] == "build"]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def values(words: list[str], flag: str) -> list[str]:
    return [value for name, value in pairwise(words) if name == flag]


def git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()


def test_a_build_hands_over_the_row_of_the_table_and_the_state_of_the_clone(machine: Machine) -> None:
    machine.install("podman")
    code, out, err = machine.image("build", "pytorch-cuda-v2.8", "--stage", "both")
    assert code == 0, err
    runtime, devel = machine.builds()
    assert values(runtime, "--target") == ["runtime"]
    assert values(devel, "--target") == ["devel"]
    assert values(runtime, "--tag") == ["yoloyard:torch2.8-cu128-runtime", "yoloyard:pytorch-cuda-v2.8-runtime"]
    assert values(devel, "--tag") == ["yoloyard:torch2.8-cu128", "yoloyard:pytorch-cuda-v2.8"]
    arguments = dict(word.split("=", 1) for word in values(devel, "--build-arg"))
    dirty = "-dirty" if git("status", "--porcelain") else ""
    assert arguments["REVISION"] == git("rev-parse", "HEAD") + dirty
    assert arguments["SOURCE_DATE_EPOCH"] == git("log", "-1", "--format=%ct")
    assert arguments["BASE_IMAGE"] == "ubuntu:24.04"
    assert (arguments["TORCH"], arguments["CUDA"], arguments["TAG"]) == ("2.8.0", "12.8", "torch2.8-cu128")
    assert arguments["TORCH_INDEX"] == "https://download.pytorch.org/whl/cu128"
    assert Path(values(devel, "--file")[0]).read_text().count("FROM") >= 2
    assert devel[-1] == str(ROOT)
    # The command stands before its output, also where that goes into a file.
    assert out.index("podman build") < out.index("STEP 1") < out.index("image: yoloyard:torch2.8-cu128-runtime")


def test_every_argument_is_one_that_the_dockerfile_has(machine: Machine) -> None:
    machine.install("buildah")
    assert machine.image("build", "cpu")[0] == 0
    (words,) = machine.builds()
    dockerfile = Path(values(words, "--file")[0]).read_text()
    for word in values(words, "--build-arg"):
        assert f"\nARG {word.split('=')[0]}" in dockerfile


def test_mirrors_base_and_words_for_the_engine(machine: Machine) -> None:
    machine.install("docker")
    mirrors = ["--pip-index", "https://pip.example/simple", "--apt-mirror", "http://apt.example", "--torch-index", ""]
    own = ["--base-image", "ubuntu@sha256:123", "--build-option=--network=host", "--build-option=--no-cache"]
    code, _, err = machine.image("build", "cpu", *mirrors, *own, YOLOYARD_IMAGE="registry.example/team/yard")
    assert code == 0, err
    (words,) = machine.builds()
    assert words[0] == "docker"
    assert "--format" not in words  # docker doesn't know it
    assert values(words, "--tag") == ["registry.example/team/yard:cpu"]
    expected = {"PIP_INDEX=https://pip.example/simple", "APT_MIRROR=http://apt.example", "TORCH_INDEX="}
    assert expected | {"BASE_IMAGE=ubuntu@sha256:123"} <= {*values(words, "--build-arg")}
    assert words[-3:] == ["--network=host", "--no-cache", str(ROOT)]


def test_a_mirrors_password_is_refused(machine: Machine) -> None:
    machine.install("podman")
    code, _, err = machine.image("build", "cpu", "--engine", "podman", "--pip-index", "https://me:word@pypi.example.cn")
    assert code == 2
    assert "word@" not in err
    assert "would be kept in the image" in err


def test_the_first_engine_that_answers_is_taken(machine: Machine) -> None:
    machine.install("docker", "podman", "buildah")
    assert machine.image("build", "cpu", SILENT="docker")[0] == 0
    assert machine.image("build", "cpu", "--engine", "buildah")[0] == 0
    assert [words[0] for words in machine.builds()] == ["podman", "buildah"]


def test_without_an_engine_that_answers_the_reason_is_given(machine: Machine) -> None:
    code, _, err = machine.image("build", "cpu")
    assert (code, err.count("\n")) == (1, 1)
    assert "no docker or podman or buildah found: install" in err
    machine.install("docker")
    code, _, err = machine.image("build", "cpu", SILENT="docker")
    assert (code, err.count("\n")) == (1, 1)
    assert "does not answer (Cannot connect to the Docker daemon" in err
    code, _, err = machine.image("build", "cpu", "--engine", "lxc")
    assert code == 2
    assert "docker, podman, buildah can" in err


def test_a_build_that_fails_ends_in_one_line(machine: Machine) -> None:
    machine.install("podman")
    code, _, err = machine.image("build", "cpu", "--stage", "both", BREAK="1")
    assert code == 1
    assert err.splitlines()[0] == "E: Unable to locate package"  # the engine's own words
    assert err.splitlines()[1:] == ["yoloyard: the build failed (status 1); the reason stands above"]
    assert len(machine.builds()) == 1


def test_ctrl_c_lets_the_engine_clean_up(machine: Machine) -> None:
    machine.install("podman")
    with not_ignored(signal.SIGINT):
        process = machine.start("build", "cpu", WAIT="1")
    while not (machine.folder / "building").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == "yoloyard: stopped"
    assert (machine.folder / "cleaned_up").exists()


def test_a_package_outside_of_a_clone_says_to_clone(machine: Machine, tmp_path: Path) -> None:
    machine.install("podman")
    site = tmp_path / "site"
    shutil.copytree(ROOT / "src", site, ignore=shutil.ignore_patterns("__pycache__"))
    code, _, err = machine.image("build", "cpu", PYTHONPATH=str(site))
    assert code == 1
    assert "clone it" in err


def test_list_says_what_is_built_here_and_works_without_an_engine(machine: Machine) -> None:
    code, out, err = machine.image("list")
    assert code == 0, err
    assert "torch2.15-cu132" in out
    assert "no engine" in out
    machine.install("podman")
    _, out, _ = machine.image("list", BUILT="yoloyard:cpu yoloyard:cpu-runtime")
    assert [line for line in out.splitlines() if "devel, runtime" in line and "cpu" in line]
    assert out.count("devel") == 1


def test_show_gives_sources_and_json(machine: Machine) -> None:
    _, out, _ = machine.image("show", "pytorch-cuda-v2.8")
    assert "525.60.13   (minor version compatibility" in out
    _, out, _ = machine.image("show", "torch2.8-cu128", "--json")
    facts = json.loads(out)
    assert facts["architectures"][0] == "sm_70"
    assert facts["sources"]["architectures"]
    assert facts["images"][0] == "yoloyard:torch2.8-cu128"
    code, _, err = machine.image("show", "torch2.8-cu12")
    assert code == 2
    assert "did you mean torch2.8-cu12" in err
