"""OpenVINO's IR, a .xml file with its .bin beside it, made from the ONNX file."""

from pathlib import Path

from yoloyard.common.files import fill_folder
from yoloyard.export.calibration import calibration_images
from yoloyard.export.int8 import float_onnx, quantise_openvino
from yoloyard.export.job import Job
from yoloyard.runtimes.extras import needed
from yoloyard.runtimes.metadata import KEY


def write(job: Job) -> Path:
    """Write the IR in float32, with weights that are kept in float16 (`--half`), or in 8 bits, and return its .xml.

    Raises UserError for a missing package or a full disk, and what `onnx_file.write` and `quantise_openvino` raise.
    """
    openvino = needed("openvino", "openvino")
    precision = "int8" if job.config.int8 else job.precision
    path = job.path(".xml", precision)
    with float_onnx(job) as float_file:
        # OpenVINO keeps weights in float16 by itself; the arithmetic is chosen where it runs
        model = openvino.convert_model(float_file)
        if job.config.int8:
            model = quantise_openvino(model, float_file, job, calibration_images(job))
        for each in model.get_ops():
            if each.get_type_name() == "TopK":
                each.set_attribute("stable", True)  # of equal scores the first one counts, as in `predict`
        model.set_rt_info(job.document(precision), [KEY])

        def save(folder: Path) -> None:
            openvino.save_model(model, folder / path.name, compress_to_fp16=job.config.half)

        fill_folder(path.parent, save)
    return path
