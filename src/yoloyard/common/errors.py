"""Errors for the user: one clear line, no traceback."""

import linecache
import traceback

USER_MODULE = "custom_model_"  # module names of user files begin so


class UserError(Exception):
    """A failure that the user can fix. The command line prints the message and exits with 1."""

    exit_code = 1

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback (IPython's hook): the message."""
        return [str(self)]


class UsageError(UserError):
    """The command, a flag or a config value is wrong. The command line prints the message and exits with 2."""

    exit_code = 2


class TooLittleMemoryError(UserError):
    """The memory is too small even for a single image. All processes of a run raise it at the same step."""


class SilentError(UserError):
    """This process ends because another one failed, or all were asked to end; that one shows the message."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class DivergedError(UserError):
    """A training went wrong by itself: its loss or gradient is not finite, or grows without end. All is saved."""


def user_line(error: BaseException, file: str | None = None) -> str:
    """Where in a user file, or in `file`, an error was raised: "file, line 12 (`x = f(y)`)"; empty if in neither."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno} (`{(error.text or '').strip()}`)"
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        is_custom = str(frame.f_globals.get("__name__")).startswith(USER_MODULE)
        if is_custom or frame.f_code.co_filename == file:
            code = linecache.getline(frame.f_code.co_filename, line).strip()
            place = f"{frame.f_code.co_filename}, line {line} (`{code}`)"
    return place


def memory_line(error: BaseException) -> str:
    """The message for an error from too little memory, of a device or of the host; empty for any other error.

    torch has a class for the errors of its allocators on accelerators. The libraries below it, MPS and the CPU's
    allocator raise a RuntimeError, of which only the text says it.
    """
    text = " ".join(str(error).split())
    lower = text.lower()
    names = [kind.__name__ for kind in type(error).__mro__]
    marks = ("out of memory", "not enough memory", "insufficient memory", "can't allocate memory", "alloc_failed")
    if "OutOfMemoryError" in names or ("RuntimeError" in names and any(mark in lower for mark in marks)):
        place = "host" if "defaultcpuallocator" in lower else "device"
    elif "MemoryError" in names or (type(error).__module__ == "cv2" and "insufficient memory" in lower):
        place = "host"
    else:
        return ""
    return f"the {place} has too little memory: lower --batch or --imgsz ({text or type(error).__name__})"


def no_image_fits(error: str, remedy: str = "lower --imgsz, take a smaller --model or --checkpoint-activations") -> str:
    """The message where memory is too small even for a single image; `error` is what the device says."""
    return f"the device has too little memory, even for one image at a time: {remedy} ({' '.join(error.split()):.300})"


def alert_line(message: str, evidence: str | None, remedy: str | None) -> str:
    """An alert in a line: what is wrong, what shows it, what to do."""
    said = f"{message} ({evidence})" if evidence else message
    return f"{said}; {remedy}" if remedy else said


def printable(text: str) -> str:
    """Foreign text with all characters escaped that could move a terminal's cursor or hide something."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def last_line(text: str) -> str:
    """The last line that isn't empty, safe to print."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable(lines[-1]) if lines else ""
