"""The packages in the environment of a Python, read from their files; and what happens when they are imported.

`freeze` serves this process. As a program, this file prints the inventory of the Python that runs it as JSON, or
imports the modules that it is given, one after the other, and prints a line of JSON before and after each. They may
print, raise or crash. It imports only what the standard library of Python 3.8 has.
"""

from __future__ import annotations

import csv
import glob
import importlib
import json
import os
import re
import site
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

# Whose files are counted, and which modules are looked for along sys.path.
LOOKED_OVER = ("torch", "torchvision", "torchaudio", "numpy", "opencv-", "safetensors", "nvidia-")
MODULES = ("torch", "torchvision", "torchaudio", "numpy", "cv2", "safetensors")
CONSTANTS = ("__version__", "cuda", "hip", "opencv_version", "headless", "contrib")  # of a version.py
CUDA_LIBRARIES = ("libcudnn", "libcublas", "libnccl", "libcudart")


def normal_name(name: str) -> str:
    """A distribution's name as indexes compare it: `Jinja2` is `jinja2`, `a_b.c` is `a-b-c`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def freeze() -> list[str]:
    """`name==version` of everything installed, as Python sees it; editable ones end in ` (editable)`. Sorted.

    The names of the metadata folders say both, so that a run need not open them as it starts.
    """
    found: dict[str, str] = {}
    for place in [os.path.join(folder or ".", entry) for folder in sys.path for entry in _infos(folder or ".")]:
        name, _, version = os.path.splitext(os.path.basename(place))[0].partition("-")
        version = version.split("-py")[0]  # "name-1.0-py3.11.egg-info"; that of a source folder has no version
        editable = " (editable)" if _editable(place) else ""
        found.setdefault(normal_name(name), (f"=={version}" if version else "") + editable)
    return sorted(name + rest for name, rest in found.items())


def inventory() -> dict[str, Any]:
    """Interpreter, sys.path, distributions, leftovers of removed ones, modules and CUDA libraries by folder."""
    folders = list(dict.fromkeys(os.path.abspath(entry) for entry in sys.path if os.path.isdir(entry or ".")))
    return {
        "executable": sys.executable,
        "version": ".".join(map(str, sys.version_info[:3])),
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        "path": folders,
        "user_site": site.getusersitepackages() if site.ENABLE_USER_SITE else None,
        "python_path": _paths("PYTHONPATH"),
        "distributions": [row for folder in folders for row in _distributions(folder)],
        "leftovers": [os.path.join(folder, name) for folder in folders for name in names(folder) if name[:1] == "~"],
        "modules": {name: [row for folder in folders for row in _module(folder, name)] for name in MODULES},
        "libraries": {
            "wheels": [path for folder in folders for path in _libraries(os.path.join(folder, "nvidia", "*", "lib"))],
            "path": [{"folder": each, "files": _libraries(glob.escape(each))} for each in _paths("LD_LIBRARY_PATH")],
        },
    }


def _paths(variable: str) -> list[str]:
    return [entry for entry in os.environ.get(variable, "").split(os.pathsep) if entry]


def _distributions(folder: str) -> Iterator[dict[str, Any]]:
    for entry in _infos(folder):
        place = os.path.join(folder, entry)
        facts = metadata.PathDistribution(Path(place)).metadata
        name = normal_name((facts["Name"] if facts else None) or entry.split("-")[0])
        yield {
            "name": name,
            "version": (facts["Version"] if facts else None) or "",
            "folder": folder,
            "info": entry,
            "whole": os.path.isfile(os.path.join(place, "METADATA")) or entry.endswith(".egg-info"),
            "editable": _editable(place),
            "requires": (facts.get_all("Requires-Dist") or []) if facts else [],
            "files": _files(folder, place) if name.startswith(LOOKED_OVER) else None,
        }


def _files(folder: str, place: str) -> dict[str, Any] | None:
    """Of the code that RECORD lists: how many files there are, which are missing, which have another size."""
    rows = list(csv.reader(_read(os.path.join(place, "RECORD")).splitlines()))
    if not rows:
        return None
    code = [row for row in rows if len(row) == 3 and re.match(r"(?!\.\.|/).*(\.(py|so)$|\.so\.)", row[0])]
    missing, changed = [], []
    for path, _, listed_size in code:
        try:
            size = os.stat(os.path.join(folder, path)).st_size
        except OSError:
            missing.append(path)
            continue
        if listed_size and size != int(listed_size):
            changed.append(path)
    return {
        "listed": len(code),
        "missing": len(missing),
        "changed": len(changed),
        "without_init": [name for name in missing if name.count("/") == 1 and name.endswith("/__init__.py")],
        "examples": (missing + changed)[:3],
    }


def _editable(place: str) -> bool:
    return bool(re.search(r'"editable"\s*:\s*true', _read(os.path.join(place, "direct_url.json"))))


def _module(folder: str, name: str) -> list[dict[str, Any]]:
    """Whether the module is in this folder, with the constants of its version.py read as text."""
    place = os.path.join(folder, name)
    if not os.path.isfile(os.path.join(place, "__init__.py")) and not os.path.isfile(place + ".py"):
        return []
    text = _read(os.path.join(place, "version.py"))
    rows = re.findall(r"^(\w+)(?:\s*:[^=\n]+)?\s*=\s*['\"]?([^'\"\n]*)", text, re.MULTILINE)
    return [{"folder": folder, "constants": {name: value for name, value in rows if name in CONSTANTS}}]


def _libraries(folder: str) -> list[str]:
    return sorted(path for name in CUDA_LIBRARIES for path in glob.glob(os.path.join(folder, name + "*.so*")))


def _infos(folder: str) -> list[str]:
    """The metadata folders of distributions; pip renames those that it removes to ~name."""
    return [name for name in names(folder) if name.endswith((".dist-info", ".egg-info")) and name[:1] != "~"]


def _read(path: str) -> str:
    """The text of a file; empty if it is not there or may not be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def names(folder: str | Path) -> list[str]:
    """What is in a folder, sorted; nothing if it isn't there or may not be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def use(name: str, module: Any) -> dict[str, Any]:
    """Do with the module what training does first. Returns facts that it states about itself."""
    if name == "numpy":
        module.ones(3).sum()
    if name == "cv2":
        import numpy

        ok, encoded = module.imencode(".png", module.resize(numpy.zeros((4, 4, 3), numpy.uint8), (8, 8)))
        assert ok
        assert module.imdecode(encoded, 1).shape == (8, 8, 3)
    if name == "torchvision":
        import torch

        module.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([0.5]), 0.5)
    if name != "torch":
        return {}
    import numpy

    module.from_numpy(numpy.ones(3)) + 1
    facts = {"cuda": module.version.cuda, "hip": module.version.hip, "cudnn": module.backends.cudnn.version()}
    if module.version.cuda:
        facts["nccl"] = list(module.cuda.nccl.version()) if module.distributed.is_nccl_available() else None
        facts["devices"] = module.cuda.device_count() if module.cuda.is_available() else 0
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:  # the CUDA libraries in this process
            paths = re.findall(rf"(/\S*/(?:{'|'.join(CUDA_LIBRARIES)})\S*)$", file.read(), re.MULTILINE)
        facts["loaded"] = sorted(set(paths))
    return facts


def attempt(name: str) -> dict[str, Any]:
    """The module's version and file, and the error; `said` is what it wrote to standard error, C code included."""
    found: dict[str, Any] = {"error": None}
    with tempfile.TemporaryFile() as said:
        kept = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            module = importlib.import_module(name)
            found.update(version=getattr(module, "__version__", None), file=getattr(module, "__file__", None))
            if name == "torch":  # torch.cuda.get_arch_list() is empty without a GPU
                flags = getattr(getattr(module, "_C", None), "_cuda_getArchFlags", None)
                found["built"] = {"version": module.__version__, "cuda": module.version.cuda}
                found["built"]["architectures"] = ((flags and flags()) or "").split()
            found.update(use(name, module))
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is the answer
            found["error"] = f"{type(error).__name__}: {error}"
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        said.seek(0)
        found["said"] = said.read().decode(errors="replace")[-3000:]
    return found


if __name__ == "__main__":
    sys.path[:] = [entry for entry in sys.path if entry]  # not the folder that we happen to be in
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what modules print is no answer
    if not sys.argv[1:]:
        answers.write(json.dumps({"error": None, **inventory()}))
    for each in sys.argv[1:]:
        print(json.dumps({"probe": each}), file=answers, flush=True)
        print(json.dumps({"probe": each, **attempt(each)}), file=answers, flush=True)
