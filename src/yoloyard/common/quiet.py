"""Packages that report to their makers, kept from it in this process and in those that it starts."""

import os
import sys


def quiet() -> None:
    """Turn off all reports of onnxruntime, OpenVINO and nncf. Call it before each import of one of them.

    onnxruntime reads the variable as it is loaded. OpenVINO's converter and nncf report by the package
    `openvino_telemetry`, and do without it where it is not installed, which an empty entry in `sys.modules` stands for
    (https://docs.python.org/3/reference/import.html#the-module-cache). Its own switch is a file in the user's home.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
