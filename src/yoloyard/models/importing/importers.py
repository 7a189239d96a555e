"""Weight files of other projects, read without those projects and without running anything that a file names.

Only here are other projects' layer numbers and parameter names known: `model.<number>.<names>`, where the number is a
block's place in the published table (`Detector.blocks`) and `PUBLISHED_NAMES` says how the inner names differ.
"""

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yoloyard.common.digests import file_sha256
from yoloyard.common.errors import UserError, printable
from yoloyard.common.lineage import step
from yoloyard.config import recipes
from yoloyard.models import registry
from yoloyard.models.attention import C2PSA, A2C2f, AreaAttention, AreaBlock, Attention, PSABlock, SeparateAreaAttention
from yoloyard.models.blocks import SPPF, Bottleneck, Conv, SplitStack, TwoBranches
from yoloyard.models.detector import Detector
from yoloyard.models.hypergraph import DROPOUT, HEAD_WIDTH, AdaptiveHypergraph, Halved, HyperACE
from yoloyard.models.importing import yolov9_files
from yoloyard.models.importing.inert_pickle import Inert, TensorView, as_mapping, as_tensor
from yoloyard.models.importing.torch_files import Checkpoint
from yoloyard.models.pyramid import P2
from yoloyard.models.separable import SeparableBottleneck, SeparableConv

