"""Do the packages fit together, the machine and the libraries around them? Judges what `environment.packages` found."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from yoloyard.common.errors import UserError
from yoloyard.machines.doctor.finding import Finding, Verdict
from yoloyard.machines.environment.inventory import normal_name
from yoloyard.machines.image.versions import number

WHEELS = "https://download.pytorch.org/whl"
OPENCV = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
SYSTEM_LIBRARIES = {"libGL.so": "libgl1", "libgthread": "libglib2.0-0", "libglib": "libglib2.0-0"}  # Debian's packages
DISTRIBUTIONS = {"cv2": "opencv-python-headless"}  # that modules come from
COMPILED_FOR_1 = (  # what is said where a module was compiled for NumPy 1 and meets NumPy 2
    "compiled using NumPy 1.x",
    "_ARRAY_API not found",
    "Numpy is not available",
    "Expected 96 from C header, got 88",
)
COMPILED_FOR_NEWER = ("module compiled against ABI version", "Expected 88 from C header, got 96", "numpy._core")


def check(facts: dict[str, Any]) -> list[Finding]:
    """`facts`: those of the whole round; of them `packages`, and `nvml` for what the machine has."""
    packages = facts["packages"]
    if packages["error"]:
        return [Finding("packages", "Packages", "problem", packages["error"], "name another Python: --python PATH")]
    findings = [
        _torch(packages, facts["nvml"]),
        *_torchvision(packages),
        *_opencv(packages),
        _numpy(packages),
        *_other_imports(packages),
        *_library_path(packages),
        *_twice(packages),
        *_half_removed(packages),
        *_shadowed(packages),
        *_requirements(packages),
    ]
    return [finding for finding in findings if finding is not None]


def _requirements(packages: dict[str, Any]) -> list[Finding]:
    try:
        from yoloyard.machines.doctor import requirements
    except ImportError as error:
        remedy = f"{sys.executable} -m pip install packaging"
        return [Finding("requirements", "Versions that packages ask for", "skipped", str(error), remedy)]
    return requirements.check(packages, _pip(packages))


def installed(packages: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The distribution that counts: the first on sys.path."""
    return next((row for row in packages["distributions"] if row["name"] == name), None)


def _pip(packages: dict[str, Any]) -> str:
    return f"{shlex.quote(packages['executable'])} -m pip"


def _code_version(packages: dict[str, Any], module: str) -> str:
    """What the code that is imported says of itself, local part included: "2.8.0+cu128"; else the metadata's word."""
    places = packages["modules"][module]
    stated = places[0]["constants"].get("__version__", "") if places else ""
    distribution = installed(packages, module)
    return stated or (distribution["version"] if distribution else "")


def _local(version: str) -> str:
    return version.partition("+")[2]


def _torch(packages: dict[str, Any], nvml: dict[str, Any]) -> Finding:
    title, torch, pip = "torch", packages["imports"]["torch"], _pip(packages)
    version = _code_version(packages, "torch")
    if not packages["modules"]["torch"]:
        remedy = f"{pip} install {'--force-reinstall ' if installed(packages, 'torch') else ''}torch"
        return Finding("torch-import", title, "problem", f"not installed for {packages['executable']}", remedy)
    if torch["error"] and not _abi(torch):
        remedy = f"{pip} install --force-reinstall {_wanted(packages, 'torch')}{_index(version)}"
        return Finding("torch-import", title, "problem", f"torch {version} can't be used: {_short(torch)}", remedy)
    gpus = [gpu for gpu in nvml["gpus"] if not gpu["error"]]
    constants = packages["modules"]["torch"][0]["constants"]
    if gpus and constants.get("cuda") in (None, "None") and constants.get("hip") in (None, "None"):
        evidence = f"torch {version} was built without CUDA; this machine has {len(gpus)} x {gpus[0]['name']}"
        return Finding("torch-cpu-only", title, "problem", evidence, _cuda_wheel(packages, nvml, gpus))
    runtime = f", cuDNN {torch.get('cudnn')}, NCCL {_dotted(torch.get('nccl'))}" if torch.get("cuda") else ""
    evidence = f"torch {version} for Python {packages['version']}, CUDA {torch.get('cuda') or 'none'}{runtime}"
    return Finding("torch-import", title, "ok", evidence)


