"""The matrix of images: true to itself, to what published wheels ask for, and right about which tag fits a machine."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from yoloyard.common.errors import UsageError, UserError
from yoloyard.machines.image.build import build_command
from yoloyard.machines.image.versions import CPU, TABLE, best_tag, code_for, find_tag, number, tags

ROOT = Path(__file__).parents[2]
WHEELS = {wheel["torch"]: wheel for wheel in json.loads((ROOT / "tests" / "data" / "torch_wheels.json").read_text())}
PYTORCH_3 = """
[tags."torch3.0-cu140"]
torch = "3.0.0"
cuda = "14.0"
cudnn = "10.1.0"
nccl = "3.0.1"
ubuntu = "26.04"
python = "3.14"
architectures = ["sm_90", "sm_100", "sm_120", "sm_130"]
driver = "620.10"
index = "https://download.pytorch.org/whl/cu140"
aliases = ["newest"]
sources = {architectures = "-", cudnn = "-", nccl = "-", driver = "-"}
"""


def pinned(wheel: dict[str, list[str]]) -> dict[str, str]:
    """What a wheel asks for: the versions of CUDA's runtime, cuDNN and NCCL."""
    found = {}
    for line in wheel["requires_dist"]:
        if match := re.match(
            r"(?:nvidia-)?(cuda-runtime|cuda-toolkit|cudnn|nccl)(?:-cu\d+)?(?:\[.*])?==([\d.]+)$", line
        ):
            found[match[1].replace("cuda-toolkit", "cuda").replace("cuda-runtime", "cuda")] = match[2]
    return found


def problems(table: Path = TABLE) -> list[str]:
    """What in the table contradicts itself."""
    found = tags(table)
    wrong = []
    words = [word for tag in found.values() for word in (tag.name, *tag.aliases)]
    wrong += [f"{word} names two tags" for word in sorted(set(words)) if words.count(word) > 1]
    if CPU not in found or found[CPU].cuda:
        wrong.append("there must be a tag cpu without CUDA")
    for tag in found.values():
        short = f"cu{tag.cuda.replace('.', '')}"
        has_cuda = [bool(tag.cuda), bool(tag.cudnn), bool(tag.nccl), bool(tag.driver), bool(tag.architectures)]
        if len(set(has_cuda)) > 1:
            wrong.append(f"{tag.name}: cuda, cudnn, nccl, driver and architectures belong together")
        if tag.cuda and tag.name != f"torch{'.'.join(tag.torch.split('.')[:2])}-{short}":
            wrong.append(f"{tag.name}: the name does not say torch {tag.torch} and CUDA {tag.cuda}")
        if tag.index and not tag.index.endswith(f"/{short if tag.cuda else CPU}"):
            wrong.append(f"{tag.name}: the index {tag.index} is not that of its CUDA")
        bad = [word for word in tag.architectures if not re.fullmatch(r"sm_\d{2,3}", word)]
        if bad or list(tag.architectures) != sorted(tag.architectures, key=number):
            wrong.append(f"{tag.name}: architectures must be like sm_86 and in order")
        needed = {"architectures", "cudnn", "nccl", "driver"} if tag.cuda else {"torch"}
        if missing := needed - tag.sources.keys():
            wrong.append(f"{tag.name}: no source for {', '.join(sorted(missing))}")
    return wrong


def test_the_table_does_not_contradict_itself() -> None:
    assert problems() == []
    with_cuda = [tag for tag in tags().values() if tag.cuda]
    for tag in with_cuda:
        assert tag.driver == next(one.driver for one in with_cuda if one.cuda[:2] == tag.cuda[:2])  # minor versions
        assert number(tag.cuda) < (13,) or "sm_70" not in tag.architectures  # CUDA 13 compiles for Turing and newer


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('cudnn = "9.26.0"', 'cudnn = ""', "belong together"),
        ('cuda = "13.2"', 'cuda = "13.1"', "name does not say"),
        ("/whl/cu126", "/whl/cu128", "not that of its CUDA"),
        ('aliases = ["pytorch-cuda-v2.8"]', 'aliases = ["cpu"]', "cpu names two tags"),
        ('["sm_70", ', '["volta", ', "like sm_86"),
        ("[tags.cpu", "[tags.none", "must be a tag cpu"),
        ('nccl = "as cudnn"\n', "", "no source for nccl"),
    ],
)
def test_a_slip_in_the_table_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = TABLE.read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "versions.toml").write_text(text.replace(old, new), encoding="utf-8")
    assert any(said in line for line in problems(tmp_path / "versions.toml"))


def test_an_entry_without_a_field_is_named(tmp_path: Path) -> None:
    table = tmp_path / "versions.toml"
    table.write_text('[tags.mine]\ntorch = "2.8.0"\nspeed = "high"\n')
    with pytest.raises(UserError, match=r"mine lacks or should not have: .*cuda.*speed"):
        tags(table)


@pytest.mark.parametrize("name", ["torch2.8-cu128", "torch2.15-cu132"])
def test_the_versions_are_those_that_the_wheel_on_pypi_asks_for(name: str) -> None:
    tag = tags()[name]
    asked = pinned(WHEELS[tag.torch])
    assert asked["cuda"].startswith(f"{tag.cuda}.")
    assert asked["cudnn"].startswith(f"{tag.cudnn}.")
    assert asked["nccl"] == tag.nccl


def test_pythons_that_the_wheels_support() -> None:
    checked = [tag for tag in tags().values() if tag.torch in WHEELS]
    assert len(checked) >= 4
    for tag in checked:
        assert tag.python in WHEELS[tag.torch]["python"]


