"""Weight files of other projects, read without those projects and without running anything that a file names.

Only here are other projects' layer numbers and parameter names known: `model.<number>.<names>`, where the number is a
block's place in the published table (`Detector.blocks`) and `PUBLISHED_NAMES` says how the inner names differ.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yoloyard.errors import UserError
from yoloyard.models import registry
from yoloyard.models.blocks import C2PSA, SPPF, Attention, Bottleneck, C3k, Conv, PSABlock, SplitStack
from yoloyard.models.detector import Detector
from yoloyard.models.heads import AnchorFreeHead
from yoloyard.models.inert_pickle import Checkpoint, Inert, TensorView, as_mapping, as_tensor

# our name of a block's part: the published one, where they differ
PUBLISHED_NAMES: dict[type[nn.Module], dict[str, str]] = {
    Conv: {"activation": "act"},
    Bottleneck: {"conv1": "cv1", "conv2": "cv2"},
    SplitStack: {"conv_in": "cv1", "blocks": "m", "conv_out": "cv2"},
    C3k: {"conv_in": "cv1", "conv_skip": "cv2", "blocks": "m", "conv_out": "cv3"},
    SPPF: {"conv_in": "cv1", "conv_out": "cv2"},
    C2PSA: {"conv_in": "cv1", "blocks": "m", "conv_out": "cv2"},
    PSABlock: {"attention": "attn", "feed_forward": "ffn"},
    Attention: {"position": "pe", "project": "proj"},
    AnchorFreeHead: {"box_branches": "cv2", "class_branches": "cv3", "projection": "dfl.conv.weight"},
}
LICENCE = "AGPL-3.0"  # of the ultralytics package and the weights that it publishes
MOST_MODULES = 5_000  # of a network; a damaged file may hold itself


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An ultralytics `.pt` as (state, metadata), in the names and float32 that `registry.build` makes.

    The metadata says what `weights.load_model` needs: `model`, `model_arguments` (the file's own class-branch width
    and SPPF activation among them), `names`, `channels`, `imgsz`, `licence`. Where a file holds an exponential moving
    average, that is taken. Raises UserError if the file is damaged or holds another kind of network.
    """
    with Checkpoint(path) as checkpoint:
        content = as_mapping(checkpoint.root)
        network = content.get("model") if content.get("ema") is None else content["ema"]
        if not isinstance(network, Inert):
            raise UserError(f"{path} is no checkpoint of a detector: it holds no network under 'model' or 'ema'.")
        modules = _modules(network, path)
        tensors = dict(_tensors(modules))
        name, arguments, detector = _recognise(tensors, modules, path)
        state = {}
        for own_name, published_name in published_names(detector).items():
            numbers = checkpoint.read(tensors[published_name])
            state[own_name] = numbers.float() if numbers.is_floating_point() else numbers
    options = as_mapping(content.get("train_args"))
    imgsz = options.get("imgsz")
    metadata = {
        "model": name,
        "model_arguments": arguments,
        "names": _class_names(network, arguments["num_classes"], path),
        "channels": arguments["channels"],
        "imgsz": imgsz if isinstance(imgsz, int) else 640,
        "licence": str(content.get("license") or LICENCE),
        "versions": {"ultralytics": str(content.get("version", "unknown"))},
    }
    return state, metadata


def published_names(detector: Detector) -> dict[str, str]:
    """For every entry of the detector's state its name in files of the project that published the family."""
    pairs = {}
    for own_module, published_module in _published_modules(detector).items():
        module = detector.get_submodule(own_module)
        renamed = _renamed(module)
        for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            pairs[f"{own_module}.{name}"] = f"{published_module}.{renamed.get(name, name)}"
    return pairs


def _published_modules(detector: Detector) -> dict[str, str]:
    """For every module of the detector's blocks its published name."""
    own_names = {id(module): name for name, module in detector.named_modules()}
    pairs: dict[str, str] = {}
    for number, block in enumerate(detector.blocks):
        if block is not None:
            _add_modules(pairs, block, own_names[id(block)], f"model.{number}")
    return pairs


def _add_modules(pairs: dict[str, str], module: nn.Module, own_name: str, published_name: str) -> None:
    pairs[own_name] = published_name
    renamed = _renamed(module)
    for name, child in module.named_children():
        _add_modules(pairs, child, f"{own_name}.{name}", f"{published_name}.{renamed.get(name, name)}")