def _cuda_wheel(packages: dict[str, Any], nvml: dict[str, Any], gpus: list[dict[str, Any]]) -> str:
    from yoloyard.machines.image.versions import best_tag

    try:
        tag = best_tag(nvml["driver"], [gpu["capability"] for gpu in gpus if gpu["capability"]])
    except UserError as error:
        return str(error)
    index = f" --index-url {tag.index}" if tag.index else ""
    return f"{_pip(packages)} install --force-reinstall torch=={tag.torch}{index}, or the image {tag.name}"


def _dotted(version: list[int] | None) -> str:
    return ".".join(map(str, version)) if version else "none"


def _wanted(packages: dict[str, Any], name: str) -> str:
    distribution = installed(packages, name)
    return f"{name}=={distribution['version']}" if distribution and distribution["version"] else name


def _index(version: str) -> str:
    """The option that names the wheel index of a local version such as +cu128; none for what PyPI has."""
    local = _local(version)
    return f" --index-url {WHEELS}/{local}" if re.fullmatch(r"cpu|cu\d+|rocm[\d.]+", local) else ""


def _torchvision(packages: dict[str, Any]) -> list[Finding]:
    """yoloyard needs no torchvision; who has one wants it for something else, and it must be torch's own build."""
    title, torch, vision = "torchvision and torch", _code_version(packages, "torch"), packages["modules"]["torchvision"]
    if not vision or not packages["modules"]["torch"]:
        return []
    version, attempt = _code_version(packages, "torchvision"), packages["imports"]["torchvision"]
    fitting = paired_torchvision(torch)
    remedy = (
        f"{_pip(packages)} install --force-reinstall --no-deps torchvision"
        f"{f'=={fitting}.*' if fitting else ''}{_index(torch)}"
    )
    evidence = f"torchvision {version} beside torch {torch}"
    builds = (_local(torch), _local(version))
    apart = "" if len(set(builds)) == 1 or not all(builds) else f"; builds {builds[1]} and {builds[0]}"
    if fitting and not version.startswith(fitting + "."):
        apart += f"; torchvision {fitting} is made for it"
    if attempt["error"] and not _abi(attempt) and not packages["imports"]["torch"]["error"]:
        evidence += f"{apart}; it can't be used: {_short(attempt)}"
        return [Finding("torchvision-build", title, "problem", evidence, remedy)]
    if apart:
        # Its operators for GPUs are those of its own build: a CPU build has none, another CUDA's may not load.
        verdict: Verdict = "problem" if len(set(builds)) > 1 and all(builds) else "warning"
        return [Finding("torchvision-build", title, verdict, evidence + apart, remedy)]
    return [Finding("torchvision-build", title, "ok", evidence)]


def paired_torchvision(torch: str) -> str | None:
    """ "0.23" for torch "2.8.0+cu128": both count alike since 2.0 and 0.15 (torchvision's README)."""
    match = re.match(r"2\.(\d+)", torch)
    return f"0.{int(match[1]) + 15}" if match else None


