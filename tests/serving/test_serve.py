"""What the server answers, and what it refuses."""

import http.client
import json
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serve_process import TOKEN, Server, eventually, png, serving, write_gated_weights
from starlette.exceptions import HTTPException

from exported_files import document, write_onnx
from yoloyard.cli.main import main
from yoloyard.commands.model import Model
from yoloyard.commands.predict import json_rows, predict
from yoloyard.commands.sources import find_sources
from yoloyard.data.pixels.decode import decode_image, encode_jpeg, read_size
from yoloyard.demo.drawing import NAMES
from yoloyard.models.weights import load_model, save_weights
from yoloyard.serving import v2
from yoloyard.serving.metrics import Metrics
from yoloyard.serving.served import Served

PLACES = 6


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gated_weights(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[Server]:
    flags = ("--queue", PLACES, "--max-batch", 4, "--threads", torch.get_num_threads())
    onnx = write_onnx(weights.parent / "patches.onnx", document())
    with serving(weights.parent, weights, f"second={weights}", onnx, *flags, token=TOKEN) as server:
        yield server


@pytest.fixture(scope="module")
def model(weights: Path) -> Model:
    return Model(weights)


def rows_of(model: Model, content: bytes, folder: Path) -> list[dict[str, Any]]:
    (folder / "image").write_bytes(content)
    return json_rows(model(folder / "image"), model.names)


def form(field: str, content: bytes) -> tuple[bytes, dict[str, str]]:
    head = f'--edge\r\nContent-Disposition: form-data; name="{field}"; filename="a.png"\r\n\r\n'.encode()
    return head + content + b"\r\n--edge--\r\n", {"Content-Type": "multipart/form-data; boundary=edge"}


def turned_jpeg() -> bytes:
    """A JPEG of 50 x 70 pixels whose EXIF block says that it is to be turned."""
    jpeg = encode_jpeg(decode_image(Path("a.png"), data=png(50, 70)), quality=90)
    exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    return jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]


IMAGES = {"small": png(40, 60), "wide": png(30, 200), "larger": png(300, 211), "turned": turned_jpeg()}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_gives_what_predict_gives_bit_for_bit(server: Server, model: Model, tmp_path: Path, name: str) -> None:
    expected = rows_of(model, IMAGES[name], tmp_path)
    assert expected
    answer = server.ask("/predict?model=tiny", IMAGES[name])
    assert answer.json["detections"] == expected
    body, headers = form("file", IMAGES[name])
    assert server.ask("/predict?model=second", body, headers).json["detections"] == expected
    assert (answer.json["height"], answer.json["width"]) == read_size(tmp_path / "image")


def test_the_rows_are_those_of_predictions_json(server: Server, model: Model, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(IMAGES["small"])
    predict(model, find_sources([str(tmp_path / "a.png")]), tmp_path / "out", save_txt=False, save_json=True)
    rows = server.ask("/predict?model=tiny", IMAGES["small"]).json["detections"]
    for row in rows:
        row |= {"score": round(row["score"], 5), "box_xyxy": [round(side, 2) for side in row["box_xyxy"]]}
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [{"image": str(tmp_path / "a.png"), **row} for row in rows] == written


def test_what_comes_while_the_network_is_busy_is_computed_together_and_alike(server: Server, model: Model) -> None:
    images = [png(40, 60, seed) for seed in range(PLACES)]
    alone = [server.ask("/predict?model=tiny", image).json for image in images]
    before = server.measured()
    with server.held():
        later = [server.later("/predict?model=tiny", image) for image in images]
        server.waits(PLACES)
    assert [each.result().json for each in later] == alone
    grown = {name: value - before.get(name, 0) for name, value in server.measured().items()}
    assert grown['yoloyard_batch_images_sum{model="tiny"}'] == 1 + PLACES
    assert grown['yoloyard_batch_images_count{model="tiny"}'] == 3  # the one that held it up, then 4, then 2


def test_a_batch_of_an_exported_file_gives_the_bits_of_each_image_alone(
    server: Server, weights: Path, tmp_path: Path
) -> None:
    model = Model(weights.parent / "patches.onnx")
    images = [png(96, 70, seed) for seed in range(PLACES)]
    with server.held():
        later = [server.later("/predict?model=patches", image) for image in images]
        server.waits(PLACES)
    found = [each.result().json["detections"] for each in later]
    assert found == [rows_of(model, image, tmp_path) for image in images]
    assert all(found)
    assert server.value('yoloyard_batch_images_count{model="patches"}') == 2


@pytest.mark.parametrize("rounds_otherwise", [False, True])
def test_batches_are_computed_at_once_only_where_that_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds_otherwise: bool
) -> None:
    with ThreadPoolExecutor(1) as decoders:
        served = Served("patches", str(write_onnx(tmp_path / "p.onnx", document())), 4, Metrics(), decoders)
        served.computes_at_once = True  # as on a device that is no CPU
        computed, candidates = [], served.model.network.candidates

        def counted(images: torch.Tensor, conf: float, multi_label: bool) -> Any:
            where, boxes, scores, labels = candidates(images, conf, multi_label)
            computed.append((len(images), conf > 0))
            return where, boxes + 1e-5 * (rounds_otherwise and len(images) > 1), scores, labels

        images = [png(96, 96, seed) for seed in range(3)]
        alone = [served.predict([image])[0] for image in images]
        monkeypatch.setattr(served.model.network, "candidates", counted)
        assert served.predict(images) == served.predict(images) == alone
        once = [(1, True)] * 3 if rounds_otherwise else [(3, True)]
        assert [each for each in computed if each[1]] == once * 2
        assert [each for each in computed if not each[1]] == [
            (3, False),
            *[(1, False)] * (1 if rounds_otherwise else 3),
        ]


