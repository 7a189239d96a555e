"""Do the packages fit together, the machine, and the libraries around them? Judges facts of `environment.packages`."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yoloyard.common.errors import UserError
from yoloyard.machines.doctor import Finding, Verdict
from yoloyard.machines.environment.inventory import normal_name
from yoloyard.machines.image.versions import best_tag, number

WHEELS = "https://download.pytorch.org/whl"
OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
SYSTEM_LIBRARIES = {"libGL.so": "libgl1", "libgthread": "libglib2.0-0", "libglib": "libglib2.0-0"}  # Debian's packages
# What a module prints that was compiled for NumPy 1 and meets NumPy 2, and one that was compiled for a newer NumPy.
COMPILED_FOR_1 = ("compiled using NumPy 1.x", "_ARRAY_API not found", "Numpy is not available",
                  "Expected 96 from C header, got 88")  # fmt: skip
COMPILED_FOR_NEWER = ("module compiled against ABI version", "Expected 88 from C header, got 96", "numpy._core")
ROOTS = ("yoloyard", "torch", "torchvision")  # what they need, directly or not, must have the versions that it asks for
# A line of `pip check`.
UNMET = r"(\S+) \S+ (?:requires (\S+), which is not installed|has requirement (.+), but you have (\S+) (\S+))\."
MAX_SHOWN = 4

Facts = dict[str, Any]


def check(facts: Facts) -> list[Finding]:
    """`facts`: those of the whole examination; of them `packages`, and `nvml` for the GPUs of the machine."""
    packages = facts["packages"]
    if packages["error"]:
        return [Finding("packages", "Packages", "problem", packages["error"], "name another Python: --python PATH")]
    rest = (_torchvision, _opencv, _numpy, _other_imports, _libraries, _twice, _half_removed, _shadowed, _requirements)
    return [_torch(packages, facts["nvml"]), *(finding for judge in rest for finding in judge(packages))]


def _pip(packages: Facts) -> str:
    return f"{shlex.quote(packages['executable'])} -m pip"


def _reinstall(packages: Facts, wanted: str) -> str:
    return f"{_pip(packages)} install --force-reinstall --no-deps {wanted}"


def _installed(packages: Facts, *names: str, folder: str = "") -> Facts | None:
    """The distribution of one of these names that counts: the first on sys.path, or that in `folder`."""
    rows = (row for row in packages["distributions"] if not folder or row["folder"] == folder)
    return next((row for row in rows if row["name"] in names), None)


def _names(module: str) -> tuple[str, ...]:
    """The distributions that a module can be of."""
    return OPENCV if module == "cv2" else (normal_name(module),)


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
    # Its operators for GPUs are those of its own build: a CPU build has none, another CUDA's may not load.
    verdict: Verdict = "problem" if is_mixed else "warning" if apart else "ok"
    if attempt["error"] and not _abi(attempt) and not packages["imports"]["torch"]["error"]:
        evidence, verdict = f"{evidence}; it can't be used: {short(attempt)}", "problem"
    remedy = _reinstall(packages, f"torchvision{f'=={fitting}.*' if fitting else ''}{_index(torch)}")
    return [Finding("torchvision-build", "torchvision and torch", verdict, evidence, "" if verdict == "ok" else remedy)]


def _opencv(packages: Facts) -> list[Finding]:
    title, attempt = "OpenCV", packages["imports"]["cv2"]
    modules, kinds = packages["modules"]["cv2"], [row for row in packages["distributions"] if row["name"] in OPENCV]
    names = list(dict.fromkeys(row["name"] for row in kinds))
    removal = f"{_pip(packages)} uninstall -y {' '.join(names)} && " if names else ""
    again = removal + _reinstall(packages, "opencv-python-headless")
    if len(names) > 1:
        constants = modules[0]["constants"] if modules else {}
        there = constants.get("opencv_version", "a version unknown" if modules else "none at all")
        if "headless" in constants:
            there += " without windows (headless)" if constants["headless"] == "True" else " with windows"
        named = dict.fromkeys(f"{row['name']} {row['version']}" for row in kinds)
        evidence = f"{' and '.join(named)} share the folder cv2; there is {there}"
        damaged = [row for row in kinds if row["files"] and (row["files"]["missing"] or row["files"]["changed"])]
        corrupt = dict.fromkeys(f"{row['name']} {row['version']}" for row in damaged)
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
    row = _installed(packages, *_names(module))
    return f"{row['name']} {row['version']}" if row else module


def _abi(attempt: Facts) -> str:
    """The line by which a module says that it was compiled for another NumPy; empty if there is none."""
    lines = f"{attempt['error'] or ''}\n{attempt['said']}".splitlines()
    signs = COMPILED_FOR_1 + COMPILED_FOR_NEWER
    return next((line.strip() for line in lines if any(sign in line for sign in signs)), "")


def _other_imports(packages: Facts) -> Iterator[Finding]:
    judged = {"numpy", "cv2", "torch", "torchvision"}
    judged |= {"matplotlib"} if packages["imports"]["numpy"]["error"] else set()  # it says nothing new
    for name, attempt in packages["imports"].items():
        if name in judged or not attempt["error"] or _abi(attempt):
            continue
        evidence = f"{_called(packages, name)} can't be used: {short(attempt)}"
        remedy = _reinstall(packages, _pinned(packages, name))
        yield Finding("package-import", name, "problem", evidence, remedy)


def short(attempt: Facts) -> str:
    """An error on one line of less than 300 characters."""
    text = " ".join(attempt["error"].split())
    return text if len(text) < 300 else text[:140] + " ... " + text[-150:]


def _twice(packages: Facts) -> Iterator[Finding]:
    """Two metadata folders of one distribution in one place: an installation was interrupted."""
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
        yield Finding("package-twice", f"{name} is there once", "problem", evidence, remedy)


def _half_removed(packages: Facts) -> Iterator[Finding]:
    if packages["leftovers"]:
        places = " ".join(f"'{path}'" for path in packages["leftovers"])
        evidence = f"pip was stopped while it removed or updated something: {', '.join(packages['leftovers'])}"
        yield Finding("package-leftovers", "Leftovers of packages", "warning", evidence, f"rm -r {places}")
    for row in packages["distributions"]:
        is_bare = row["files"] and row["files"]["without_init"]
        if row["name"] in OPENCV or (row["whole"] and not is_bare):
            continue
        missing = f"{row['files']['missing']} of {row['files']['listed']} files" if is_bare else "its METADATA"
        evidence = f"of {row['info']} in {row['folder']}, {missing} are missing"
        remedy = _reinstall(packages, f"{row['name']}=={row['version']}" if row["version"] else row["name"])
        yield Finding("package-files", f"{row['name']} is whole", "problem", evidence, remedy)


def _shadowed(packages: Facts) -> Iterator[Finding]:
    """The same module in two places of sys.path: the first one is used, whatever pip says about the other."""
    for name, places in packages["modules"].items():
        if len(places) < 2:
            continue
        versions = []
        for place in places:
            stated = place["constants"].get("opencv_version") or place["constants"].get("__version__", "")
            row = _installed(packages, *_names(name), folder=place["folder"]) or {"version": "of unknown version"}
            versions.append(stated if stated[:1].isdigit() else row["version"])
        winner, other = places[0]["folder"], places[1]["folder"]
        how, remedy = "it comes first on sys.path", f"remove {winner} from sys.path, or {name} from it"
        if any(Path(entry).resolve() == Path(winner) for entry in packages["python_path"]):
            how, remedy = "PYTHONPATH puts it first", "unset PYTHONPATH"
        elif winner == packages["user_site"]:
            how, remedy = "the user's own packages come first", "export PYTHONNOUSERSITE=1"
        evidence = f"{name} {versions[0]} of {winner} is used ({how}), not {versions[1]} of {other}"
        is_bad = len(set(versions)) > 1 and name in ("torch", "torchvision", "numpy")
        title = f"One {name} alone"
        yield Finding("package-shadowed", title, "problem" if is_bad else "warning", evidence, remedy)


def _libraries(packages: Facts) -> list[Finding]:
    """CUDA libraries in LD_LIBRARY_PATH that the loader may take in place of those of torch's wheels, or mix in."""
    check, title = "library-path", "LD_LIBRARY_PATH and the libraries of torch"
    folders, torch = packages["libraries"]["path"], packages["imports"]["torch"]
    own = {_soname(path): path for path in packages["libraries"]["wheels"]}
    if not folders or not own:
        return []
    rivals = {path: own[_soname(path)] for row in folders for path in row["files"] if _soname(path) in own}
    rivals = {path: wheel for path, wheel in rivals.items() if os.path.realpath(path) != os.path.realpath(wheel)}
    if not rivals:
        evidence = f"nothing in {':'.join(row['folder'] for row in folders)} stands in the way of torch's own libraries"
        return [Finding(check, title, "ok", evidence)]
    loaded = {os.path.realpath(path) for path in torch.get("loaded", [])}
    taken = [path for path in rivals if os.path.realpath(path) in loaded]
    bad = {str(Path(path).parent) for path in rivals}
    left = [row["folder"] for row in folders if str(Path(row["folder"])) not in bad]
    remedy = f"export LD_LIBRARY_PATH={shlex.quote(':'.join(left))}" if left else "unset LD_LIBRARY_PATH"
    shown = (taken or list(rivals))[0]
    evidence = f"torch loads {shown}" if taken else f"both {shown} and {rivals[shown]} are there"
    evidence += f" and {len(rivals) - 1} more" if len(rivals) > 1 else ""
    word = re.sub(r"^lib|_.*$|Lt$", "", Path(rivals[shown]).name.split(".")[0]).replace("cudart", "cuda-runtime")
    names = (row for row in packages["distributions"] if row["name"].startswith(f"nvidia-{word}"))
    wheel = next((row["version"] for row in names), "unknown")
    evidence += f" ({_library_version(shown) or 'version unknown'}; the wheel's is {wheel})"
    if torch["error"]:
        evidence += f"; torch can't be used: {' '.join(torch['error'].split())[:300]}"
    # cuDNN loads its parts by name only when the first convolution runs: one that isn't loaded yet may be loaded then.
    is_bad = taken or torch["error"] or any("libcudnn" in path for path in rivals)
    return [Finding(check, title, "problem" if is_bad else "warning", evidence, remedy)]


