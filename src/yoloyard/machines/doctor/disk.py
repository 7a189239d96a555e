"""The disk of the data and the runs: how fast it writes and reads, and how much is free."""

import os
import shlex
import tempfile
import time
from pathlib import Path
from typing import Any

from yoloyard.machines.doctor import Finding, Verdict

SAMPLE_BYTES = 128 * 2**20
BLOCK_BYTES = 4 * 2**20
MIN_BYTES_PER_SECOND = 100e6  # some 1000 JPEG files of 100 kB, which one GPU needs for a small model
LOW_BYTES, FULL_BYTES = 10e9, 1e9  # a run keeps several checkpoints, and writes a new one beside the old one
MIN_NEW_FILES = 1000


def measure(folder: Path) -> dict[str, Any]:
    """Write and read a temporary file in `folder`: bytes a second, or the error. The file is gone afterwards."""
    block = os.urandom(BLOCK_BYTES)  # not compressible
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            begin = time.perf_counter()
            for _ in range(SAMPLE_BYTES // BLOCK_BYTES):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            written = time.perf_counter() - begin
            if hasattr(os, "posix_fadvise"):  # not on macOS; the read below then comes from memory
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            begin = time.perf_counter()
            while file.read(BLOCK_BYTES):
                pass
            read = time.perf_counter() - begin
    except OSError as error:
        return {"error": f"{folder}: {error.strerror or error}"}
    return {"error": None, "write": SAMPLE_BYTES / written, "read": SAMPLE_BYTES / read}


def check(facts: dict[str, Any]) -> list[Finding]:
    disk = facts["machine"]["disk"]
    evidence = f"{disk['free'] / 1e9:.1f} of {disk['total'] / 1e9:.1f} GB are free in {disk['folder']}"
    verdict: Verdict = "ok" if disk["free"] >= LOW_BYTES else "warning" if disk["free"] >= FULL_BYTES else "problem"
    if disk["files_free"] is not None and disk["files_free"] < MIN_NEW_FILES:
        evidence, verdict = f"{evidence}; {disk['files_free']} more files fit", "problem"
    largest = f"du -xh {shlex.quote(disk['folder'])} | sort -h | tail"
    remedy = "" if verdict == "ok" else f"find what is large with `{largest}`, or name another disk with --folder"
    return [Finding("disk-space", "disk space", verdict, evidence, remedy), _speed(facts["disk"])]


def _speed(measured: dict[str, Any] | None) -> Finding:
    check, title = "disk-speed", "disk speed"
    if measured is None:
        return Finding(check, title, "skipped", "not measured with --quick")
    if measured["error"]:
        remedy = "make the folder writable for you, or name another one with --folder"
        return Finding(check, title, "problem", f"cannot write: {measured['error']}", remedy)
    evidence = f"writes {measured['write'] / 1e6:.0f} MB/s, reads {measured['read'] / 1e6:.0f} MB/s"
    if min(measured["read"], measured["write"]) >= MIN_BYTES_PER_SECOND:
        return Finding(check, title, "ok", evidence)
    remedy = "copy the data to a local disk, or keep the images in memory: yoloyard train --cache ram"
    return Finding(check, title, "warning", f"{evidence}; a GPU needs {MIN_BYTES_PER_SECOND / 1e6:.0f} MB/s", remedy)
