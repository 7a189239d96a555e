"""Where the compilers of chips should end a network: after its last convolutions."""

from pathlib import Path
from typing import Any

from yoloyard.runtimes.extras import needed


def end_nodes(onnx_file: Path) -> dict[str, list[tuple[str, str]]]:
    """For each output of an ONNX file the nodes that make it, as (name of the node, name of its tensor).

    Where an output joins several tensors, it is these: 8-bit chips give each a scale of its own.
    """
    graph = needed("onnx", "onnx").load(onnx_file).graph
    makers = {tensor: node for node in graph.node for tensor in node.output}

    def ends(tensor: str) -> list[Any]:
        node = makers[tensor]
        return [end for each in node.input for end in ends(each)] if node.op_type == "Concat" else [(node.name, tensor)]

    return {output.name: ends(output.name) for output in graph.output}
