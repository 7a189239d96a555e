"""Do the packages fit together, the machine, and the libraries around them? Judges facts of `environment.packages`."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

from yoloyard.common.errors import UserError
from yoloyard.machines.doctor import libraries, requirements
from yoloyard.machines.doctor.finding import Finding, Verdict
from yoloyard.machines.environment.inventory import normal_name
from yoloyard.machines.image.versions import best_tag, number

WHEELS = "https://download.pytorch.org/whl"
OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
SYSTEM_LIBRARIES = {"libGL.so": "libgl1", "libgthread": "libglib2.0-0", "libglib": "libglib2.0-0"}  # Debian's packages
# What a module prints that was compiled for NumPy 1 and meets NumPy 2, and one that was compiled for a newer NumPy.
COMPILED_FOR_1 = ("compiled using NumPy 1.x", "_ARRAY_API not found", "Numpy is not available",
                  "Expected 96 from C header, got 88")  # fmt: skip
COMPILED_FOR_NEWER = ("module compiled against ABI version", "Expected 88 from C header, got 96", "numpy._core")

Facts = dict[str, Any]


def check(facts: Facts) -> list[Finding]:
    """`facts`: those of the whole examination; of them `packages`, and `nvml` for the GPUs of the machine."""
    packages = facts["packages"]
    if packages["error"]:
        return [Finding("packages", "Packages", "problem", packages["error"], "name another Python: --python PATH")]
    return [
        _torch(packages, facts["nvml"]),
        *_torchvision(packages),
        *_opencv(packages),
        *_numpy(packages),
        *_other_imports(packages),
        *libraries.check(packages),
        *_twice(packages),
        *_half_removed(packages),
        *_shadowed(packages),
        *requirements.check(packages, _pip(packages)),
    ]


def _pip(packages: Facts) -> str:
    return f"{shlex.quote(packages['executable'])} -m pip"


def _reinstall(packages: Facts, wanted: str) -> str:
    return f"{_pip(packages)} install --force-reinstall --no-deps {wanted}"


def _installed(packages: Facts, *names: str) -> Facts | None:
    """The distribution of one of these names that counts: the first on sys.path."""
    return next((row for row in packages["distributions"] if row["name"] in names), None)


def _pinned(packages: Facts, name: str) -> str:
    """ "torch==2.8.0" where that is installed, else "torch"."""
    row = _installed(packages, name)
    return f"{name}=={row['version']}" if row and row["version"] else name


def _code_version(packages: Facts, module: str) -> str:
    """The version in the code that is imported, local part included ("2.8.0+cu128"), else that of the metadata."""
    places, row = packages["modules"][module], _installed(packages, module)
    return (places and places[0]["constants"].get("__version__")) or (row["version"] if row else "")


def _index(version: str) -> str:
    """The option that names the wheel index of a local version such as +cu128; none for what PyPI has."""
    local = version.partition("+")[2]
    return f" --index-url {WHEELS}/{local}" if re.fullmatch(r"cpu|cu\d+|rocm[\d.]+", local) else ""


def _torch(packages: Facts, nvml: Facts) -> Finding:
    title, torch, pip = "torch", packages["imports"]["torch"], _pip(packages)
    version = _code_version(packages, "torch")
    if not packages["modules"]["torch"]:
        remedy = f"{pip} install {'--force-reinstall ' if _installed(packages, 'torch') else ''}torch"
        return Finding("torch-import", title, "problem", f"not installed for {packages['executable']}", remedy)
    if torch["error"] and not _abi(torch):
        remedy = f"{pip} install --force-reinstall {_pinned(packages, 'torch')}{_index(version)}"
        return Finding("torch-import", title, "problem", f"torch {version} can't be used: {short(torch)}", remedy)
    gpus = [gpu for gpu in nvml["gpus"] if not gpu["error"]]
    constants = packages["modules"]["torch"][0]["constants"]
    if gpus and constants.get("cuda") in (None, "None") and constants.get("hip") in (None, "None"):
        evidence = f"torch {version} was built without CUDA; this machine has {len(gpus)} x {gpus[0]['name']}"
        try:
            tag = best_tag(nvml["driver"], [gpu["capability"] for gpu in gpus if gpu["capability"]])
            index = f" --index-url {tag.index}" if tag.index else ""
            remedy = f"{pip} install --force-reinstall torch=={tag.torch}{index}, or the image {tag.name}"
        except UserError as error:
            remedy = str(error)
        return Finding("torch-cpu-only", title, "problem", evidence, remedy)
    evidence = f"torch {version} for Python {packages['version']}, CUDA {torch.get('cuda') or 'none'}"
    if torch.get("cuda"):
        evidence += f", cuDNN {torch.get('cudnn')}, NCCL {'.'.join(map(str, torch.get('nccl') or ['none']))}"
    return Finding("torch-import", title, "ok", evidence)


def _torchvision(packages: Facts) -> list[Finding]:
    """yoloyard needs no torchvision. Where there is one, something else needs it, and it must be of torch's build."""
    torch, vision = _code_version(packages, "torch"), packages["modules"]["torchvision"]
    if not vision or not packages["modules"]["torch"]:
        return []
    version, attempt = _code_version(packages, "torchvision"), packages["imports"]["torchvision"]
    # torchvision 0.23 belongs to torch 2.8: both count alike since 2.0 and 0.15 (torchvision's README).
    match = re.match(r"2\.(\d+)", torch)
    fitting = f"0.{int(match[1]) + 15}" if match else None
    builds = {torch.partition("+")[2], version.partition("+")[2]}
    is_mixed = len(builds) == 2 and "" not in builds
    apart = f"; builds {version.partition('+')[2]} and {torch.partition('+')[2]}" if is_mixed else ""
    if fitting and not version.startswith(fitting + "."):
        apart += f"; torchvision {fitting} is made for it"
    evidence = f"torchvision {version} beside torch {torch}{apart}"
    verdict: Verdict = "ok"
    if attempt["error"] and not _abi(attempt) and not packages["imports"]["torch"]["error"]:
        evidence, verdict = f"{evidence}; it can't be used: {short(attempt)}", "problem"
    elif apart:
        # Its operators for GPUs are those of its own build: a CPU build has none, another CUDA's may not load.
        verdict = "problem" if is_mixed else "warning"
    remedy = _reinstall(packages, f"torchvision{f'=={fitting}.*' if fitting else ''}{_index(torch)}")
    return [Finding("torchvision-build", "torchvision and torch", verdict, evidence, "" if verdict == "ok" else remedy)]


