"""The list of installed packages: their licences, what their wheels bundle, and the list as CycloneDX."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from commands import exit_code
from yoloyard.licences.packages import Package, installed
from yoloyard.licences.sbom import sbom

WHOLE_TEXT = "Permission is hereby granted,\n free of charge"
MIT_CLASSIFIER = "Classifier: License :: OSI Approved :: MIT License"


@pytest.fixture(scope="module")
def here() -> dict[str, Package]:
    """The packages of this environment."""
    return {package.name: package for package in installed()}


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Package]:
    """Installs a package with these lines of metadata and these files, alone, and gives what is found."""

    def install(*lines: str, **files: str) -> Package:
        info = tmp_path / "site" / "pack_age-1.0+cpu.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            "\n".join(["Metadata-Version: 2.4", "Name: pack_age", "Version: 1.0+cpu", *lines])
        )
        for name, content in files.items():
            (path := tmp_path / "site" / name).parent.mkdir(exist_ok=True)
            path.write_text(content)
        (info / "RECORD").write_text("".join(f'"{name}",,\n' for name in files))
        monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
        [package] = installed()
        return package

    return install


@pytest.mark.parametrize(
    ("lines", "licence"),
    [
        (["License-Expression: MIT AND Zlib", "License: other", MIT_CLASSIFIER], "MIT AND Zlib"),
        (["License: BSD", MIT_CLASSIFIER], "BSD"),
        ([f"License: {WHOLE_TEXT}", MIT_CLASSIFIER, "Classifier: License :: X :: Y"], "MIT License, Y"),
        (["License: UNKNOWN"], None),
        ([], None),
    ],
)
def test_the_licence_is_what_the_metadata_say(
    lines: list[str], licence: str | None, only: Callable[..., Package]
) -> None:
    assert only(*lines).licence == licence


def test_shared_libraries_are_told_from_modules(only: Callable[..., Package]) -> None:
    names = {
        "a/_core.cpython-311-x86_64-linux-gnu.so": "",
        "a/librt.cpython-311-x86_64-linux-gnu.so": "",
        "a/lib.py": "",
        "a.libs/libavcodec-c4204469.so.62.28.101": "",
        "a.libs/libssl-81259c47.so.1.1.1k": "",
        "a/libomp.dylib": "",
        "a/opencv_videoio_ffmpeg.dll": "",
    }
    found = only(**names)
    assert found.libraries == [
        "libavcodec-c4204469.so.62.28.101", "libomp.dylib", "libssl-81259c47.so.1.1.1k", "opencv_videoio_ffmpeg.dll",
    ]  # fmt: skip
    assert found.copyleft == ["libavcodec-c4204469.so.62.28.101: LGPL-2.1-or-later"]


def test_a_licence_file_that_names_a_gnu_licence_is_named(only: Callable[..., Package]) -> None:
    texts = {
        "a/LICENSE-3RD-PARTY.txt": "\n  GNU LESSER GENERAL PUBLIC LICENSE\n Version 3\nGPL-3.0-or-later WITH GCC-x.",
        "a/LICENSE": "compatible with the GNU General Public License, Version 2.0",  # as MPL 2.0 says
        "a/license.py": "GPL-3.0",
        "a/notes.txt": "GPL-3.0",
    }
    assert only("License: LGPLv3", **texts).copyleft == [
        "the package itself: LGPLv3",
        "LICENSE-3RD-PARTY.txt names GNU LESSER GENERAL PUBLIC LICENSE, GPL-3.0-or-later WITH GCC-x",
    ]


def test_what_is_only_left_of_a_package_is_none(only: Callable[..., Package], tmp_path: Path) -> None:
    (tmp_path / "site" / "~umpy-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "notes").mkdir()
    info = tmp_path / "site" / "pack_age-1.0+cpu.dist-info"
    assert only("License: MIT").name == "pack_age"
    (info / "RECORD").write_text("notes/LICENSE,,\n")  # which is not there any more
    [package] = installed()
    assert package.copyleft == []


def test_what_opencvs_wheel_bundles_is_named(here: dict[str, Package]) -> None:
    found = here["opencv-python-headless"]
    assert any(line.startswith("libavcodec-") and line.endswith(": LGPL-2.1-or-later") for line in found.copyleft)
    assert any("THIRD" in line.upper() or "3RD" in line for line in found.copyleft)
    assert here["yoloyard"].licence == "Apache-2.0"
    assert here["yoloyard"].copyleft == []


def test_the_list_is_valid_cyclonedx(here: dict[str, Package], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    document = sbom([*here.values(), Package("odd_one", "1.0+cpu", None, False, ["libx.so"], [])])
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(json.dumps(document)) is None
    assert validator.validate_str(json.dumps(document | {"components": [{"type": "wheel"}]})) is not None
    parts = {each["name"]: each for each in document["components"]}
    assert document["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"
    assert parts["odd_one"]["purl"] == "pkg:pypi/odd-one@1.0%2Bcpu"
    assert parts["numpy"]["licenses"][0].keys() == {"expression"}
    assert parts["pillow"]["components"]
    assert len({each["bom-ref"] for each in document["components"]}) == len(here) + 1


def test_equal_packages_give_equal_lists(here: dict[str, Package], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert sbom([*here.values()]) == sbom([*here.values()])
    assert sbom([here["torch"]])["serialNumber"] != sbom([here["numpy"]])["serialNumber"]


def test_the_command_lists_and_writes_them(
    only: Callable[..., Package], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only("License: GPLv2")
    assert exit_code("licence", "--environment") == 0
    assert capsys.readouterr().out == "pack_age 1.0+cpu: GPLv2\n    the package itself: GPLv2\n1 package\n"
    assert exit_code("licence", "--environment", "--sbom", tmp_path / "a.json", "--json") == 0
    [package] = json.loads(capsys.readouterr().out)["packages"]
    assert package["licence"] == "GPLv2"
    [component] = json.loads((tmp_path / "a.json").read_text())["components"]
    assert component["name"] == "pack_age"
    (tmp_path / "file").touch()
    assert exit_code("licence", "--environment", "--sbom", tmp_path / "file" / "a.json") == 1
    assert "file/a.json" in capsys.readouterr().err