def _soname(path: str) -> str:
    """ "libcudnn_ops.so.9" of ".../libcudnn_ops.so.9.1.0": name and major version, by which loaders look."""
    return re.sub(r"(\.so(\.\d+)?).*", r"\1", Path(path).name)


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


def _requirements(packages: Facts) -> list[Finding]:
    """Do packages have the versions that others ask for? `pip check` says so; this picks what matters for training."""
    title = "Versions that packages ask for"
    if error := packages["check"]["error"]:
        evidence = f"pip check can't be run: {error}"
        return [Finding("requirements", title, "skipped", evidence, f"{packages['executable']} -m ensurepip")]
    found, rows = [], _unmet(packages)
    for name, heading, of_cuda in (("cuda-wheels", "CUDA libraries of torch", True), ("requirements", title, False)):
        mine = [row for row in rows if bool(re.match(r"nvidia-|cuda-|triton$", row["name"])) == of_cuda]
        if not mine:
            continue
        shown = [f"{row['who']} asks for {row['wanted']}, {row['has']}" for row in mine]
        more = [f"and {len(shown) - MAX_SHOWN} more"] if len(shown) > MAX_SHOWN else []
        wanted = " ".join(dict.fromkeys(f"'{row['wanted']}'" for row in mine))
        is_bad = of_cuda or any(row["missing"] or row["who"].startswith("yoloyard ") for row in mine)
        remedy = f"{_pip(packages)} install {'--no-deps ' if of_cuda else ''}{wanted}"
        evidence = "; ".join(shown[:MAX_SHOWN] + more)
        found.append(Finding(name, heading, "problem" if is_bad else "warning", evidence, remedy))
    count = len({row["name"] for row in packages["distributions"]})
    evidence = f"what yoloyard and torch ask for is there ({count} packages are installed)"
    return found or [Finding("requirements", title, "ok", evidence)]


