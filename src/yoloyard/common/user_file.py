"""A name in a user file: `my_model.py:build`.

The file runs again each time, so that an edit has its effect at the next start. A run keeps a copy of the file and its
digest, so that a trained network is used with the code of its training.
"""

import hashlib
import linecache
import re
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from yoloyard.common.errors import USER_MODULE, UsageError, UserError, user_line


@dataclass(frozen=True)
class UserFile:
    """A user file and the name of a function or another object in it."""

    path: Path
    function: str
    source: bytes

    @classmethod
    def read(cls, word: str, kind: str, example: str) -> Self:
        """The file and name in `word`, the value of the flag `--kind`. Raises UsageError if there is no such file."""
        file, _, function = word.rpartition(":")
        if not function.isidentifier() or not file:
            raise UsageError(f"--{kind} {word}: say which function makes the {example}")
        path = Path(file).absolute()
        try:
            return cls(path, function, path.read_bytes())
        except OSError as error:
            raise UsageError(f"cannot read the {kind} {path}: {error.strerror or error}") from error

    @property
    def word(self) -> str:
        """Its name in the files of a run: without the folder."""
        return f"{self.path.name}:{self.function}"

    @property
    def digest(self) -> str:
        """SHA-256 of the file's content."""
        return hashlib.sha256(self.source).hexdigest()

    def load(self, kind: str) -> Any:
        """Run the file; returns the callable of that name.

        Raises UserError with the user's line if the file fails, UsageError if the name isn't there.
        """
        module = types.ModuleType(f"{USER_MODULE}{self.path.stem}")  # nothing of an earlier run is used again
        module.__file__ = file = str(self.path)
        sys.modules[module.__name__] = module  # dataclasses and pickle look their module up there
        # errors show the lines that run, not those that the file has got since
        lines = self.source.decode("utf-8", "replace").splitlines(keepends=True)
        linecache.cache[file] = (len(self.source), None, lines, file)
        try:
            exec(compile(self.source, file, "exec", dont_inherit=True), module.__dict__)
            found = getattr(module, self.function, None)
        except (Exception, SystemExit) as error:
            raise self.explained(error) from error
        if not callable(found):
            raise UsageError(f"{self.path} has no function {self.function}; say --{kind} {self.path}:NAME")
        return found

    def explained(self, error: BaseException) -> UserError:
        """The error with its line in the file."""
        reason = " ".join(str(error).split())  # torch's are long; this is one line
        return UserError(f"{user_line(error) or self.path}: {type(error).__name__}: {reason}")


def is_custom(word: str) -> bool:
    """Is this the name of a Python file, perhaps with a name in it?"""
    return re.fullmatch(r".+\.py(:\w+)?", word) is not None
