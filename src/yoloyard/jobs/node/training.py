"""The process that trains: in a session of its own, so that it outlives a keeper, and the next one finds it again."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from yoloyard.common.files import write_soon, write_whole_text
from yoloyard.common.run_folder import read_object
from yoloyard.jobs.launched import Launch

COMMAND = (sys.executable, "-m", "yoloyard")
MARK = "YOLOYARD_JOB"  # the variable that names the job's folder to all of its processes
NOTE = "training.json"
GRACE_SECONDS = 600.0  # that the copy of the last checkpoint may take, at least
SAVE_SECONDS = 600.0  # that a training may take to end a validation and save, once it is asked to


class Training:
    """A training of the job in `folder`; `process` is None where another keeper started it."""

    def __init__(self, folder: Path, pid: int, process: "subprocess.Popen[bytes] | None" = None) -> None:
        self._folder, self.pid, self._process = folder, pid, process

    @classmethod
    def running(cls, folder: Path) -> "Training | None":
        """The one that an earlier keeper has left here; None without one."""
        training = cls(folder, int(read_object(folder / NOTE).get("pid", 0)))
        return training if training.is_there() else None

    @classmethod
    def start(cls, folder: Path, launch: Launch, resume: str | None) -> "Training":
        """Begin the run, or go on with it from a run folder or the address of its copies. Raises UserError."""
        settings: dict[str, Any] = dict(launch.train) | {"project": str(folder / "runs"), "name": launch.run}
        settings["exist_ok"] = True
        if launch.backup:
            settings["backup"] = f"{launch.backup}/{launch.run}"
            settings["grace_seconds"] = max(GRACE_SECONDS, float(settings.get("grace_seconds") or 0))
        if launch.data_yaml is not None:
            write_whole_text(folder / "data.yaml", launch.data_yaml)
        write_whole_text(folder / "train.json", json.dumps(settings, indent=1))  # JSON is YAML
        arguments = ["train", f"--config={folder / 'train.json'}", *([f"--resume={resume}"] if resume else [])]
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=folder / "source",
            env=os.environ | {MARK: str(folder), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        write_soon(folder / NOTE, json.dumps({"pid": process.pid}).encode())
        return cls(folder, process.pid, process)

    def is_there(self) -> bool:
        """Does it still run?"""
        if self._process is not None:
            return self._process.poll() is None
        try:
            process = psutil.Process(self.pid)
            return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == str(self._folder)
        except psutil.Error:
            return False

    @property
    def code(self) -> int | None:
        """Its exit status once it has ended, below 0 for a signal; None where another keeper started it."""
        return None if self._process is None else self._process.poll()

    def ask_to_end(self) -> None:
        """Let it save, upload and end."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, with all that it has started. What a broken driver or disk holds is not waited for."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            for each in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            process.wait(10)
