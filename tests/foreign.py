"""Networks as other projects pickle them: classes that are not installed here, tensors by their published names."""

import torch
from torch import nn

from yoloyard.models.attention import AreaAttention, SeparateAreaAttention
from yoloyard.models.blocks import SPPF
from yoloyard.models.detector import Detector
from yoloyard.models.hypergraph import AdaptiveHypergraph
from yoloyard.models.importing.importers import published_names

PACKAGE = "ultralytics.nn.tasks"
# pickled as classes of a package that isn't installed
Part = type("DetectionModel", (nn.Module,), {"__module__": PACKAGE})
Options = type("Options", (), {"__module__": PACKAGE})


def published_network(detector: Detector, sppf_activation: bool = True) -> nn.Module:
    """The detector as the other project would have built it: its tensors in modules nested by their published names."""
    network, names = Part(), published_names(detector)
    for own, tensor in detector.state_dict().items():
        *path, name = names[own].split(".")
        module: nn.Module = network
        for step in path:
            if step not in module._modules:
                module.add_module(step, Part())
            module = module.get_submodule(step)
        if name == "anchors":  # such files count them in cells
            tensor = tensor / torch.tensor(detector.strides).view(-1, 1, 1)
        if name.startswith(("running", "num", "anchors")):
            module.register_buffer(name, tensor)
        else:
            module.register_parameter(name, nn.Parameter(tensor))
    own_modules = dict(detector.named_modules())
    for own, published in names.items():
        if published.endswith("bn.weight"):
            conv = own_modules[own.removesuffix(".bn.weight")]
            place = network.get_submodule(published.removesuffix(".bn.weight"))
            place.add_module("act", conv.get_submodule("activation"))
            place.get_submodule("bn").eps = 1e-3
    for own, module in own_modules.items():
        place = network.get_submodule(names[own]) if own in names else network
        if isinstance(module, AreaAttention | SeparateAreaAttention):
            place.__dict__.update(area=module.areas, num_heads=module.heads)
        if isinstance(module, SPPF):
            place.__dict__.update(add=module.add, n=3)
        if isinstance(module, AdaptiveHypergraph):
            generator = place.get_submodule("hgnn.edge_generator")
            generator.__dict__.update(num_heads=module.queries.in_features // 16, context="both", scaling=4.0)
            generator.add_module("dropout", nn.Dropout(0.1))
    if not sppf_activation:
        network.get_submodule("model.9.cv1").add_module("act", nn.Identity())
    network.names = {number: f"class {number}" for number in range(detector.num_classes)}
    return network
