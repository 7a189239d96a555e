"""The command line: the commands in their groups, and what an error prints. torch is imported inside the commands."""

from __future__ import annotations

import atexit
import functools
import gc
import io
import sys
import traceback
<<<<<<< HEAD
from collections.abc import Sequence
=======
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any
>>>>>>> data

import cyclopts
from cyclopts import Parameter

from yoloyard.cli.arguments import normal_arguments
from yoloyard.cli.flags import exact_value
from yoloyard.common.errors import SilentError, UserError, memory_line, user_line
from yoloyard.common.files import raise_file_limit
from yoloyard.common.log import shown_lines

<<<<<<< HEAD
# `yoloyard --help` lists the commands in this order; a group without commands is not shown. The module of a command, in
# yoloyard.cli, is imported when the command is used.
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Train": {
        "train": ("train:train", "Train a detector on your images and labels."),
        "val": ("val:val", "Measure a weights file on a data set and write a report."),
        "predict": ("predict:predict", "Find objects in images, videos and camera streams."),
        "info": ("info:info", "Show the layers and the cost of a model or a weights file."),
    },
    "Data": {
        "data": ("data:data_app", "Check a data set, or convert it to another format."),
        "demo": ("data:demo", "Write the demo data set: images of parts, with exact boxes."),
    },
    "Weights": {
        "import": ("weights:import_weights", "Convert a .pt file of yolov5 or ultralytics to a weights file."),
    },
    "Production": {},
    "Machines": {
        "doctor": ("doctor:doctor_app", "Check whether this host is fit to train."),
        "image": ("image:image_app", "Build the container images, or list them."),
        "up": ("containers:up", "Start the container of this folder, here or on another host."),
        "down": ("containers:down", "Stop the container of this folder after trainings have saved."),
        "shell": ("containers:shell", "Open a shell in the container, or run a command there."),
        "jupyter": ("containers:jupyter", "Print the address of JupyterLab in the container."),
    },
}
=======
_AT_LEAST_0 = cyclopts.validators.Number(gte=0)


def _exactly(kind: Any, tokens: Sequence[cyclopts.Token]) -> Any:
    """The value of a flag: a number is never rounded, and the shell leaves the `~` of `--flag=~/x` to us."""
    if kind is int:
        return whole_number(tokens[0].value)
    if kind is Path:
        return Path(os.path.expanduser(tokens[0].value))
    return cyclopts.convert(kind, tokens)


app = cyclopts.App(
    name="yoloyard",
    default_parameter=Parameter(converter=_exactly),
    help="Train YOLO object detectors on your own images, in plain PyTorch.",
    help_format="plaintext",  # others import a parser of Markdown
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
    version=lambda: _version(),  # noqa: PLW0108  # defined below
)
data_app = cyclopts.App(name="data", help="Check data sets and convert them.")
app.command(data_app)
cli_yard.register(app)
cli_local.register(app)
cli_doctor.register(app)