def _opencv(packages: Facts) -> list[Finding]:
    title, attempt = "OpenCV", packages["imports"]["cv2"]
    modules, kinds = packages["modules"]["cv2"], [row for row in packages["distributions"] if row["name"] in OPENCV]
    names = list(dict.fromkeys(row["name"] for row in kinds))
    again = _reinstall(packages, "opencv-python-headless")
    if names:
        again = f"{_pip(packages)} uninstall -y {' '.join(names)} && {again}"
    if len(names) > 1:
        constants = modules[0]["constants"] if modules else {}
        there = constants.get("opencv_version", "a version unknown" if modules else "none at all")
        if "headless" in constants:
            there += " without windows (headless)" if constants["headless"] == "True" else " with windows"
        named = [f"{row['name']} {row['version']}" for row in kinds]
        evidence = f"{' and '.join(named)} share the folder cv2; there is {there}"
        corrupt = [name for name, row in zip(named, kinds, strict=True) if _is_corrupt(row)]
        evidence += f"; files of {' and '.join(corrupt)} are overwritten or missing" if corrupt else ""
        evidence += f"; it can't be used: {short(attempt)}" if attempt["error"] else ""
        return [Finding("opencv-several", title, "problem" if attempt["error"] else "warning", evidence, again)]
    if not modules:
        evidence = f"{names[0]} is installed, but its folder cv2 is not there" if names else "not installed"
        return [Finding("opencv-import", title, "problem", evidence, again)]
    version = f"{kinds[0]['name']} {kinds[0]['version']}" if kinds else "OpenCV that pip has not installed"
    if not attempt["error"]:
        return [Finding("opencv-import", title, "ok", version)]
    if _abi(attempt):
        return []
    if library := next((name for name in SYSTEM_LIBRARIES if name in attempt["error"]), None):
        evidence = f"{version} needs a library of the system that isn't there: {short(attempt)}"
        remedy = f"{again} (needs no windows), or sudo apt-get install {SYSTEM_LIBRARIES[library]}"
        return [Finding("opencv-libgl", title, "problem", evidence, remedy)]
    return [Finding("opencv-import", title, "problem", f"{version} can't be used: {short(attempt)}", again)]


def _is_corrupt(distribution: Facts) -> bool:
    files = distribution["files"]
    return bool(files and (files["missing"] or files["changed"]))


def _numpy(packages: Facts) -> list[Finding]:
    """NumPy itself, and the modules that were compiled for another one."""
    title, pip, numpy = "NumPy", _pip(packages), packages["imports"]["numpy"]
    version = numpy.get("version") or _pinned(packages, "numpy").removeprefix("numpy==")
    if numpy["error"]:
        remedy = f"{pip} install --force-reinstall 'numpy>=1.26'"
        return [Finding("numpy-import", title, "problem", f"NumPy {version} can't be used: {short(numpy)}", remedy)]
    torn = {name: line for name, attempt in packages["imports"].items() if (line := _abi(attempt))}
    if not torn:
        return [Finding("numpy-abi", title, "ok", f"NumPy {version}; what was imported is compiled for it")]
    named = ", ".join(_called(packages, name) for name in torn)
    evidence = f'{named} was compiled for another NumPy than {version}: "{next(iter(torn.values()))}"'
    is_old = version.startswith("1.") or any(sign in line for line in torn.values() for sign in COMPILED_FOR_NEWER)
    change = "--upgrade numpy" if is_old else "'numpy<2', or a newer one of what was compiled for NumPy 1"
    return [Finding("numpy-abi", title, "problem", evidence, f"{pip} install {change}")]


