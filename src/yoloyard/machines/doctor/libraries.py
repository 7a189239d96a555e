"""CUDA libraries in LD_LIBRARY_PATH that the loader may take in place of those of torch's wheels, or mix with them."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

from yoloyard.machines.doctor.finding import Finding

TITLE = "LD_LIBRARY_PATH and the libraries of torch"


def check(packages: dict[str, Any]) -> list[Finding]:
    """`packages` as `environment.packages.gather` found them."""
    folders, torch = packages["libraries"]["path"], packages["imports"]["torch"]
    own = {_soname(path): path for path in packages["libraries"]["wheels"]}
    if not folders or not own:
        return []
    rivals = {path: own[_soname(path)] for row in folders for path in row["files"] if _soname(path) in own}
    rivals = {path: wheel for path, wheel in rivals.items() if os.path.realpath(path) != os.path.realpath(wheel)}
    if not rivals:
        evidence = f"nothing in {':'.join(row['folder'] for row in folders)} stands in the way of torch's own libraries"
        return [Finding("library-path", TITLE, "ok", evidence)]
    loaded = {os.path.realpath(path) for path in torch.get("loaded", [])}
    taken = [path for path in rivals if os.path.realpath(path) in loaded]
    bad = {str(Path(path).parent) for path in rivals}
    left = [row["folder"] for row in folders if str(Path(row["folder"])) not in bad]
    remedy = f"export LD_LIBRARY_PATH={shlex.quote(':'.join(left))}" if left else "unset LD_LIBRARY_PATH"
    shown = (taken or list(rivals))[0]
    evidence = f"torch loads {shown}" if taken else f"both {shown} and {rivals[shown]} are there"
    evidence += f" and {len(rivals) - 1} more" if len(rivals) > 1 else ""
    wheel = _wheel_version(packages, rivals[shown])
    evidence += f" ({_library_version(shown) or 'version unknown'}; the wheel's is {wheel})"
    if torch["error"]:
        evidence += f"; torch can't be used: {' '.join(torch['error'].split())[:300]}"
    # cuDNN loads its parts by name only when the first convolution runs: one that isn't loaded yet may be loaded then.
    is_split = any("libcudnn" in path for path in rivals)
    return [
        Finding(
            "library-path", TITLE, "problem" if taken or is_split or torch["error"] else "warning", evidence, remedy
        )
    ]


def _soname(path: str) -> str:
    """ "libcudnn_ops.so.9" of ".../libcudnn_ops.so.9.1.0": name and major version, by which loaders look."""
    match = re.match(r"(.+?\.so(?:\.\d+)?)", Path(path).name)
    return match[1] if match else Path(path).name


def _library_version(path: str) -> str | None:
    """The version in the name of the file that links lead to, or in cuDNN's header beside it."""
    if match := re.search(r"\.so\.(\d+\.\d[\d.]*)$", os.path.realpath(path)):
        return match[1]
    for folder in (Path(path).parent, Path(path).parent.parent / "include"):
        header = folder / "cudnn_version.h"
        if "cudnn" in path and header.is_file():
            text = header.read_text(errors="replace")
            return ".".join(re.findall(r"#define CUDNN_(?:MAJOR|MINOR|PATCHLEVEL)\s+(\d+)", text))
    return None


def _wheel_version(packages: dict[str, Any], path: str) -> str:
    word = re.sub(r"^lib|_.*$|Lt$", "", Path(path).name.split(".")[0]).replace("cudart", "cuda-runtime")
    names = (row for row in packages["distributions"] if row["name"].startswith(f"nvidia-{word}"))
    return next((row["version"] for row in names), "unknown")
