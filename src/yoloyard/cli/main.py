"""The command line: the commands in their groups, and what an error prints. torch is imported inside the commands."""

import atexit
import functools
import gc
import io
import json
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

import cyclopts
from cyclopts import Parameter

from yoloyard.cli.arguments import normal_arguments
from yoloyard.cli.flags import exact_value
from yoloyard.common.errors import SilentError, UserError, memory_line, user_line
from yoloyard.common.files import raise_file_limit
from yoloyard.common.log import shown_lines

# `yoloyard --help` lists the commands in this order; a group without commands is not shown. The module of a command, in
# yoloyard.cli, is imported when the command is used.
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Train": {
        "train": ("train:train", "Train a detector on your images and labels."),
        "val": ("val:val", "Measure a weights file on a data set and write a report."),
        "predict": ("predict:predict", "Find objects in images, videos and camera streams."),
        "runs": ("runs:runs_app", "List the runs of a project, show one, or compare several."),
        "watch": ("runs:watch", "Show runs that are still going on a page in the browser."),
        "info": ("weights:info", "Show the layers and the cost of a model or a weights file."),
    },
    "Jobs": {
        "plan": ("plan:plan", "Say what a training needs, takes and costs on each GPU."),
        "job": ("job:job_app", "Write a job file to begin with."),
        "launch": ("launch:launch", "Start a job on another host or in a cloud, or go on with it there."),
        "jobs": ("jobs:jobs_app", "List the jobs that were launched; watch, stop or fetch one."),
    },
    "Data": {
        "data": ("data:data_app", "Check a data set, or convert it to another format."),
        "demo": ("data:demo", "Write the demo data set: images of parts, with exact boxes."),
    },
    "Weights": {
        "weights": ("published:weights_app", "List published weights and their licences, or fetch one."),
        "import": ("weights:import_weights", "Convert a .pt file of another project to a weights file."),
    },
    "Production": {
        "export": ("export:export", "Write files for other runtimes, and compare them."),
        "serve": ("serve:serve", "Answer over HTTP what `predict` would say."),
        "licence": ("licence:licence", "Say what weights came from, and under which licence."),
    },
    "Machines": {
        "doctor": ("doctor:doctor_app", "Check whether this host is fit to train."),
        "image": ("image:image_app", "Build the container images, or list them."),
        "up": ("containers:up", "Start the container of this folder, here or on another host."),
        "down": ("containers:down", "Stop the container of this folder after trainings have saved."),
        "rendezvous": ("rendezvous:rendezvous", "Hold the place where the hosts of a run meet."),
        "shell": ("containers:shell", "Open a shell in the container, or run a command there."),
        "jupyter": ("containers:jupyter", "Print the address of JupyterLab in the container."),
    },
}

app = cyclopts.App(
    name="yoloyard",
    default_parameter=Parameter(converter=exact_value),
    help="Train YOLO object detectors on your own images, in plain PyTorch.",
    help_format="plaintext",  # others import a parser of Markdown
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
)
for position, (title, commands) in enumerate(GROUPS.items()):
    group = cyclopts.Group(title, sort_key=position)
    for number, (name, (function, sentence)) in enumerate(commands.items()):
        app.command(f"yoloyard.cli.{function}", name=name, help=sentence, group=group, sort_key=number)
app["--help"].group = app["--version"].group = cyclopts.Group("Options", sort_key=len(GROUPS))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exits with 0, with 2 for wrong usage, with 1 for a failure, with 130 after Ctrl-C."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argv
    # Python looks for garbage once more when it ends, which takes a second with all of torch; it need not.
    atexit.register(gc.freeze)
    raise_file_limit()
    if {"train", "rendezvous"} & set(argv):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it asks a run to save, which has nothing to save yet
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its sockets warn of what is tried again
    warnings.filterwarnings("ignore", module=r"PIL\.")  # it prints what is odd in a file; we say what matters
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be in any encoding
    try:
        tokens = normal_arguments([argument for argument in argv if argument != "--debug"], app)
        with shown_lines(functools.partial(print, flush=True)):
            app(tokens, exit_on_error=False, print_error=False)
    except BrokenPipeError:
        sys.exit(1)  # the reader of our output has ended
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # the last resort: one line, and how to see more
        message, exit_code = explained(error)
        if debug:
            traceback.print_exc()
        if message:
            print(f"yoloyard: {message}", file=sys.stderr)
        if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # for the launcher, which tells other hosts
            Path(file).write_text(json.dumps({"message": message or str(error), "silent": not message}))
        sys.exit(exit_code)


def explained(error: BaseException) -> tuple[str, int]:
    """The line that the user reads of an error, empty if another process prints it, and the exit code."""
    if isinstance(error, cyclopts.CycloptsError):
        line, help_of = str(error), " ".join(["yoloyard", *(error.command_chain or ()), "--help"])
        if isinstance(error, cyclopts.UnusedCliTokensError):
            words = shlex.join(error.unused_tokens or ())
            line = f"not understood: {words}; a setting is written --name value or name=value"
        return f"{line} ({help_of} lists what there is)", 2
    if isinstance(error, UserError):
        return "" if isinstance(error, SilentError) else str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "stopped", 130
    if line := memory_line(error):
        return line, 1
    if "Too many open files" in str(error):  # as the system says it, or torch, which was told so
        return f"too few files may be open at once (ulimit -n): run `ulimit -n 1024` before ({error})", 1
    if place := user_line(error):
        return f"{place}: {type(error).__name__}: {' '.join(str(error).split())}", 1
    return f"{type(error).__name__}: {error} (this is unexpected; --debug shows where)", 1