def _unmet(packages: Facts) -> list[Facts]:
    """Requirements that nothing and, after these, that another version fulfils, of `ROOTS` and what they stand on."""
    asked: dict[str, dict[str, str]] = {}  # by package, then by the name of what it asks for
    versions: dict[str, str] = {}
    for row in reversed(packages["distributions"]):  # the first on sys.path counts
        texts = [text.split(";")[0] for text in row["requires"] if not re.search(r"\bextra\s*==", text)]
        pairs = ((re.split(r"[^\w.-]", text)[0], re.sub(r"[ ()]", "", text)) for text in texts)
        asked[row["name"]] = {normal_name(name): text for name, text in pairs}
        versions[row["name"]] = row["version"]
    reached, todo = set(), list(ROOTS)
    while todo:
        if (name := todo.pop()) in asked and name not in reached:
            reached.add(name)
            todo += asked[name]
    rows = []
    for match in filter(None, (re.fullmatch(UNMET, line) for line in packages["check"]["lines"])):
        who, name = normal_name(match[1]), normal_name(match[2] or match[4])
        wanted, has = asked.get(who, {}).get(name, name), "which is not installed"
        if match[3]:
            wanted, has = match[3].split(";")[0].strip(), f"{match[5]} is installed"
        # torchvision has to fit torch, not the other way round: see `_torchvision`.
        if who in reached and (who, name) != ("torchvision", "torch"):
            asking = f"{who} {versions[who]}"
            rows.append({"who": asking, "name": name, "wanted": wanted, "has": has, "missing": not match[3]})
    return sorted(rows, key=lambda row: not row["missing"])
