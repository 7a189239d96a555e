"""Packages that report to their makers are kept from it: every connection and every name looked up is watched.

strace sees what threads of native code do, too, which Python's audit hook doesn't.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

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
        self.home, self._log = folder / "home", folder / "calls"
        self.home.mkdir()
        self.process = subprocess.Popen(
            ["strace", "-f", "--seccomp-bpf", "-qq", "-s", "200", "-e", CALLS, "-o", self._log, sys.executable, *argv],
            cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={"PATH": os.environ["PATH"], "HOME": str(self.home), "OMP_NUM_THREADS": "1"},
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
