"""Programs of torch itself: .pt2 (torch.export) and .torchscript, each with its metadata as an extra file."""

import io
from pathlib import Path

import torch

from yoloyard.common.files import write_whole
from yoloyard.export.graph import check_open_sizes, explained, graph_of, quiet_torch
from yoloyard.export.job import Job
from yoloyard.runtimes.metadata import KEY


def write_pt2(job: Job) -> Path:
    """Write the .pt2 file of a job. Raises UserError as `traced` does."""
    path, content = job.path(".pt2", job.precision), io.BytesIO()
    program = job.program
    with quiet_torch():
        torch.export.save(program, content, extra_files={KEY: job.document(job.precision)})
    write_whole(path, lambda temporary: temporary.write_bytes(content.getbuffer()))
    return path


@torch.no_grad()
def write_torchscript(job: Job) -> Path:
    """Write the .torchscript file of a job. Raises UserError as `traced` does."""
    path, content = job.path(".torchscript", job.precision), io.BytesIO()
    _ = job.program  # which refuses what depends on the content of images; here torch would take the way of the example
    graph, images = graph_of(job)
    with quiet_torch(), explained(job, "torch can't trace this network"):
        script = torch.jit.trace(graph, images, check_trace=False)
        check_open_sizes(job, graph, script)
    torch.jit.save(script, content, {KEY: job.document(job.precision)})
    write_whole(path, lambda temporary: temporary.write_bytes(content.getbuffer()))
    return path
