"""Packages that report to their makers are kept from it: every connection and every name looked up is watched.

strace sees what threads of native code do, too, which Python's audit hook doesn't.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from commands import TINY_NETWORK
from tiny_network import Tiny
from yoloyard.common.digests import file_sha256
from yoloyard.demo.write import write_demo
from yoloyard.models.weights import save_weights

pytestmark = pytest.mark.slow

CALLS = "trace=connect,sendto,sendmsg,sendmmsg"
ADDRESS = re.compile(r'sin6?_port=htons\((\d+)\).*?(?:inet_addr\(|inet_pton\(AF_INET6, )"([^"]+)"')
HOME_SIGNS = (
    "intel",
    ".cache/Microsoft",
)  # where OpenVINO's and onnxruntime's reports keep what they have sent, or will
FIRST_REPORT_SECONDS = 15  # onnxruntime's comes after 9, by its own clock

REPORTING = {
    "onnxruntime": f"""
import onnxruntime, time
session = onnxruntime.InferenceSession("tiny.onnx", providers=["CPUExecutionProvider"])
time.sleep({FIRST_REPORT_SECONDS})
""",
    "openvino": """
import openvino
openvino.convert_model("tiny.onnx")
""",
    "nncf": """
import openvino, nncf, numpy
images = nncf.Dataset([numpy.zeros((1, 3, 8, 8), "float32")])
nncf.quantize(openvino.Core().read_model("tiny.onnx"), images, subset_size=1)
""",
}
RECEIVERS = {"onnxruntime": "events", "openvino": "google-analytics", "nncf": "google-analytics"}


@pytest.fixture(scope="module", autouse=True)
def _strace_works() -> None:
    probe = ["strace", "-qq", "-o", os.devnull, "true"]
    if shutil.which("strace") is None or subprocess.run(probe, check=False).returncode:
        pytest.skip("strace is missing, or may not trace here")


class Watched:
    """A command in a process of its own, with nothing of pytest in its environment and an empty home."""

    def __init__(self, folder: Path, *argv: str) -> None:
        kept = Path(tempfile.mkdtemp(dir=folder))
        self.home, self._log = kept / "home", kept / "calls"
        self.home.mkdir()
        self.process = subprocess.Popen(
            ["strace", "-f", "--seccomp-bpf", "-qq", "-s", "200", "-e", CALLS, "-o", self._log, sys.executable, *argv],
            cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={"PATH": os.environ["PATH"], "HOME": str(self.home), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip

    def outside(self) -> list[str]:
        """Wait for the end; the calls to other hosts, and to servers of names wherever they are."""
        said, _ = self.process.communicate(timeout=200)
        assert self.process.returncode == 0, said
        found = []
        for line in self.calls().splitlines():
            if address := ADDRESS.search(line):
                port, host = address.groups()
                if port == "53" or not (host.startswith("127.") or host in ("::1", "::ffff:127.0.0.1")):
                    found.append(line)
        return found

    def calls(self) -> str:
        """All calls up to now."""
        return self._log.read_text(errors="replace")

    def signs(self) -> list[str]:
        """What reports have left in the home."""
        return [name for name in HOME_SIGNS if (self.home / name).exists()]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, bool], Watched]]:
    """Each program of REPORTING, as it is and after `quiet()`; all at the same time, since they mostly wait."""
    value = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1, 3, 8, 8])
    found = onnx.helper.make_tensor_value_info("found", onnx.TensorProto.FLOAT, [1, 2, 8, 8])
    weights = onnx.helper.make_tensor("weights", onnx.TensorProto.FLOAT, [2, 3, 1, 1], [1.0] * 6)
    node = onnx.helper.make_node("Conv", ["images", "weights"], ["found"])
    graph = onnx.helper.make_graph([node], "tiny", [value], [found], [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    running = {}
    for name, program in REPORTING.items():
        for is_quiet in (False, True):
            folder = tmp_path_factory.mktemp(name)
            onnx.save(model, folder / "tiny.onnx")
            before = "from yoloyard.common.quiet import quiet\nquiet()\n" if is_quiet else ""
            running[name, is_quiet] = Watched(folder, "-c", before + program)
    yield running
    for each in running.values():
        each.process.kill()


@pytest.mark.parametrize("name", REPORTING)
def test_the_watch_sees_a_report_where_it_is_not_off(name: str, started: dict[tuple[str, bool], Watched]) -> None:
    assert started[name, False].outside()
    assert RECEIVERS[name] in started[name, False].calls()
    assert started[name, False].signs()


@pytest.mark.parametrize("name", REPORTING)
def test_none_is_sent_or_kept_for_later_where_it_is_off(name: str, started: dict[tuple[str, bool], Watched]) -> None:
    assert started[name, True].outside() == []
    assert started[name, True].signs() == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of the tiny network and the demo set."""
    folder = tmp_path_factory.mktemp("commands")
    data = write_demo(folder / "line", seed=3, train=8, val=4, size=96)
    source = Path(shutil.copy(TINY_NETWORK.rpartition(":")[0], folder))
    names = ["scratch", "dent", "stain", "missing_screw", "crack"]
    model = {"model": f"{source.name}:Tiny", "model_digest": file_sha256(source), "model_arguments": {"num_classes": 5}}
    metadata = {**model, "names": names, "channels": 3, "imgsz": 96, "licence": None}
    save_weights(folder / "tiny.safetensors", Tiny(5).state_dict(), metadata)
    assert data == folder / "line" / "data.yaml"
    return folder


def command(folder: Path, *words: str) -> Watched:
    """A command of yoloyard."""
    return Watched(folder, "-m", "yoloyard", *words)


def test_no_command_reports(folder: Path) -> None:
    export = ["export", "tiny.safetensors", "--to", "onnx,openvino", "--data", "line/data.yaml"]
    exports = [
        command(folder, *export, "--name", "float"),
        command(folder, *export, "--name", "int8", "--int8", "--calibration-images", "4"),
    ]
    for each in exports:
        assert (each.outside(), each.signs()) == ([], [])
    files = sorted(str(path) for kind in (".onnx", ".xml") for path in (folder / "runs").rglob(f"*{kind}"))
    assert len(files) >= 4
    uses = [command(folder, "val", "--weights", file, "--data", "line/data.yaml") for file in (files[0], files[-1])]
    uses += [command(folder, "predict", "--weights", file, "line/images/val") for file in (files[1], files[-2])]
    server = command(folder, "serve", *(f"m{number}={file}" for number, file in enumerate(files)), "--port", "0")
    assert server.process.stdout is not None
    said = ""
    while "http://" not in said:
        line = server.process.stdout.readline()
        assert line, said
        said += line
    [address] = re.findall(r"http://[\d.:]+", said)
    body = next((folder / "line" / "images" / "val").iterdir()).read_bytes()
    until = time.monotonic() + FIRST_REPORT_SECONDS
    while time.monotonic() < until:
        with urllib.request.urlopen(urllib.request.Request(f"{address}/predict?model=m0", body), timeout=60) as answer:
            assert answer.status == 200
        time.sleep(1)
    os.kill(int(subprocess.check_output(["pgrep", "-P", str(server.process.pid)])), signal.SIGTERM)
    for each in [*uses, server]:
        assert (each.outside(), each.signs()) == ([], [])