def _opencv(packages: dict[str, Any]) -> list[Finding]:
    title, pip, attempt = "OpenCV", _pip(packages), packages["imports"]["cv2"]
    kinds = [row for row in packages["distributions"] if row["name"] in OPENCV]
    names = list(dict.fromkeys(row["name"] for row in kinds))
    again = f"{pip} install --force-reinstall --no-deps opencv-python-headless"
    if names:
        again = f"{pip} uninstall -y {' '.join(names)} && {again}"
    if len(names) > 1:
        constants = packages["modules"]["cv2"][0]["constants"] if packages["modules"]["cv2"] else {}
        lies = constants.get("opencv_version", "a version unknown" if packages["modules"]["cv2"] else "none at all")
        if "headless" in constants:
            lies += " without windows (headless)" if constants["headless"] == "True" else " with windows"
        corrupt = [f"{row['name']} {row['version']}" for row in kinds if _spoilt(row)]
        named = " and ".join(f"{row['name']} {row['version']}" for row in kinds)
        evidence = f"{named} share the folder cv2; there is {lies}"
        evidence += f"; files of {' and '.join(corrupt)} are overwritten or missing" if corrupt else ""
        evidence += f"; it can't be used: {_short(attempt)}" if attempt["error"] else ""
        verdict: Verdict = "problem" if attempt["error"] else "warning"
        return [Finding("opencv-several", title, verdict, evidence, again)]
    if not packages["modules"]["cv2"]:
        evidence = f"{names[0]} is installed, but its folder cv2 is not there" if names else "not installed"
        return [Finding("opencv-import", title, "problem", evidence, again)]
    version = f"{kinds[0]['name']} {kinds[0]['version']}" if kinds else "OpenCV that pip has not installed"
    if not attempt["error"]:
        return [Finding("opencv-import", title, "ok", version)]
    if _abi(attempt):
        return []
    if library := next((name for name in SYSTEM_LIBRARIES if name in attempt["error"]), None):
        evidence = f"{version} needs a library of the system that isn't there: {_short(attempt)}"
        remedy = f"{again} (needs no windows), or sudo apt-get install {SYSTEM_LIBRARIES[library]}"
        return [Finding("opencv-libgl", title, "problem", evidence, remedy)]
    return [Finding("opencv-import", title, "problem", f"{version} can't be used: {_short(attempt)}", again)]


def _spoilt(distribution: dict[str, Any]) -> bool:
    files = distribution["files"]
    return bool(files and (files["missing"] or files["changed"]))


def _numpy(packages: dict[str, Any]) -> Finding | None:
    """NumPy itself, and who was compiled for another one."""
    title, pip, numpy = "NumPy", _pip(packages), packages["imports"]["numpy"]
    version = numpy.get("version") or _wanted(packages, "numpy").removeprefix("numpy==")
    if numpy["error"]:
        remedy = f"{pip} install --force-reinstall 'numpy>=1.26'"
        return Finding("numpy-import", title, "problem", f"NumPy {version} can't be used: {_short(numpy)}", remedy)
    torn = {name: _abi(attempt) for name, attempt in packages["imports"].items() if _abi(attempt)}
    if not torn:
        return Finding("numpy-abi", title, "ok", f"NumPy {version}; what was imported is compiled for it")
    named = ", ".join(_called(packages, name) for name in torn)
    evidence = f'{named} was compiled for another NumPy than {version}: "{next(iter(torn.values()))}"'
    if version.startswith("1.") or any(sign in text for text in torn.values() for sign in COMPILED_FOR_NEWER):
        remedy = f"{pip} install --upgrade numpy"
    else:
        remedy = f"{pip} install 'numpy<2', or a newer one of what was compiled for NumPy 1"
    return Finding("numpy-abi", title, "problem", evidence, remedy)


def _called(packages: dict[str, Any], module: str) -> str:
    names = OPENCV if module == "cv2" else (normal_name(module),)
    row = next((row for row in packages["distributions"] if row["name"] in names), None)
    return f"{row['name']} {row['version']}" if row else module


def _abi(attempt: dict[str, Any]) -> str:
    """The line by which a module says that it was compiled for another NumPy; empty if it doesn't."""
    lines = f"{attempt['error'] or ''}\n{attempt['said']}".splitlines()
    signs = COMPILED_FOR_1 + COMPILED_FOR_NEWER
    return next((line.strip() for line in lines for sign in signs if sign in line), "")