# Own name of a block's part, or of a part's part: the published one, where they differ. Empty: what is in it stands in
# the block itself. Heads bring theirs.
PUBLISHED_NAMES: dict[tuple[type[nn.Module], ...], dict[str, str]] = {
    (Conv,): {"activation": "act"},
    (SeparableConv,): {"depthwise": "dw", "pointwise": "", "pointwise.conv": "pw"},
    (Bottleneck, SeparableBottleneck): {"conv1": "cv1", "conv2": "cv2"},
    (SplitStack, SPPF, C2PSA, A2C2f, HyperACE): {
        "conv_in": "cv1",
        "blocks": "m",
        "conv_out": "cv2",
        "fuse": "fuse.conv_out",
    },
    (TwoBranches,): {"conv_in": "cv1", "conv_skip": "cv2", "blocks": "m", "conv_out": "cv3"},
    (AreaBlock,): {"attention": "attn", "feed_forward": "mlp"},
    (PSABlock,): {"attention": "attn", "feed_forward": "ffn"},
    (Attention,): {"position": "pe", "project": "proj"},
    (SeparateAreaAttention,): {"queries_keys": "qk", "values": "v", "position": "pe", "project": "proj"},
    (Halved,): {"widen": "channel_adjust"},
    (AdaptiveHypergraph,): {
        "prototypes": "hgnn.edge_generator.prototype_base",
        "context": "hgnn.edge_generator.context_net",
        "queries": "hgnn.edge_generator.pre_head_proj",
        "dropout": "hgnn.edge_generator.dropout",
        "to_edges": "hgnn.edge_proj.0",
        "to_vertices": "hgnn.node_proj.0",
    },
}
ONE2ONE = "one2one_"  # how names of branches begin that find each object once
PLAIN_BOXES = "yolo26"  # the family whose boxes are distances without a distribution
FIRST_ROWS = {"n": (16,), "s": (32,), "m": (48, 64), "l": (64,), "x": (80, 96)}  # of the first weights, by size
BN_EPS = 1e-3  # of every family
MAX_IMAGE_PIXELS = 8192  # of a side
LICENCE = "AGPL-3.0"  # of yolov5 and ultralytics and the weights that they publish
MAX_MODULE_DEPTH = 30
MAX_MODULES = 5_000  # of a network; a damaged file may hold itself


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A `.pt` of another project as (state, metadata), in the names and float32 that `registry.build` makes.

    Of MultimediaTechLab's YOLOv9 see `yolov9_files`; what follows is of yolov5, ultralytics and those built on them.

    The metadata says what `weights.load_model` needs: `model`, `model_arguments` (the file's own class-branch width
    and SPPF activation among them), `names`, `channels`, `imgsz`, `licence`, `history`; `fused`: True where the file's
    convolutions had absorbed their normalisation, which is then rebuilt as one that changes nothing. Where a file holds
    an exponential moving average, that is taken. Raises UserError if the file is damaged or holds another kind of
    network.
    """
    checkpoint = Checkpoint(path)
    content = as_mapping(checkpoint.root)
    if tensors := yolov9_files.tensors_of(content):
        return yolov9_files.read_state(checkpoint, tensors, path)
    network = content.get("model") if content.get("ema") is None else content["ema"]
    if not isinstance(network, Inert):
        raise UserError(
            f"{path} is no checkpoint of a detector: it holds no network under 'model' or "
            "'ema', and is no state dict of YOLOv9; `yoloyard weights` lists files that are read."
        )
    modules = _modules(network, path)
    tensors = {
        f"{name}.{part}": tensor
        for name, module in modules.items()
        for kind in ("_parameters", "_buffers")
        for part, node in as_mapping(as_mapping(module.state).get(kind)).items()
        if part != "anchor_grid" and (tensor := as_tensor(node))  # older files keep their anchors twice
    }
    fused = "model.0.conv.bias" in tensors
    name, arguments, detector = _recognise(tensors, modules, fused, path)
    state = _read_state(checkpoint, tensors, detector, fused)
    imgsz = as_mapping(content.get("train_args", content.get("opt"))).get("imgsz")  # as newer and older projects say
    known_size = type(imgsz) is int and 32 <= imgsz <= MAX_IMAGE_PIXELS
    licence = content.get("license")
    licence = printable(licence) if licence and isinstance(licence, str) else LICENCE
    program = {detector.project: printable(str(content.get("version", "unknown")))}
    imported = step("imported", path.name, file_sha256(path), licence, program=" ".join(*program.items()))
    metadata = {
        "model": name,
        "model_arguments": arguments,
        "names": _class_names(network, arguments["num_classes"], path),
        "channels": arguments["channels"],
        "imgsz": imgsz if known_size else 20 * max(detector.strides),
        "licence": licence,
        "versions": program,
        "history": [imported],
    }
    if iou := recipes.published(name, detector.head.criterion).get("iou"):
        metadata["evaluation"] = {"iou": iou}
    if not detector.head.needs_suppression:
        metadata["evaluation"] = {"suppression": "off"}
    if fused:
        metadata["fused"] = True
    return state, metadata


def _read_state(
    checkpoint: Checkpoint, tensors: dict[str, TensorView], detector: Detector, fused: bool
) -> dict[str, Tensor]:
    """The tensors of the file as the detector's own state, in float32."""
    state, names = {}, published_names(detector)
    for own_name in detector.state_dict():
        norm, _, part = (published_name := names[own_name]).rpartition(".bn.")
        absorbed = fused and f"{norm}.conv.bias" in tensors
        numbers = checkpoint.read(tensors[f"{norm}.conv.bias" if absorbed else published_name])
        numbers = numbers.float() if numbers.is_floating_point() else numbers
        if absorbed:  # a normalisation that adds this bias and changes nothing else
            unit = nn.BatchNorm2d(len(numbers)).state_dict()
            numbers = (unit | {"bias": numbers, "weight": torch.full_like(numbers, (1 + BN_EPS) ** 0.5)})[part]
        state[own_name] = numbers
    if "head.anchors" in state:  # files count them in cells
        state["head.anchors"] *= torch.tensor(detector.strides).view(-1, 1, 1)
    return state


def published_names(detector: Detector) -> dict[str, str]:
    """For all modules of the detector's blocks, and all of its state, the names in files of the family's project."""
    own_names = {id(module): name for name, module in detector.named_modules()}
    blocks = enumerate(detector.blocks)
    names = {own_names[id(block)]: f"model.{number}" for number, block in blocks if block is not None}
    for name in (*own_names.values(), *detector.state_dict()):
        parent, _, part = name.rpartition(".")
        if name not in names and parent in names:
            outer, _, inner = parent.rpartition(".")
            renamed = _renamed_parts(detector.get_submodule(parent)).get(part, part)
            renamed = _renamed_parts(detector.get_submodule(outer)).get(f"{inner}.{part}", renamed)
            names[name] = f"{names[parent]}.{renamed}".rstrip(".")
    return names


