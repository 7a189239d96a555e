"""`--to triton`: valid for the published schemas, and of the names, types and shapes that the file itself has.

tests/data/README.md says where the schemas come from. No Triton and no cluster was used by these tests.
"""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # comes with kubernetes-validate
import kubernetes_validate
import numpy as np
import onnxruntime
import pytest
import yaml
from google.protobuf import (  # type: ignore[import-untyped]  # comes with onnx
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
)
from made_onnx import job_in, write_boxes

from yoloyard.export import triton

DATA = Path(__file__).parents[1] / "data"
SCHEMA = json.loads((DATA / "kserve_schema.json").read_text(encoding="utf-8"))
NUMPY = {"TYPE_FP32": np.float32}


def parsed(config: Path) -> Any:
    """A config.pbtxt as Triton's own ModelConfig message. Raises text_format.ParseError for what that doesn't know."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(descriptor_pb2.FileDescriptorProto.FromString((DATA / "triton_model_config.pb").read_bytes()))
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
    return text_format.Parse(config.read_text(encoding="utf-8"), kind())


def type_of(value: Any) -> Any:
    return NUMPY[value.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[value.data_type].name]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return triton.write(job_in(folder), write_boxes(folder / "best.onnx"))


def test_the_repository_has_the_layout_that_triton_reads(repository: Path) -> None:
    files = {path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()}
    assert files == {"inferenceservice.yaml", "best/config.pbtxt", "best/1/model.onnx"}
    assert (repository / "best/1/model.onnx").read_bytes() == (repository.parent / "best.onnx").read_bytes()
    assert not repository.name.isidentifier()  # it must not be imported as the package


@pytest.mark.parametrize("batch", [1, 8])
def test_the_configuration_has_names_types_and_shapes_of_the_file(repository: Path, batch: int) -> None:
    config = parsed(repository / "best/config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("best", "onnxruntime", 8)
    images = {each.name: np.zeros((batch, *each.dims), type_of(each)) for each in config.input}
    session = onnxruntime.InferenceSession(repository / "best/1/model.onnx", providers=["CPUExecutionProvider"])
    given = {each.name: array for each, array in zip(session.get_outputs(), session.run(None, images), strict=True)}
    assert {each.name: ((batch, *each.dims), type_of(each)) for each in config.output} == {
        name: (array.shape, array.dtype) for name, array in given.items()
    }


def test_batches_form_in_the_server_up_to_the_largest(repository: Path) -> None:
    config = parsed(repository / "best/config.pbtxt")
    assert max(config.dynamic_batching.preferred_batch_size) == config.max_batch_size
    assert config.dynamic_batching.max_queue_delay_microseconds > 0


def test_sizes_that_are_free_in_the_file_are_free_in_the_configuration(tmp_path: Path) -> None:
    path = triton.write(job_in(tmp_path, shape=None), write_boxes(tmp_path / "best.onnx", None))
    config = parsed(path / "best/config.pbtxt")
    assert [list(each.dims) for each in (*config.input, *config.output)] == [[3, -1, -1], [-1, 4], [-1, 3]]


def test_the_service_is_valid_for_kserve_and_its_resources_for_kubernetes(repository: Path) -> None:
    service = yaml.safe_load((repository / "inferenceservice.yaml").read_text(encoding="utf-8"))
    jsonschema.validate(service, SCHEMA)
    model = service["spec"]["predictor"]["model"]
    container = {"name": "kserve-container", "image": "image", "resources": model["resources"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": service["metadata"], "spec": {"containers": [container]}}
    kubernetes_validate.validate(pod, "1.37", strict=True)
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ("My Model_v2.safetensors", "my-model-v2"),
        ("2026-best.safetensors", "model-2026-best"),
        ("划痕.safetensors", "model"),
        ("x" * 90 + ".pt", "x" * 40),
    ],
)
def test_a_name_that_kubernetes_would_refuse_is_changed_everywhere(weights: str, name: str, tmp_path: Path) -> None:
    path = triton.write(job_in(tmp_path, weights), write_boxes(tmp_path / "best.onnx"))
    service = yaml.safe_load((path / "inferenceservice.yaml").read_text(encoding="utf-8"))
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name)  # of DNS labels that begin with a letter
    assert service["metadata"]["name"] == parsed(path / name / "config.pbtxt").name == name