def test_images_of_two_shapes_and_two_models_wait_for_their_own_batch(server: Server) -> None:
    before = server.measured()
    with server.held():
        paths = ["tiny", "second", "tiny", "tiny"]
        sent = [png(40, 60), png(40, 60), png(60, 40), png(40, 60, 1)]
        later = []
        for number, (name, image) in enumerate(zip(paths, sent, strict=True)):
            later.append(server.later(f"/predict?model={name}", image))
            server.waits(number + 1)
    assert all(each.result().status == 200 for each in later)
    grown = {name: value - before.get(name, 0) for name, value in server.measured().items()}
    assert grown['yoloyard_batch_images_count{model="tiny"}'] == 3
    assert grown['yoloyard_batch_images_count{model="second"}'] == 1


def test_where_the_queue_is_full_a_client_is_told_to_come_again(server: Server) -> None:
    with server.held():
        later = [server.later("/predict?model=tiny", png(40, 60)) for _ in range(PLACES)]
        server.waits(PLACES)
        refused = server.ask("/predict?model=tiny", png(40, 60))
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        assert "6 requests are waiting" in refused.json["error"]
        assert server.ask("/v2/models/tiny/infer", b"{}").status == 429
    assert all(each.result().status == 200 for each in later)


def test_what_a_client_no_longer_wants_is_not_computed(server: Server) -> None:
    before, image = server.value('yoloyard_batch_images_sum{model="tiny"}'), png(40, 60)
    head = ("POST /predict?model=tiny HTTP/1.1", "Host: a", f"Authorization: Bearer {TOKEN}")
    with server.held():
        leaves = server.connection(*head, f"Content-Length: {len(image)}", "", body=image)
        server.waits(1)
        leaves.close()
        server.waits(0)
    cut = server.connection(*head, f"Content-Length: {len(image)}", "", body=image[:50])
    cut.close()
    left = 'yoloyard_request_seconds_count{route="/predict",status="499"}'
    eventually(lambda: server.value(left) == 2)
    assert server.value('yoloyard_batch_images_sum{model="tiny"}') == before + 1


BLACK = zlib.compress(bytes(10_000_000), 9)


