"""A program that imports modules one after the other, uses each a little, and prints a line of JSON for each.

It runs in any Python. A module may print, raise or crash: `packages.py` reads the lines and goes on after a crash.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import tempfile
from typing import Any


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
            paths = re.findall(r"(/\S*/lib(?:cudnn|cublas|nccl|cudart)\S*)$", file.read(), re.MULTILINE)
        facts["loaded"] = sorted(set(paths))
    return facts


def built(torch: Any) -> dict[str, Any]:
    """What the wheel of torch was built for. torch.cuda.get_arch_list() is empty without a GPU."""
    flags = getattr(getattr(torch, "_C", None), "_cuda_getArchFlags", None)
    architectures = ((flags and flags()) or "").split()
    return {"version": torch.__version__, "cuda": torch.version.cuda, "architectures": architectures}


def attempt(name: str) -> dict[str, Any]:
    """The module's version and file, and the error; `said` is what it wrote to standard error, C code included."""
    found: dict[str, Any] = {"error": None}
    with tempfile.TemporaryFile() as said:
        kept = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            module = importlib.import_module(name)
            found.update(version=getattr(module, "__version__", None), file=getattr(module, "__file__", None))
            if name == "torch":
                found["built"] = built(module)
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
    sys.path[:] = [entry for entry in sys.path if entry]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what modules print is no answer
    for each in sys.argv[1:]:
        answers.write(json.dumps({"probe": each}) + "\n")
        answers.flush()
        answers.write(json.dumps({"probe": each, **attempt(each)}) + "\n")
        answers.flush()