def _called(packages: Facts, module: str) -> str:
    row = _installed(packages, *(OPENCV if module == "cv2" else (normal_name(module),)))
    return f"{row['name']} {row['version']}" if row else module


def _abi(attempt: Facts) -> str:
    """The line by which a module says that it was compiled for another NumPy; empty if there is none."""
    lines = f"{attempt['error'] or ''}\n{attempt['said']}".splitlines()
    signs = COMPILED_FOR_1 + COMPILED_FOR_NEWER
    return next((line.strip() for line in lines if any(sign in line for sign in signs)), "")


def _other_imports(packages: Facts) -> list[Finding]:
    found = []
    for name, attempt in packages["imports"].items():
        if name in ("numpy", "cv2", "torch", "torchvision") or not attempt["error"] or _abi(attempt):
            continue
        if name == "matplotlib" and packages["imports"]["numpy"]["error"]:
            continue  # it says nothing new
        evidence = f"{_called(packages, name)} can't be used: {short(attempt)}"
        found.append(
            Finding("package-import", name, "problem", evidence, _reinstall(packages, _pinned(packages, name)))
        )
    return found


def short(attempt: Facts) -> str:
    """An error on one line of less than 300 characters."""
    text = " ".join(attempt["error"].split())
    return text if len(text) < 300 else text[:140] + " ... " + text[-150:]


def _twice(packages: Facts) -> list[Finding]:
    """Two metadata folders of one distribution in one place: an installation was interrupted."""
    found = []
    groups: dict[tuple[str, str], list[Facts]] = {}
    for row in packages["distributions"]:
        groups.setdefault((row["name"], row["folder"]), []).append(row)
    for (name, folder), rows in groups.items():
        if len(rows) < 2 or any(row["editable"] for row in rows):
            continue
        code = (packages["imports"].get(name, {}).get("version") or "").partition("+")[0]
        newest = max(rows, key=lambda row: (row["version"].partition("+")[0] == code, number(row["version"])))
        stale = " ".join(f"'{os.path.join(folder, row['info'])}'" for row in rows if row is not newest)
        evidence = f"{name} is there as {' and '.join(row['version'] for row in rows)} in {folder}"
        remedy = f"rm -r {stale} && " + _reinstall(packages, f"{name}=={newest['version']}")
        found.append(Finding("package-twice", f"{name} is there once", "problem", evidence, remedy))
    return found


def _half_removed(packages: Facts) -> list[Finding]:
    found = []
    if packages["leftovers"]:
        places = " ".join(f"'{path}'" for path in packages["leftovers"])
        evidence = f"pip was stopped while it removed or updated something: {', '.join(packages['leftovers'])}"
        found.append(Finding("package-leftovers", "Leftovers of packages", "warning", evidence, f"rm -r {places}"))
    for row in packages["distributions"]:
        is_bare = row["files"] and row["files"]["without_init"]
        if row["name"] in OPENCV or (row["whole"] and not is_bare):
            continue
        missing = f"{row['files']['missing']} of {row['files']['listed']} files" if is_bare else "its METADATA"
        evidence = f"of {row['info']} in {row['folder']}, {missing} are missing"
        remedy = _reinstall(packages, f"{row['name']}=={row['version']}" if row["version"] else row["name"])
        found.append(Finding("package-files", f"{row['name']} is whole", "problem", evidence, remedy))
    return found


def _shadowed(packages: Facts) -> list[Finding]:
    """The same module in two places of sys.path: the first one is used, whatever pip says about the other."""
    found = []
    for name, places in packages["modules"].items():
        if len(places) < 2:
            continue
        winner, other = places[0]["folder"], places[1]["folder"]
        versions = [_version_in(packages, name, place) for place in places]
        how, remedy = "it comes first on sys.path", f"remove {winner} from sys.path, or {name} from it"
        if any(Path(entry).resolve() == Path(winner) for entry in packages["python_path"]):
            how, remedy = "PYTHONPATH puts it first", "unset PYTHONPATH"
        elif winner == packages["user_site"]:
            how, remedy = "the user's own packages come first", "export PYTHONNOUSERSITE=1"
        evidence = f"{name} {versions[0]} of {winner} is used ({how}), not {versions[1]} of {other}"
        is_bad = len(set(versions)) > 1 and name in ("torch", "torchvision", "numpy")
        verdict: Verdict = "problem" if is_bad else "warning"
        found.append(Finding("package-shadowed", f"One {name} alone", verdict, evidence, remedy))
    return found


def _version_in(packages: Facts, module: str, place: Facts) -> str:
    constants = place["constants"]
    stated = constants.get("opencv_version") or constants.get("__version__", "")
    names = OPENCV if module == "cv2" else (normal_name(module),)
    rows = (row for row in packages["distributions"] if row["folder"] == place["folder"] and row["name"] in names)
    return stated if stated[:1].isdigit() else next((row["version"] for row in rows), "of unknown version")