def bomb(height: int, width: int, pixels: bytes = BLACK) -> bytes:
    """A PNG whose header says so many pixels, of some kilobytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


NOISE = np.random.default_rng(0).bytes(10_000_000)
JSON = {"Content-Type": "application/json"}
REFUSED: dict[str, tuple[str, bytes | None, dict[str, str], int, str]] = {
    "noise": ("/predict", NOISE, {}, 415, "JPEG, PNG"),
    "noise as a JPEG": ("/predict", b"\xff\xd8" + NOISE, {}, 400, "cannot read the image"),
    "nothing": ("/predict", b"", {}, 415, "JPEG, PNG"),
    "an image that is cut off": ("/predict", IMAGES["larger"][:-20], {}, 400, "cut off"),
    "damaged pixels": ("/predict", bomb(300, 300, b"no pixels"), {}, 400, "cannot read the image"),
    "an image bomb": ("/predict", bomb(30_000, 30_000), {}, 413, "30000x30000 pixels"),
    "an image without pixels": ("/predict", bomb(0, 0), {}, 415, "size"),
    "a JPEG of endless scans": (
        "/predict",
        turned_jpeg()[:-2] + b"\xff\xda\0\x02" * 100 + b"\xff\xd9",
        {},
        413,
        "100 scans",
    ),
    "another format": ("/predict", b"GIF89a\xff\xff\xff\xff", {}, 415, "JPEG, PNG"),
    "JSON": ("/predict", b'{"image": 1}', JSON, 415, "image file"),
    "too many bytes": ("/predict", None, {"Content-Length": str(2**40)}, 413, "larger than"),
    "a form without the field": ("/predict", *form("image", IMAGES["small"]), 400, "field `file`"),
    "a form that is cut off": ("/predict", form("file", IMAGES["small"])[0][:90], form("", b"")[1], 400, "form"),
    "a form of noise": ("/predict", NOISE, form("", b"")[1], 400, "form"),
    "an unknown model": ("/predict?model=third", IMAGES["small"], {}, 404, "there are tiny, second, patches"),
    "no model": ("/predict?model=", IMAGES["small"], {}, 404, "there are tiny, second, patches"),
    "an unknown route": ("/predictions", IMAGES["small"], {}, 404, ""),
    "a route with a slash too many": ("/models/", b"", {}, 404, ""),
    "noise as tensors": ("/v2/models/tiny/infer", NOISE[:100_000], {}, 400, "no JSON"),
    "nested JSON": ("/v2/models/tiny/infer", b"[" * 100_000, JSON, 400, "no JSON"),
    "tensors of an unknown model": ("/v2/models/third/infer", b"{}", JSON, 404, "tiny, second, patches"),
    "tensors that are too large": ("/v2/models/tiny/infer", None, {"Content-Length": str(2**40)}, 413, "larger than"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_requests_get_one_clear_answer_each(server: Server, weights: Path, case: str) -> None:
    path, body, headers, status, text = REFUSED[case]
    path = path.replace("/predict", "/predict?model=tiny") if path == "/predict" else path
    answer = server.ask(path, body, headers, method="POST")
    assert answer.status == status
    assert list(answer.json) == ["error"]
    assert text in answer.json["error"]
    assert str(weights.parent) not in answer.body.decode()
    assert server.ask("/predict?model=tiny", IMAGES["small"]).status == 200


def test_a_body_without_a_length_ends_at_the_limit(server: Server) -> None:
    chunks = (bytes(2**20) for _ in range(30))
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"Authorization": f"Bearer {TOKEN}", "Transfer-Encoding": "chunked"}
    connection.request("POST", "/predict?model=tiny", chunks, headers, encode_chunked=True)
    assert connection.getresponse().status == 413


def test_what_is_no_http_is_refused(server: Server) -> None:
    with server.connection("no request", "") as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")


def test_several_models_must_be_told_apart(server: Server) -> None:
    answer = server.ask("/predict", IMAGES["small"])
    assert (answer.status, answer.json["error"]) == (400, "say which model, ?model=NAME: tiny, second, patches")


def test_only_health_needs_no_token(server: Server) -> None:
    none: dict[str, str] = {"Authorization": ""}
    for path in ("/v2", "/metrics", "/v2/models/tiny", "/nowhere", "/predict"):
        answer = server.ask(path, headers=none)
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    for wrong in ("Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xe4"):
        assert server.ask("/v2", headers={"Authorization": wrong}).status == 401
    assert server.ask("/v2/health/live", headers=none).json == {"live": True}
    assert server.ask("/v2/health/ready", headers=none).json == {"ready": True}
    assert not any("open" in line for line in server.lines)


def test_metrics_show_scores_by_class_and_requests_by_route(server: Server) -> None:
    before = server.measured()
    rows = server.ask("/predict?model=second", IMAGES["larger"]).json["detections"]
    for _ in range(3):
        server.ask("/no/such/route")
    grown = {name: value - before.get(name, 0) for name, value in server.measured().items()}
    assert grown['yoloyard_request_seconds_count{route="/predict",status="200"}'] == 1
    assert grown['yoloyard_request_seconds_count{route="other",status="404"}'] == 3
    for name in {row["name"] for row in rows}:
        scores = [row["score"] for row in rows if row["name"] == name]
        assert grown[f'yoloyard_score_count{{class="{name}",model="second"}}'] == len(scores)
        assert grown[f'yoloyard_score_sum{{class="{name}",model="second"}}'] == pytest.approx(sum(scores))


def test_many_clients_at_once_get_their_own_boxes(server: Server, model: Model, tmp_path: Path) -> None:
    images = [png(40 + 10 * number, 60, number) for number in range(4)]
    expected = [rows_of(model, image, tmp_path) for image in images]
    with ThreadPoolExecutor(4) as clients:
        found = list(clients.map(lambda each: server.ask("/predict?model=tiny", images[each % 4]), range(40)))
    assert [each.json["detections"] for each in found] == [expected[number % 4] for number in range(40)]


def tensor_request(images: np.ndarray, **changes: Any) -> dict[str, Any]:
    tensor = {"name": "images", "datatype": "FP32", "shape": list(images.shape), "data": images.ravel().tolist()}
    return {"id": "7", "inputs": [{name: value for name, value in (tensor | changes).items() if value is not None}]}


@pytest.fixture(scope="module")
def tensors() -> np.ndarray:
    return np.random.default_rng(0).random((2, 3, 32, 64), dtype=np.float32)


def test_a_model_describes_itself(server: Server) -> None:
    assert server.ask("/v2").json["extensions"] == ["binary_tensor_data"]
    assert server.ask("/v2/models/second/ready").status == 200
    assert server.ask("/v2/models/tiny").json == {
        "name": "tiny",
        "platform": "yoloyard_safetensors",
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 3, -1, -1]}],
        "outputs": [
            {"name": "boxes", "datatype": "FP32", "shape": [-1, -1, 4]},
            {"name": "scores", "datatype": "FP32", "shape": [-1, -1, len(NAMES)]},
        ],
    }


@pytest.mark.parametrize("file", ["tiny.safetensors", "patches.onnx"])
def test_tensors_in_json_give_the_outputs_of_the_network(
    server: Server, weights: Path, tensors: np.ndarray, file: str
) -> None:
    name = Path(file).stem
    answer = server.ask(f"/v2/models/{name}/infer", json.dumps(tensor_request(tensors)), JSON)
    assert answer.status == 200
    assert (answer.json["id"], answer.json["model_name"]) == ("7", name)
    expected = Model(weights.parent / file).network.outputs(torch.tensor(tensors))
    for output in answer.json["outputs"]:
        found = np.array(output["data"], np.float32).reshape(output["shape"])
        assert np.array_equal(found, expected.pop(output["name"]).numpy())
    assert not expected


def test_binary_tensors_give_the_same_and_only_what_is_asked_for(
    server: Server, model: Model, tensors: np.ndarray
) -> None:
    asked = tensor_request(tensors, data=None, parameters={"binary_data_size": tensors.nbytes})
    asked["outputs"] = [{"name": "scores", "parameters": {"binary_data": True}}]
    head = json.dumps(asked).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    answer = server.ask("/v2/models/tiny/infer", head + tensors.tobytes(), length)
    size = int(answer.headers["Inference-Header-Content-Length"])
    [output] = json.loads(answer.body[:size])["outputs"]
    found = np.frombuffer(answer.body[size:], "<f4").reshape(output["shape"])
    assert np.array_equal(found, model.network.outputs(torch.tensor(tensors))["scores"].numpy())


def v2_cases() -> dict[str, tuple[dict[str, Any], str]]:
    images = np.zeros((1, 3, 32, 32), np.float32)
    return {
        "a batch above the most": (tensor_request(np.zeros((5, 3, 32, 32))), "a batch of 5 is too large: 4 is"),
        "sides that are no multiples": (tensor_request(np.zeros((1, 3, 40, 32))), "multiples of 32, at most 96"),
        "sides that are too long": (tensor_request(np.zeros((1, 3, 128, 32))), "multiples of 32, at most 96"),
        "another order": (tensor_request(np.zeros((1, 32, 32, 3))), r"[batch, 3, height, width]"),
        "no shape": (tensor_request(images, shape=None), r"[batch, 3, height, width]"),
        "a shape of texts": (tensor_request(images, shape=["1", 3, 32, 32]), r"[batch, 3, height, width]"),
        "too few numbers": (tensor_request(images, data=[0.5]), "has 1 numbers"),
        "texts": (tensor_request(images, data=["0.5"] * 3072), "must be numbers"),
        "empty lists": (tensor_request(images, data=[[], []]), "has 0 numbers"),
        "a number among lists": (tensor_request(images, data=[[1], 1]), "must be numbers"),
        "too many lists": (tensor_request(images, data=[[]] * 2**18), "262,144 lists"),
        "an endless number": (tensor_request(images, data=[10**400]), "must be numbers"),
        "ragged lists": (tensor_request(images, data=[[1], [1, 2]]), "has 3 numbers"),
        "no data": (tensor_request(images, data=None), "must be numbers"),
        "bytes not divided by 255": (tensor_request(images + 255), "must lie in 0 .. 1"),
        "no number": (tensor_request(images * np.nan), "must lie in 0 .. 1"),
        "another type": (tensor_request(images, datatype="UINT8"), "must be FP32"),
        "another name": (tensor_request(images, name="x"), "is named `images`"),
        "another binary size": (
            tensor_request(images, data=None, parameters={"binary_data_size": 8}),
            "0 bytes follow",
        ),
        "an unknown output": (
            tensor_request(images) | {"outputs": [{"name": "\ud800"}]},
            "the outputs are boxes, scores",
        ),
        "outputs that are no list": (tensor_request(images) | {"outputs": 3}, "objects in a list"),
        "no inputs": ({"inputs": []}, "must have 1 entry"),
    }


@pytest.mark.parametrize("case", v2_cases())
def test_bad_tensors_get_one_clear_answer_each(server: Server, case: str) -> None:
    asked, text = v2_cases()[case]
    answer = server.ask("/v2/models/tiny/infer", json.dumps(asked), JSON)
    assert (answer.status, list(answer.json)) == (400, ["error"])
    assert text in answer.json["error"]


@pytest.mark.parametrize("length", ["-1", "x", "99999999999999", "0" * 12 + "9999", ""])
def test_a_wrong_length_of_the_json_is_refused(server: Server, length: str) -> None:
    asked = tensor_request(np.zeros((1, 3, 32, 32)), data=None, parameters={"binary_data_size": 0})
    body = json.dumps(asked).encode().ljust(999)
    body = body.replace(b'size": 0', b'size": -9000')  # what is left behind a length of 9999
    answer = server.ask("/v2/models/tiny/infer", body, {"Inference-Header-Content-Length": length})
    assert answer.status == 400


WRONG_COMMANDS = {
    "no file": ((), 2, "say which files to serve"),
    "two of one name": (("a/best.onnx", "b/best.xml"), 2, "two files are named best: a/best.onnx and b/best.xml"),
    "a name with a slash": (("a b.onnx",), 2, "say NAME=a b.onnx"),
    "a file that is not there": (("none.onnx", "--port", "0"), 1, "none.onnx"),
    "a certificate alone": (("a.onnx", "--tls-cert", "c.pem"), 2, "--tls-key FILE"),
    "certificates that are none": (("a.onnx", "--tls-cert", "c.pem", "--tls-key", "k.pem"), 1, "c.pem with k.pem"),
    "no token": (("a.onnx", "--token-file", "empty"), 1, "must hold a token"),
    "no file of a token": (("a.onnx", "--token-file", "gone"), 1, "the token can't be read: gone"),
    "another's port": (("a.onnx", "--port", "TAKEN"), 1, "can't be served"),
    "no address": (("a.onnx", "--host", "256.0.0.1"), 1, "can't be served"),
    "no name of a host": (("a.onnx", "--host", "a..b"), 1, "a..b:8000 can't be served"),
    "no place": (("a.onnx", "--queue", "0"), 2, "--queue"),
}


@pytest.mark.parametrize("case", WRONG_COMMANDS)
def test_a_wrong_command_ends_with_one_line(
    server: Server, case: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").write_text("\n")
    words, code, text = WRONG_COMMANDS[case]
    with pytest.raises(SystemExit) as end:
        main(["serve", *(str(server.port) if word == "TAKEN" else word for word in words)])
    err = capsys.readouterr().err
    assert (end.value.code, err.count("\n")) == (code, 1)
    assert text in err


def test_a_file_of_tiles_is_served_as_predict_uses_it(weights: Path, tmp_path: Path) -> None:
    detector, metadata = load_model(weights)
    tiled = weights.parent / "tiled.safetensors"
    save_weights(tiled, detector.state_dict(), {**metadata, "tile": {"size": 96, "overlap": 0.2, "visible": 0.5}})
    with ThreadPoolExecutor(2) as decoders:
        served = Served("tiled", str(tiled), 4, Metrics(), decoders)
        contents = [png(150, 250), b"", png(90, 80)]
        answers = served.predict(contents)
    assert [each["detections"] for each in answers[::2]] == [
        rows_of(served.model, content, tmp_path) for content in contents[::2]
    ]
    assert (answers[0]["width"], answers[0]["height"], answers[1].status_code) == (250, 150, 400)
    assert answers[0]["detections"]
    assert served.inputs_of(150, 250) == 8
    with pytest.raises(HTTPException, match="413: the image would be cut into 6241 tiles; 500 is the most"):
        served.inputs_of(6000, 6000)
    assert v2.description(served)["tile"]["size"] == 96
