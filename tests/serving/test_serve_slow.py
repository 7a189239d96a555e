"""How the server ends, what it bears, and what other programs make of it."""

import json
import signal
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from serve_process import Server, eventually, png, serving, write_gated_weights

from commands import start

pytestmark = pytest.mark.slow

CLIENTS = Path(__file__).parents[2] / ".venv-clients"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gated_weights(tmp_path_factory.mktemp("served"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_at_the_end_all_that_was_accepted_is_answered_and_the_port_is_free(weights: Path, number: int) -> None:
    with serving(weights.parent, weights, "--queue", 4) as server:
        eventually(lambda: any("open to all" in line for line in server.lines))
        idle = server.connection("GET /v2 HTTP/1.1")
        with server.held():
            later = [server.later("/predict", png(40, 60, seed)) for seed in range(4)]
            server.waits(4)
            server.process.send_signal(number)
            eventually(lambda: not is_open(server.port))
            assert server.process.poll() is None
            assert idle.recv(1) == b""
        assert [each.result().status for each in later] == [200] * 4
        assert server.process.wait(60) == 0
        with socket.create_server(("127.0.0.1", server.port)):
            pass
        eventually(lambda: server.lines[-1] == "ended; all that was accepted is answered\n")


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_second_server_on_the_port_says_so_in_one_line(weights: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        process = start("serve", weights, "--port", other.getsockname()[1])
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.count("\n") == 1
    assert "is it in use? Say --port NUMBER" in err


def test_a_second_ctrl_c_waits_for_no_client(weights: Path) -> None:
    head = ("POST /predict HTTP/1.1", "Host: a", "Content-Length: 9", "Expect: 100-continue", "")
    with serving(weights.parent, weights) as server, server.connection(*head) as half:
        assert half.recv(1000).startswith(b"HTTP/1.1 100")
        for _ in range(2):
            server.process.send_signal(signal.SIGINT)
            eventually(lambda: not is_open(server.port))
        assert half.recv(1000).startswith(b"HTTP/1.1 503")
        assert server.process.wait(60) == 0


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[Server]:
    with serving(weights.parent, weights, "--queue", 8, "--max-batch", 100) as server:
        yield server


def test_idle_and_slow_connections_cost_nothing_and_are_closed(server: Server) -> None:
    idle = [server.connection() for _ in range(1000)]
    heads = [server.connection("POST /predict HTTP/1.1", "Host: a") for _ in range(100)]
    slow = [server.connection("POST /predict HTTP/1.1", "Host: a", "Content-Length: 99", "") for _ in range(100)]
    for _ in range(5):
        assert server.ask("/predict", png(40, 60)).status == 200
        for each in heads:
            each.sendall(b"X: y\r\n")
        for each in slow:
            each.sendall(b".")
    assert server.value("yoloyard_queue_requests") == 0
    zeros = {"name": "images", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": [0] * 3072}
    large = json.dumps({"id": "x" * 9_000_000, "inputs": [zeros]}).encode()
    head = ("POST /v2/models/tiny/infer HTTP/1.1", "Host: a", "Connection: close", f"Content-Length: {len(large)}", "")
    waits = server.connection(*head, body=large)
    assert waits.recv(1000).startswith(b"HTTP/1.1 200")
    with server.held():
        image = png(40, 60)
        first, second = ("GET /v2 HTTP/1.1", "Host: a", ""), ("POST /predict HTTP/1.1", "Host: a")
        together = server.connection(*first, *second, f"Content-Length: {len(image)}", "", body=image)
        answer = b""
        while not answer.endswith(b"}"):  # its body may come after its head
            answer += together.recv(1000)
        assert answer.startswith(b"HTTP/1.1 200")
        for each in idle + heads:
            assert each.recv(1) == b""
        for each in slow:
            assert each.recv(1000).startswith(b"HTTP/1.1 408")
    assert sum(map(len, iter(lambda: waits.recv(2**20), b""))) > 9_000_000  # though it was not read for half a minute
    assert together.recv(1000).startswith(b"HTTP/1.1 200")  # though it came with another one, and took long
    assert server.ask("/predict", png(40, 60)).status == 200


def test_memory_stays_bounded_where_more_comes_than_can_be_computed(server: Server) -> None:
    body = png(40, 60) + bytes(10_000_000)
    assert server.ask("/predict", body).status == 200
    process = psutil.Process(server.process.pid)
    before, most = process.memory_info().rss, 0
    with server.held(), ThreadPoolExecutor(30) as clients:
        waiting = [server.later("/predict", body) for _ in range(8)]
        server.waits(8)
        for answer in clients.map(lambda _: server.ask("/predict", body), range(60)):
            assert answer.status == 429
            most = max(most, process.memory_info().rss)
    assert all(each.result().status == 200 for each in waiting)
    assert most - before < 300_000_000  # of 600 MB that were sent


def test_with_certificates_it_speaks_https_alone(weights: Path, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = f"-addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {cert}"
    subprocess.run(f"{make} {names}".split(), check=True, capture_output=True)
    with serving(weights.parent, weights, "--tls-cert", cert, "--tls-key", key) as server:
        assert f"https://127.0.0.1:{server.port}/" in server.lines[0]
        trusted = ssl.create_default_context(cafile=cert)
        request = urllib.request.Request(f"https://127.0.0.1:{server.port}/predict", png(40, 60))
        with urllib.request.urlopen(request, context=trusted) as answer:
            assert b'"detections"' in answer.read()
        with pytest.raises(OSError, match=r"."):
            server.ask("/v2")


TRITON = """
import sys
import numpy as np
import tritonclient.http as http

client = http.InferenceServerClient(f"127.0.0.1:{sys.argv[1]}")
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny")
assert client.get_server_metadata()["name"] == "yoloyard"
assert client.get_model_metadata("tiny")["inputs"][0]["name"] == "images"
images = np.random.default_rng(0).random((2, 3, 96, 96), dtype=np.float32)
found = []
for binary in (True, False):
    tensor = http.InferInput("images", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images, binary_data=binary)
    wanted = [http.InferRequestedOutput(name, binary_data=binary) for name in ("boxes", "scores")]
    for outputs in (wanted, None):
        answer = client.infer("tiny", [tensor], outputs=outputs, request_id="5")
        assert answer.get_response()["id"] == "5"
        found.append([answer.as_numpy(name) for name in ("boxes", "scores")])
for boxes, scores in found:
    assert boxes.shape == (2, 153, 4) and scores.shape[:2] == (2, 153)
    assert np.array_equal(boxes, found[0][0]) and np.array_equal(scores, found[0][1])
too_many = http.InferInput("images", [101, 3, 96, 96], "FP32")
too_many.set_data_from_numpy(np.zeros((101, 3, 96, 96), np.float32))
try:
    client.infer("tiny", [too_many])
except http.InferenceServerException as error:
    assert "a batch of 101 is too large" in str(error), error
else:
    sys.exit("no error")
print("done")
"""


@pytest.mark.skipif(not (CLIENTS / "installed").exists(), reason="make .venv-clients/installed could not install it")
def test_tritonclient_understands_it(server: Server) -> None:
    command = [str(CLIENTS / "bin" / "python"), "-c", TRITON, str(server.port)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "done\n", done.stderr