def _renamed_parts(module: nn.Module) -> Mapping[str, str]:
    """Own names of the parts of a block or head to the published ones, where they differ."""
    tables = (parts for kinds, parts in PUBLISHED_NAMES.items() if isinstance(module, kinds))
    return next(tables, getattr(module, "published_names", {}))


def _modules(network: Inert, path: Path) -> dict[str, Inert]:
    """All modules of a pickled network by their names, itself under the empty one."""
    modules, waiting = {"": network}, [("", network)]
    while waiting:
        name, module = waiting.pop()
        for child_name, child in as_mapping(as_mapping(module.state).get("_modules")).items():
            if isinstance(child, Inert) and isinstance(child_name, str):
                waiting.append((f"{name}.{child_name}".lstrip("."), child))
                modules.update(waiting[-1:])
        if len(modules) > MAX_MODULES or name.count(".") > MAX_MODULE_DEPTH:
            raise UserError(f"{path} is no network that can be imported: its modules are nested without end.")
    return modules


def _recognise(
    tensors: dict[str, TensorView], modules: dict[str, Inert], fused: bool, path: Path
) -> tuple[str, dict[str, Any], Detector]:
    """The model whose names and shapes are exactly the file's, its arguments, and it itself on the meta device."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    arguments = _arguments(shapes)
    sizes = sorted(shape for shape in shapes.values() if len(shape) > 1)  # of weights, as fusing leaves them
    for name, build in registry.BUILDERS.items() if arguments else ():
        rows = FIRST_ROWS.get(name.removesuffix("6").removesuffix(P2)[-1], ())  # building all networks is slow
        if shapes["model.0.conv.weight"][0] not in rows or name.startswith(PLAIN_BOXES) != ("paths" in arguments):
            continue
        if not arguments.keys() <= signature(build).parameters.keys():
            continue
        with torch.device("meta"):
            detector = build(**arguments)
        own = detector.state_dict().values()
        if sorted(tuple(tensor.shape) for tensor in own if tensor.ndim > 1) != sizes:  # told sooner than by names
            continue
        if _published_shapes(detector, fused) == shapes:
            return name, arguments | _check_modules(detector, modules, fused, path), detector
    kind = printable(modules[""].path.rpartition(".")[2])
    hint = " Of networks with one2one branches only YOLO26's for detection is read." if ONE2ONE in str(shapes) else ""
    raise UserError(
        f"{path} holds a network ({kind}) that can't be imported: the names and shapes of its {len(tensors)} tensors "
        f"are those of no size of {', '.join(registry.FAMILIES)}; `yoloyard weights` lists files that are read.{hint}"
    )


def _arguments(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """The class count and other arguments that the shapes of a file's tensors tell; none if it is another network."""
    head = f"model.{max((int(name.split('.')[1]) for name in shapes if name.split('.')[1].isdecimal()), default=0)}"
    first, anchors = shapes.get("model.0.conv.weight", ()), shapes.get(f"{head}.anchors", ())
    pairs = [prefix for prefix in ("", ONE2ONE) if f"{head}.{prefix}cv3.0.2.weight" in shapes]  # of branches
    pair = f"{head}.{pairs[0] if pairs else ''}"
    last = shapes.get(f"{head}.m.0.weight" if anchors else f"{pair}cv3.0.2.weight", ())
    if len(first) != 4 or len(last) != 4 or min(last) < 1:
        return {}
    if not anchors:
        arguments: dict[str, Any] = {"num_classes": last[0], "channels": first[1], "class_width": last[1]}
        if shapes.get(f"{pair}cv2.0.2.weight", ())[:1] == (4,):  # plain distances; one pair is left in fused files
            arguments["paths"] = "both" if len(pairs) == 2 else "one" if pairs == [ONE2ONE] else "many"
        elif ONE2ONE in pairs:  # by distributions, as YOLOv10's
            return {}
        return arguments
    if len(anchors) != 3 or anchors[1] < 1 or last[0] // anchors[1] <= 5:
        return {}
    return {"num_classes": last[0] // anchors[1] - 5, "channels": first[1]}


def _published_shapes(detector: Detector, fused: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that a file of this detector holds; fused, with biases for normalisations."""
    names = published_names(detector)
    shapes = {names[own]: tuple(tensor.shape) for own, tensor in detector.state_dict().items()}
    if not fused:
        return shapes
    norms = {name.replace(".conv.weight", ".bn") for name in shapes}  # separable convolutions keep theirs
    shapes = {
        name.replace("bn.bias", "conv.bias") if name.removesuffix(".bias") in norms else name: shape
        for name, shape in shapes.items()
    }
    return {name: shape for name, shape in shapes.items() if name.rpartition(".")[0] not in norms}


def _check_modules(detector: Detector, modules: dict[str, Inert], fused: bool, path: Path) -> dict[str, Any]:
    """Compare what no tensor shows, activations and eps; returns the arguments that make them agree.

    Raises UserError where the file's network computes something else with the same tensors.
    """
    arguments: dict[str, Any] = {}
    published = published_names(detector)
    convolutions = [(name, module) for name, module in detector.named_modules() if isinstance(module, Conv)]
    for name, module in convolutions:
        activation = modules.get(f"{published[name]}.act", Inert()).path.rpartition(".")[2]
        if activation == (own := type(module.activation).__name__):
            pass
        elif name == "backbone.pool.conv_in" and (activation, own) == ("Identity", "SiLU"):
            arguments["sppf_activation"] = False  # some releases build it so
        else:
            raise UserError(f"{path} can't be imported: {published[name]} has the activation {activation!r}.")
        norm = modules.get(f"{published[name]}.bn")
        eps = BN_EPS if norm is None else as_mapping(norm.state).get("eps")
        if eps != BN_EPS:
            raise UserError(f"{path} can't be imported: the normalisation of {published[name]} has eps {eps}.")
    for name, module in detector.named_modules():
        if isinstance(module, SPPF):
            facts = as_mapping(modules[published[name]].state)
            if bool(facts.get("add")) != module.add or facts.get("n", 3) != 3:
                raise UserError(f"{path} can't be imported: {published[name]} pools or adds otherwise than {name}.")
        for part, expected in _attributes(module).items():
            facts = as_mapping(modules.get(f"{published[name]}{part}", Inert()).state)
            for key, value in expected.items():
                if facts.get(key) != value:
                    found = f"is {printable(str(facts.get(key)))}, not {value}"
                    raise UserError(f"{path} can't be imported: {key} of {published[name]}{part} {found}.")
    return arguments


def _attributes(module: nn.Module) -> dict[str, dict[str, Any]]:
    """What no tensor of a file shows of `module`: attributes and their values, by the published names of its parts."""
    if isinstance(module, AreaAttention | SeparateAreaAttention):
        return {"": {"area": module.areas, "num_heads": module.heads}}
    if isinstance(module, AdaptiveHypergraph):
        generator = ".hgnn.edge_generator"
        facts = {"num_heads": module.queries.in_features // HEAD_WIDTH, "context": "both", "scaling": HEAD_WIDTH**0.5}
        return {generator: facts, f"{generator}.dropout": {"p": DROPOUT}}
    return {}


def _class_names(network: Inert, num_classes: int, path: Path) -> list[str]:
    """The class names in the order of their numbers; files hold a dict or, older ones, a list."""
    names = as_mapping(network.state).get("names")
    numbered = dict(enumerate(names)) if isinstance(names, list) else as_mapping(names)
    if set(numbered) != set(range(num_classes)):
        raise UserError(f"{path} is damaged: it has {num_classes} classes, but not one name for each.")
    return [printable(str(numbered[number])) for number in range(num_classes)]