def _other_imports(packages: dict[str, Any]) -> list[Finding]:
    known = ("numpy", "cv2", "torch", "torchvision")
    found = []
    for name, attempt in packages["imports"].items():
        if name in known or not attempt["error"] or _abi(attempt):
            continue
        if name == "matplotlib" and packages["imports"]["numpy"]["error"]:
            continue  # it says nothing new
        distribution = DISTRIBUTIONS.get(name, name)
        remedy = f"{_pip(packages)} install --force-reinstall --no-deps {_wanted(packages, distribution)}"
        evidence = f"{_called(packages, name)} can't be used: {_short(attempt)}"
        found.append(Finding("package-import", distribution, "problem", evidence, remedy))
    return found


def _short(attempt: dict[str, Any]) -> str:
    """An error on one line, and the last of what was said besides where it is a crash."""
    text = " ".join(attempt["error"].split())
    said = attempt["said"].strip().splitlines() if "process" in text else []
    text += f" ({said[-1]})" if said else ""
    return text if len(text) < 300 else text[:140] + " ... " + text[-150:]


def _library_path(packages: dict[str, Any]) -> list[Finding]:
    """Libraries of CUDA in LD_LIBRARY_PATH that the loader may take before, or mix with, those of torch's wheels."""
    title, folders = "LD_LIBRARY_PATH and the libraries of torch", packages["libraries"]["path"]
    own = {_soname(path): path for path in packages["libraries"]["wheels"]}
    if not folders or not own:
        return []
    loaded = {os.path.realpath(path) for path in packages["imports"]["torch"].get("loaded", [])}
    rivals = {path: own[_soname(path)] for row in folders for path in row["files"] if _soname(path) in own}
    rivals = {path: wheel for path, wheel in rivals.items() if os.path.realpath(path) != os.path.realpath(wheel)}
    if not rivals:
        evidence = f"nothing in {':'.join(row['folder'] for row in folders)} stands in the way of torch's own libraries"
        return [Finding("library-path", title, "ok", evidence)]
    taken = [path for path in rivals if os.path.realpath(path) in loaded]
    bad = {str(Path(path).parent) for path in rivals}
    left = [row["folder"] for row in folders if str(Path(row["folder"])) not in bad]
    remedy = f"export LD_LIBRARY_PATH={shlex.quote(':'.join(left))}" if left else "unset LD_LIBRARY_PATH"
    shown = (taken or list(rivals))[0]
    what = f"torch loads {shown}" if taken else f"{shown} lies there, as does {rivals[shown]}"
    more = f" and {len(rivals) - 1} more" if len(rivals) > 1 else ""
    versions = (
        f"{_library_version(shown) or 'version unknown'}; the wheel's is {_wheel_version(packages, rivals[shown])}"
    )
    evidence = f"{what}{more} ({versions})"
    if packages["imports"]["torch"]["error"]:
        evidence += f"; torch can't be used: {_short(packages['imports']['torch'])}"
    # cuDNN loads its parts by name only when the first convolution runs, so one that wasn't loaded yet may come to be.
    split = any("libcudnn" in path for path in rivals)
    is_bad = taken or split or packages["imports"]["torch"]["error"]
    return [Finding("library-path", title, "problem" if is_bad else "warning", evidence, remedy)]


def _soname(path: str) -> str:
    """ "libcudnn_ops.so.9" of ".../libcudnn_ops.so.9.1.0": name and major version, by which loaders look."""
    match = re.match(r"(.+?\.so(?:\.\d+)?)", Path(path).name)
    return match[1] if match else Path(path).name


def _library_version(path: str) -> str | None:
    """By the file that links lead to, or by cuDNN's header beside it."""
    if match := re.search(r"\.so\.(\d+\.\d[\d.]*)$", os.path.realpath(path)):
        return match[1]
    for folder in (Path(path).parent, Path(path).parent.parent / "include"):
        header = folder / "cudnn_version.h"
        if "cudnn" in path and header.is_file():
            text = header.read_text(errors="replace")
            parts = [re.search(rf"#define CUDNN_{part}\s+(\d+)", text) for part in ("MAJOR", "MINOR", "PATCHLEVEL")]
            return ".".join(part[1] for part in parts if part)
    return None