def _takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command(**words)` a flag for each word of the training configuration."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    flags = []
    for word in settings_of(TrainConfig).values():
        default = "" if word.default in (None, "") else f" (default: {word.default})"
        kind: Any = Annotated[word.type | None, Parameter(help=word.help + default, show_default=False)]
        flags.append(inspect.Parameter(word.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))
    parameters = [*own, *flags]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


@app.command
@_takes_settings
def train(
    *,
    config: Annotated[
        Path | None, Parameter(help="a YAML file of the words below, or an args.yaml of ultralytics; flags win over it")
    ] = None,
    resume: Annotated[str | None, Parameter(help="go on with a run folder; without one, with the newest run")] = None,
    **words: Any,
) -> None:
    """Train a detector on the images and labels of a data.yaml."""
    from yoloyard.config.foreign import translated_overrides
    from yoloyard.config.settings import checked_overrides, normal_overrides, read_overrides
    from yoloyard.training.distributed.launch import command, launch
    from yoloyard.training.distributed.parallel import is_launched
    from yoloyard.training.run import checkpoint_of, num_processes
    from yoloyard.training.run import train as run

    given = normal_overrides(TrainConfig, translated_overrides(read_overrides(config), config)) if config else {}
    given |= {name: value for name, value in words.items() if value is not None}
    if not is_launched():
        given = checked_overrides(TrainConfig, given)
        _, facts = checkpoint_of(given, resume)
        if (count := num_processes(given, facts)) > 1:
            arguments = [*command(given, resume), *(["--debug"] if "--debug" in sys.argv else [])]
            with shown_lines(lambda line: print(f"yoloyard: {line}", file=sys.stderr)):
                sys.exit(launch(count, arguments))
    run(given, resume)


@app.command
def val(
    *,
    weights: Annotated[Path, Parameter(help="a weight file")],
    data: Annotated[Path, Parameter(help="the data.yaml")],
    split: Annotated[str, Parameter(help="val, test or train")] = "val",
    imgsz: Annotated[int | None, Parameter(help="pixels; default: as in the weight file")] = None,
    batch: Annotated[int | None, Parameter(help="images that share a shape; default: as in the weight file")] = None,
    conf: Annotated[float | None, Parameter(help="lowest score; default: as in the weight file")] = None,
    iou: Annotated[float | None, Parameter(help="overlap for suppression; default: as in the weight file")] = None,
    max_det: Annotated[int | None, Parameter(help="most boxes of an image; default: as in the weight file")] = None,
    device: Annotated[str, Parameter(help="auto, cpu, cuda, 0, mps")] = "auto",
    amp: Annotated[bool | None, Parameter(help="mixed precision; default: as in the weight file")] = None,
    workers: Annotated[int, Parameter(help="processes that load images", validator=_AT_LEAST_0)] = 0,
    save_json: Annotated[bool, Parameter(help="write predictions.json in COCO's form")] = False,
    project: Annotated[Path, Parameter(help="folder of the results")] = Path("runs"),
    name: Annotated[str, Parameter(help="name of the results")] = "val",
) -> None:
    """Print the figures of a weight file on a data set and write their report."""
    from rich.console import Console
    from rich.table import Table

    from yoloyard.commands.val import validate

    _check_positive(imgsz=imgsz, batch=batch)
    found = validate(
        weights, data, split, imgsz, batch, conf, iou, max_det, device, amp, workers, save_json, project, name
    )
    table = Table("class", "images", "boxes", "precision", "recall", "mAP50", "mAP50-95")
    metrics = found.metrics
    overall = (metrics.precision, metrics.recall, metrics.map50, metrics.map50_95)
    boxes = sum(row.boxes for row in metrics.classes)
    table.add_row("all", "", str(boxes), *(f"{value:.4f}" for value in overall), style="bold")
    for row in metrics.classes:
        figures = (row.precision, row.recall, row.map50, row.map50_95)
        table.add_row(row.name, str(row.images), str(row.boxes), *(f"{value:.4f}" for value in figures))
    Console().print(table)
    print(f"report: {found.folder / 'report.html'}")


@data_app.command(name="check")
def data_check(
    data: Annotated[Path, Parameter(help="the data.yaml")],
    *,
    project: Annotated[Path, Parameter(help="folder of the results")] = Path("runs"),
    name: Annotated[str, Parameter(help="name of the results")] = "check",
) -> None:
    """List everything that is wrong with a data set, and what is in it; exits with 1 if there is an error."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from yoloyard.commands.data_check import FIRST_SHOWN, check_data, class_rows
    from yoloyard.data.audit.problems import KINDS

    check = check_data(data, project, name)
    console = Console()
    table = Table("problem", "", "split", "times", "first ones")
    for kind, is_error in KINDS.items():
        for split, problems in check.problems.items():
            mine = [problem for problem in problems if problem.kind == kind]
            if mine:
                shown = Text("\n".join(map(str, mine[:FIRST_SHOWN])), overflow="fold")
                table.add_row(kind, "error" if is_error else "warning", split, f"{len(mine):,}", shown)
    if table.row_count:
        console.print(table)
    for split, index in check.indexes.items():
        skipped = f", {index.skipped:,} that can't be used" if index.skipped else ""
        if index.ignore.any():
            skipped += f"; {index.ignore.sum():,} boxes to be ignored (crowd, difficult) are not counted"
        table = Table(
            "class", "images", "boxes", "small", "medium", "large", title=f"{split}: {len(index):,} images{skipped}"
        )
        for label, *numbers in class_rows(index):
            table.add_row(Text(label), *(f"{number:,}" for number in numbers))
        console.print(table)
    warnings = sum(map(len, check.problems.values())) - check.errors
    counts = [
        f"{number:,} {word if number == 1 else f'{word}s'}"
        for number, word in ((check.errors, "error"), (warnings, "warning"))
    ]
    print(f"{', '.join(counts)}; all of them, and images: {check.page}")
    if check.errors:
        sys.exit(1)


@app.command
def predict(
    *sources: Annotated[str, Parameter(help="images, folders, globs, videos, a camera's number, an RTSP address")],
    weights: Annotated[Path, Parameter(help="a weight file")],
    source: Annotated[list[str] | None, Parameter(help="the same as naming it without the flag")] = None,
    imgsz: Annotated[int | None, Parameter(help="pixels; default: as in the weight file")] = None,
    conf: Annotated[float | None, Parameter(help="lowest score; default: as training chose it")] = None,
    iou: Annotated[float | None, Parameter(help="overlap for suppression; default: as training chose it")] = None,
    max_det: Annotated[int | None, Parameter(help="most boxes of an image; default: as in the weight file")] = None,
    device: Annotated[str, Parameter(help="auto, cpu, cuda, 0, mps")] = "auto",
    save_txt: Annotated[bool, Parameter(help="write labels/NAME.txt: class, box, score")] = False,
    save_json: Annotated[bool, Parameter(help="write predictions.json")] = False,
    project: Annotated[Path, Parameter(help="folder of the results")] = Path("runs"),
    name: Annotated[str, Parameter(help="name of the results")] = "predict",
) -> None:
    """Find objects in images, videos and camera streams."""
    from yoloyard.commands.predict import Model, find_sources
    from yoloyard.commands.predict import predict as run
    from yoloyard.common.files import new_run_folder
    from yoloyard.evaluation.metrics.showing import Showing

    _check_positive(imgsz=imgsz)
    model = Model(weights, device, imgsz, conf, iou, max_det)
    found = find_sources([*sources, *(source or [])])
    folder = new_run_folder(project, name)
    print(f"shown: {Showing(model.settings.conf, model.settings.iou)}")
    done = run(model, found, folder, save_txt, save_json)
    print(f"{done.images} images; results in {folder}")
    if done.unreadable or done.unwritten:
        failed = f"{done.unreadable} could not be read in full, {done.unwritten} results could not be written"
        raise UserError(f"{failed}; they are named above")


@app.command
def info(
    model: Annotated[str, Parameter(help="a name, a weight file or my_model.py:build; without one, all names")] = "",
) -> None:
    """Print a model's layers, parameters, FLOPs and strides, or what a weight file says of itself."""
    from yoloyard.commands.info import describe

    describe(os.path.expanduser(model))


@app.command(name="import")
def import_weights(
    file: Annotated[Path, Parameter(help="a .pt file of yolov5 or ultralytics")],
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"], help="default: the same name, .safetensors")] = None,
) -> None:
    """Turn another project's weights into a weight file of ours. Nothing in the file is executed."""
    from yoloyard.models.importing.importers import read_checkpoint
    from yoloyard.models.weights import save_weights

    out = out or file.with_suffix(".safetensors")
    state, metadata = read_checkpoint(file)
    save_weights(out, state, metadata)
    print(f"{out}: {metadata['model']}, {len(metadata['names'])} classes; its weights are under {metadata['licence']}")


@app.command
def demo(
    folder: Annotated[Path, Parameter(help="where to write it")] = Path("demo"),
    *,
    seed: Annotated[int, Parameter(help="another seed gives other images")] = 0,
) -> None:
    """Write the demo data set: images of an inspection line, with exact boxes."""
    from yoloyard.demo.write import write_demo

    print(f"demo data: {write_demo(folder, seed)}")


@data_app.command(name="convert")
def data_convert(
    data: Annotated[Path, Parameter(help="the data.yaml")],
    out: Annotated[Path, Parameter(help="a new or empty folder")],
    *,
    to: Annotated[str, Parameter(help="the format to write: yolo, coco or voc")],
) -> None:
    """Write a data set in another format, images as hard links; what can't be used is left out and listed."""
    from yoloyard.data.formats.convert import convert
    from yoloyard.data.formats.data_yaml import read_data_yaml

    print(f"data: {convert(read_data_yaml(data), out, to)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exits with 0, with 2 for wrong usage, with 1 for a failure, with 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    # Python looks for garbage once more when it ends, which takes a second with all of torch; it need not.
    atexit.register(gc.freeze)
    raise_file_limit()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be in any encoding
    try:
        tokens = normal_arguments([word for word in words if word != "--debug"])
        with shown_lines(functools.partial(print, flush=True)):
            app(tokens, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        _fail(f"{error} (yoloyard --help lists what there is)", 2, debug)
    except SilentError as error:
        _fail("", error.exit_code, debug)
    except UserError as error:
        _fail(str(error), error.exit_code, debug)
    except KeyboardInterrupt:
        _fail("stopped", 130, debug)
    except BrokenPipeError:
        sys.exit(1)  # whoever read our output has gone
    except Exception as error:  # noqa: BLE001  # the last resort: one line, and how to see more
        if line := memory_line(error):
            _fail(line, 1, debug)
        if "Too many open files" in str(error):  # as the system says it, or torch, which was told so
            _fail(f"too few files may be open at once (ulimit -n): say `ulimit -n 1024` before ({error})", 1, debug)
        if place := user_line(error):
            _fail(f"{place}: {type(error).__name__}: {' '.join(str(error).split())}", 1, debug)
        _fail(f"{type(error).__name__}: {error} (this is unexpected; --debug shows where)", 1, debug)


SWITCH_VALUES = ("true", "false", "yes", "no")
SMALLEST = 32  # pixels; a smaller number after `--imgsz 64` is that of a camera
BARE = {"--resume": NEWEST, "--cache": "ram"}  # flags that need no value, and what they mean then


def normal_arguments(words: Sequence[str]) -> list[str]:
    """YOLO users' ways of saying things as ours: `key=value`, `_` for `-`, YOLOv5's spellings, `BARE` flags."""
    if words[:1] == ["shell"]:
        return list(words)  # another command's own words
    known = {*settings_of(TrainConfig), *ALIASES, "hyp", "config", "resume", "split", "save_txt", "save_json", "source"}
    switches = {f"--{word.name.replace('_', '-')}" for word in settings_of(TrainConfig).values() if word.type is bool}
    switches |= {"--save-txt", "--save-json"}
    normal: list[str] = []
    for word in words:
        name, equals, _ = word.partition("=")
        # `train` takes nothing but words, so that a mistyped one is told apart from a file's name elsewhere.
        if equals and not word.startswith("-") and (name.replace("-", "_") in known or words[0] == "train"):
            word = f"--{word}"
        if word.lower() in ("--resume=true", "--resume=false"):
            if word.lower() == "--resume=false":
                continue
            word = "--resume"
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            name = "config" if name == "hyp" else ALIASES.get(name, name)
            word = f"--{name.replace('_', '-')}{equals}{value}"
        if normal and word.lower() in SWITCH_VALUES and normal[-1] in switches:
            normal[-1] += f"={word}"
            continue
        is_second = " ".join(normal[-2:]).rpartition("--imgsz")[2][1:].isdecimal()
        if is_second and word.isdecimal() and int(word) >= SMALLEST:
            raise UsageError(f"--imgsz takes one number: leave out the second, {word}")
        if word.startswith("-"):
            _complete(normal)
        normal.append(word)
    _complete(normal)
    return normal


def _complete(words: list[str]) -> None:
    """Give a flag at the end of `words` the value that it has without one, if it may be said so."""
    if words and words[-1] in BARE:
        words[-1] = f"{words[-1]}={BARE[words[-1]]}"


def _check_positive(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {value}")


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    if message:
        print(f"yoloyard: {message}", file=sys.stderr)
    sys.exit(code)
>>>>>>> data


def _version() -> str:
    from yoloyard.common.versions import versions

    return versions()["yoloyard"]


app = cyclopts.App(
    name="yoloyard",
    default_parameter=Parameter(converter=exact_value),
    help="Train YOLO object detectors on your own images, in plain PyTorch.",
    help_format="plaintext",  # others import a parser of Markdown
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
    version=_version,
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
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be in any encoding
    try:
        tokens = normal_arguments([argument for argument in argv if argument != "--debug"])
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
        sys.exit(exit_code)


def explained(error: BaseException) -> tuple[str, int]:
    """The line that the user reads of an error, empty if another process prints it, and the exit code."""
    if isinstance(error, cyclopts.CycloptsError):
        return f"{error} (yoloyard --help lists what there is)", 2
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


if __name__ == "__main__":
    main()
