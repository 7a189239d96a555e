"""A model repository for Triton, and a KServe InferenceService that serves it. Neither server ran in a test."""

import json
import re
from pathlib import Path
from typing import Any

from yoloyard.common.files import link_or_copy, write_whole_folder
from yoloyard.export.job import Job
from yoloyard.runtimes.extras import needed

# The delay is how long the first image of a batch waits for others.
CONFIG = """\
name: "{name}"
backend: "onnxruntime"
max_batch_size: 8
input [ {inputs} ]
output [ {outputs} ]
dynamic_batching {{ preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 2000 }}
"""
SERVICE = """\
# Put the content of this folder at storageUri, then: kubectl apply -f inferenceservice.yaml
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {{name: {name}}}
spec:
  predictor:
    model:
      modelFormat: {{name: triton}}
      runtime: kserve-tritonserver
      protocolVersion: v2
      storageUri: pvc://models/triton
      resources:
        requests: {{cpu: "1", memory: 2Gi}}
        limits: {{cpu: "4", memory: 8Gi, nvidia.com/gpu: "1"}}
"""


def write(job: Job, onnx_file: Path) -> Path:
    """Write the folder `best.triton`: `inferenceservice.yaml`, `NAME/config.pbtxt` and `NAME/1/model.onnx`. Returns it.

    NAME is `best`, the name of the weights file, as Kubernetes takes it. Names and sizes come from `onnx_file`.
    Source: documentation of Triton, "Model Repository", "Model Configuration" and "Batchers"; of KServe.
    """
    name = re.sub("[^a-z0-9]+", "-", job.weights.stem.lower()).strip("-")
    name = (name if name[:1].isalpha() else f"model-{name}")[:40].strip("-")
    path = onnx_file.with_suffix(".triton")
    graph = needed("onnx", "onnx").load(onnx_file).graph
    config = CONFIG.format(name=name, inputs=_tensors(graph.input), outputs=_tensors(graph.output))

    def fill(folder: Path) -> None:
        (folder / name / "1").mkdir(parents=True)
        link_or_copy(onnx_file, folder / name / "1" / "model.onnx")
        (folder / name / "config.pbtxt").write_text(config, encoding="utf-8")
        (folder / "inferenceservice.yaml").write_text(SERVICE.format(name=name), encoding="utf-8")

    write_whole_folder(path, fill)
    return path


def _tensors(values: Any) -> str:
    """Names, types and sizes of a graph's inputs or outputs, without the batch; -1 is any size."""
    sizes = {each.name: [dim.dim_value or -1 for dim in each.type.tensor_type.shape.dim[1:]] for each in values}
    return ", ".join(f"{{ name: {json.dumps(name)} data_type: TYPE_FP32 dims: {sizes[name]} }}" for name in sizes)
