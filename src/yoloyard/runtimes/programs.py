"""Programs of torch: .pt2 files of `torch.export.save` and .torchscript files."""

import contextlib
import inspect
import json
import logging
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yoloyard.common.errors import UserError
from yoloyard.common.pixel_spec import PixelSpec
from yoloyard.runtimes.exported import Program, device_for

INERT_VARIABLE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
OBJECTS = ("custom_obj", "opaque_obj")  # in names of entries: pickles that torch would execute
# How sizes of batches and images are written, such as Mul(Integer(32), Symbol('s39', positive=True, integer=True)).
WORDS = "Add|CeilDiv|FloorDiv|Integer|Max|Min|Mod|Mul|Pow|Symbol|True|integer|nonnegative|positive"
SIZES = re.compile(rf"(\b({WORDS}|[su]?\d+)\b|['\s+*/(),=-])*")


def open_pt2(path: Path, device: str, document: Any) -> Program:
    """The program of a .pt2 file. Raises UserError if loading it would execute something else, and torch's errors."""
    chosen = device_for(path, device, ("cpu", "cuda"))
    with zipfile.ZipFile(path) as archive:
        names, sizes = archive.namelist(), list[str]()
        for name in names:
            if name.endswith(".json"):  # torch evaluates the expressions in it
                json.loads(archive.read(name), object_hook=lambda each: sizes.append(str(each.get("expr_str", ""))))
    if any(kind in name for name in names for kind in OBJECTS) or not all(map(SIZES.fullmatch, sizes)):
        raise UserError(f"{path} holds objects or expressions that would be executed: it is not loaded")
    with _inert():
        program = torch.export.load(path)
    if chosen.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, str(chosen))
    values = {each.name: each.meta.get("val") for each in program.graph.nodes if each.op == "placeholder"}
    sides = [values[name].shape for name in program.graph_signature.user_inputs]
    shapes = [[side if isinstance(side, int) else None for side in shape] for shape in sides]
    # Guards of torch 2.9 and later hold sizes of the example to be the only ones where the program takes all.
    known = inspect.signature(program.module).parameters
    network = program.module(**{"check_guards": False} if "check_guards" in known else {})
    return Program(shapes, (), network, chosen)


def open_torchscript(path: Path, device: str, document: Any) -> Program:
    """The program of a TorchScript file, on the CPU, which tracing has written into it.

    Raises UserError without a document, since nothing else says what the program takes, and torch's errors.
    """
    chosen = device_for(path, device, ("cpu",))
    if document is None:
        raise UserError(f"{path} has no metadata of yoloyard, and TorchScript doesn't say what it takes: use an .onnx")
    with warnings.catch_warnings(action="ignore"):  # torch calls the format deprecated
        network = torch.jit.load(path, map_location="cpu")

    def compute(images: Tensor) -> Any:
        # Optimised, it would be another program from the second call on, with other roundings.
        with torch.jit.optimized_execution(False):
            return network(images)

    shape = (None, PixelSpec.of(document).channels, *(document["file"]["shape"] or (None, None)))
    return Program([shape], (), compute, chosen)


@contextlib.contextmanager
def _inert() -> Iterator[None]:
    """While entered, torch unpickles nothing but tensors, and says what is wrong by errors alone."""
    before = os.environ.get(INERT_VARIABLE)
    os.environ[INERT_VARIABLE] = "1"
    logger = logging.getLogger("torch.export")
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False
        del os.environ[INERT_VARIABLE]
        os.environ |= {} if before is None else {INERT_VARIABLE: before}