def _renamed(module: nn.Module) -> dict[str, str]:
    return next((names for kind, names in PUBLISHED_NAMES.items() if isinstance(module, kind)), {})


def _modules(network: Inert, path: Path) -> dict[str, Inert]:
    """All modules of a pickled network by their names, itself under the empty one."""
    modules, waiting = {"": network}, [("", network)]
    while waiting:
        name, module = waiting.pop()
        for child_name, child in as_mapping(as_mapping(module.state).get("_modules")).items():
            if isinstance(child, Inert):
                waiting.append((f"{name}.{child_name}".lstrip("."), child))
                modules.update(waiting[-1:])
        if len(modules) > MOST_MODULES:
            raise UserError(f"{path} is no network that can be imported: its modules are nested without end.")
    return modules


def _tensors(modules: dict[str, Inert]) -> Iterator[tuple[str, TensorView]]:
    """(name, tensor) of the parameters and buffers of pickled modules."""
    for module_name, module in modules.items():
        for part in ("_parameters", "_buffers"):
            for name, node in as_mapping(as_mapping(module.state).get(part)).items():
                tensor = as_tensor(node)
                if tensor is not None:
                    yield f"{module_name}.{name}", tensor


def _recognise(
    tensors: dict[str, TensorView], modules: dict[str, Inert], path: Path
) -> tuple[str, dict[str, Any], Detector]:
    """The model whose names and shapes are exactly the file's, its arguments, and it itself on the meta device."""
    if "model.0.conv.bias" in tensors:
        raise UserError(f"{path} was fused for inference and has no batch normalisation left; use the unfused file.")
    head = max((int(name.split(".")[1]) for name in tensors if name.split(".")[1].isdecimal()), default=0)
    first, last = tensors.get("model.0.conv.weight"), tensors.get(f"model.{head}.cv3.0.2.weight")
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if first is not None and last is not None and len(first.shape) == len(last.shape) == 4 and min(last.shape) > 0:
        arguments = {"num_classes": last.shape[0], "channels": first.shape[1], "class_width": last.shape[1]}
        for name in registry.names():
            with torch.device("meta"):
                detector = registry.build(name, **arguments)
            state, published = detector.state_dict(), published_names(detector)
            if {published[own]: tuple(tensor.shape) for own, tensor in state.items()} == shapes:
                return name, arguments | _check_modules(detector, modules, path), detector
    raise UserError(
        f"{path} holds a network that can't be imported: the names and shapes of its {len(tensors)} tensors are those "
        f"of none of {', '.join(registry.names())}."
    )


def _check_modules(detector: Detector, modules: dict[str, Inert], path: Path) -> dict[str, Any]:
    """Compare what no tensor shows, activations and eps; returns the arguments that make them agree.

    Raises UserError where the file's network computes something else with the same tensors.
    """
    arguments: dict[str, Any] = {}
    published = _published_modules(detector)
    first_of_sppf = [f"{published[name]}.cv1" for name, module in detector.named_modules() if isinstance(module, SPPF)]
    for own_name, published_name in published.items():
        module = detector.get_submodule(own_name)
        if not isinstance(module, Conv):
            continue
        activation = modules.get(f"{published_name}.act", Inert()).path.rpartition(".")[2]
        if published_name in first_of_sppf and activation == "Identity":
            arguments["sppf_activation"] = False  # some releases build it so
        elif activation != type(module.activation).__name__:
            raise UserError(f"{path} can't be imported: {published_name} has the activation {activation!r}.")
        eps = as_mapping(modules[f"{published_name}.bn"].state).get("eps")
        if eps != module.bn.eps:
            raise UserError(f"{path} can't be imported: the normalisation of {published_name} has eps {eps}.")
    return arguments


def _class_names(network: Inert, num_classes: int, path: Path) -> list[str]:
    """The class names in the order of their numbers; files hold a dict or, older ones, a list."""
    names = as_mapping(network.state).get("names")
    numbered = dict(enumerate(names)) if isinstance(names, list) else as_mapping(names)
    if set(numbered) != set(range(num_classes)):
        raise UserError(f"{path} is damaged: it has {num_classes} classes, but not one name for each.")
    return [str(numbered[number]) for number in range(num_classes)]