def _wheel_version(packages: dict[str, Any], path: str) -> str:
    word = re.sub(r"^lib|_.*$|Lt$", "", Path(path).name.split(".")[0]).replace("cudart", "cuda-runtime")
    names = (row for row in packages["distributions"] if row["name"].startswith(f"nvidia-{word}"))
    return next((row["version"] for row in names), "unknown")


def _twice(packages: dict[str, Any]) -> list[Finding]:
    """Two metadata folders of one distribution in one place: an installation that was cut short."""
    found = []
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in packages["distributions"]:
        groups.setdefault((row["name"], row["folder"]), []).append(row)
    for (name, folder), rows in groups.items():
        if len(rows) < 2 or any(row["editable"] for row in rows):
            continue
        code = (packages["imports"].get(name, {}).get("version") or "").partition("+")[0]
        newest = max(rows, key=lambda row: (row["version"].partition("+")[0] == code, number(row["version"])))
        stale = " ".join(f"'{os.path.join(folder, row['info'])}'" for row in rows if row is not newest)
        evidence = f"{name} is there as {' and '.join(row['version'] for row in rows)} in {folder}"
        remedy = f"rm -r {stale} && {_pip(packages)} install --force-reinstall --no-deps {name}=={newest['version']}"
        found.append(Finding("package-twice", f"{name} is there once", "problem", evidence, remedy))
    return found


def _half_removed(packages: dict[str, Any]) -> list[Finding]:
    found = []
    if packages["leftovers"]:
        places = " ".join(f"'{path}'" for path in packages["leftovers"])
        evidence = f"pip was stopped while it removed or renewed something: {', '.join(packages['leftovers'])}"
        found.append(Finding("package-leftovers", "Leftovers of packages", "warning", evidence, f"rm -r {places}"))
    for row in packages["distributions"]:
        is_bare = row["files"] and row["files"]["without_init"]
        if row["name"] in OPENCV or (row["whole"] and not is_bare):
            continue
        missing = f"{row['files']['missing']} of {row['files']['listed']} files" if is_bare else "its METADATA"
        again = f"{row['name']}=={row['version']}" if row["version"] else row["name"]
        remedy = f"{_pip(packages)} install --force-reinstall --no-deps {again}"
        evidence = f"of {row['info']} in {row['folder']}, {missing} are missing"
        found.append(Finding("package-files", f"{row['name']} is whole", "problem", evidence, remedy))
    return found


def _shadowed(packages: dict[str, Any]) -> list[Finding]:
    """The same module in two places of sys.path: the first one wins, whatever pip says of the other."""
    found = []
    for name, places in packages["modules"].items():
        if len(places) < 2:
            continue
        winner, others = places[0]["folder"], [place["folder"] for place in places[1:]]
        versions = [_version_in(packages, name, place) for place in places]
        remedy = f"remove {winner} from sys.path, or {name} from it"
        if any(Path(entry).resolve() == Path(winner) for entry in packages["python_path"]):
            how, remedy = "PYTHONPATH puts it first", "unset PYTHONPATH"
        elif winner == packages["user_site"]:
            how = "the user's own packages come first"
            remedy = "export PYTHONNOUSERSITE=1"
        else:
            how = "it comes first on sys.path"
        evidence = f"{name} {versions[0]} of {winner} is used ({how}), not {versions[1]} of {others[0]}"
        differs = len(set(versions)) > 1
        verdict: Verdict = "problem" if differs and name in ("torch", "torchvision", "numpy") else "warning"
        found.append(Finding("package-shadowed", f"One {name} alone", verdict, evidence, remedy))
    return found


def _version_in(packages: dict[str, Any], module: str, place: dict[str, Any]) -> str:
    constants = place["constants"]
    names = OPENCV if module == "cv2" else (normal_name(module),)
    rows = (row for row in packages["distributions"] if row["folder"] == place["folder"] and row["name"] in names)
    stated = constants.get("opencv_version") or constants.get("__version__", "")
    return stated if stated[:1].isdigit() else next((row["version"] for row in rows), "of unknown version")