def test_the_wheel_that_is_installed_here_agrees_with_its_tag() -> None:
    """Where the tests run with a build for CUDA, it is asked itself."""
    import torch

    release, _, build = torch.__version__.partition("+")
    mine = [tag for tag in tags().values() if tag.torch == release and f"cu{tag.cuda.replace('.', '')}" == build]
    if not mine:
        pytest.skip(f"torch {torch.__version__} is in no tag with CUDA")
    # What torch.cuda.get_arch_list() gives where there is a GPU; PTX (compute_120) is not counted on.
    compiled = [name for name in (torch._C._cuda_getArchFlags() or "").split() if name.startswith("sm_")]
    assert sorted(compiled, key=number) == list(mine[0].architectures)
    assert torch.version.cuda == mine[0].cuda
    assert str(torch.backends.cudnn.version()) == "".join(f"{part:02d}" for part in number(mine[0].cudnn)).lstrip("0")


V100, P100, T4, A100, RTX_3090, L4 = "7.0", "6.0", "7.5", "8.0", "8.6", "8.9"
H100, B200, RTX_5090 = "9.0", "10.0", "12.0"


@pytest.mark.parametrize(
    ("driver", "gpus", "expected"),
    [
        *(("580.95.05", [gpu], "torch2.15-cu132") for gpu in (T4, A100, RTX_3090, L4, H100, B200, RTX_5090)),
        *(("570.26", [gpu], "torch2.8-cu128") for gpu in (T4, A100, RTX_3090, L4, H100, B200, RTX_5090)),
        ("580.65.06", [H100], "torch2.15-cu132"),
        ("580.65.05", [H100], "torch2.8-cu128"),
        ("535.183.01", [A100], "torch2.8-cu128"),  # CUDA 12.2 by its own, and by minor version compatibility 12.8
        ("525.60.13", [A100], "torch2.8-cu128"),
        ("590.44", [V100], "torch2.8-cu128"),  # CUDA 13 has no Volta, however new the driver
        ("590.44", [V100, H100], "torch2.8-cu128"),
        ("590.44", [P100], "torch2.8-cu126"),
        ("590.44", [P100, H100], "torch2.8-cu126"),
        ("590.44", ["6.1"], "torch2.8-cu126"),
        ("590.44", [RTX_3090, L4, H100], "torch2.15-cu132"),
        ("590.44", [], "cpu"),
        (None, [], "cpu"),
    ],
)
def test_the_newest_tag_that_fits_driver_and_all_gpus(driver: str | None, gpus: list[str], expected: str) -> None:
    assert best_tag(driver, gpus).name == expected


def test_volta_runs_with_the_older_cuda_too() -> None:
    assert code_for(V100, find_tag("torch2.8-cu126").architectures) == "binary"


def test_where_no_tag_fits_the_reason_is_given() -> None:
    with pytest.raises(UserError, match=r"driver 470\.256\.02 is too old .* update it on the host to 525\.60\.13"):
        best_tag("470.256.02", [A100])
    with pytest.raises(UserError, match=r"no tag has code for all GPUs .*3\.7"):
        best_tag("590.44", ["3.7"])
    with pytest.raises(UserError, match=r"6\.0, 12\.0|12\.0, 6\.0"):
        best_tag("590.44", [P100, RTX_5090])


def test_code_runs_on_higher_minor_versions_of_its_major_alone() -> None:
    gpus = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "12.0")
    assert [gpu for gpu in gpus if code_for(gpu, ("sm_86", "sm_100"))] == ["8.6", "8.9", "10.0", "10.3"]


def test_a_tag_is_found_by_its_alias_and_a_slip_by_what_is_near() -> None:
    assert find_tag("pytorch-cuda-v2.8").name == "torch2.8-cu128"
    with pytest.raises(UsageError, match=r"did you mean torch2\.9-cu130\?"):
        find_tag("torch2.9-cu13")


def test_another_pytorch_is_one_entry_of_the_table(tmp_path: Path) -> None:
    """It is chosen, found by its alias, listed and built; no line of code knows of it."""
    table = tmp_path / "versions.toml"
    table.write_text(TABLE.read_text(encoding="utf-8") + PYTORCH_3, encoding="utf-8")
    assert problems(table) == []
    assert best_tag("620.10", ["13.0", H100], table).name == "torch3.0-cu140"
    assert best_tag("610.10", [H100], table).name == "torch2.15-cu132"
    tag = find_tag("newest", table)
    command = build_command("podman", ROOT, tag, "devel")
    assert {"TORCH=3.0.0", "CUDA=14.0", "BASE_IMAGE=ubuntu:26.04", f"TORCH_INDEX={tag.index}"} <= {*command}
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(table, tmp_path / "src" / "yoloyard" / "docker")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "COLUMNS": "80"}
    words = [sys.executable, "-m", "yoloyard", "image", "list"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert "torch3.0-cu140" in done.stdout
    assert "= newest" in done.stdout


def test_the_table_of_the_docs_is_that_of_the_tags() -> None:
    page = (ROOT / "docs" / "images.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \|(.+)\|$", page, re.MULTILINE)
    expected = [
        (tag.name, f" {tag.torch} | {tag.cuda or '-'} | {' '.join(tag.architectures) or '-'} | {tag.driver or '-'} ")
        for tag in tags().values()
    ]
    assert rows == expected
    assert all(f"`{alias}`" in page for tag in tags().values() for alias in tag.aliases)
