"""What can be wrong with a data set: one line for a person, with the file and, where there is one, the line."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

# Kind: is it an error (else a warning), and how the table calls it.
KINDS = {
    "split unusable": True,  # no folder, no images, none that can be used, or not a single box
    "image missing": True,
    "image unreadable": True,
    "image too small": True,
    "image size differs": True,  # from the size that its labels were made for
    "label unreadable": True,
    "label malformed": True,
    "label outside the image": True,
    "box without area": True,
    "class unknown": True,
    "label of two images": True,  # of a.jpg and a.png
    "duplicate across splits": True,  # the same bytes, or the same image in another size, quality or mirrored
    "label twice": False,
    "label with score": False,
    "label with keypoints": False,  # as it seems: nothing says so
    "label without image": False,
    "image without label": False,
    "passed over": False,  # files and folders that a search for images leaves out
}


SHOWN_ERRORS = 5


@dataclass(frozen=True)
class Problem:
    """Something wrong in a data set."""

    kind: str  # one of KINDS
    where: str  # a file, or file:line
    what: str  # the reason
    effect: str = ""  # "image skipped", "row left out", or nothing

    @property
    def is_error(self) -> bool:
        """Errors make `yoloyard data check` fail and `--strict` stop; warnings don't."""
        return KINDS[self.kind]

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"; {self.effect}" if self.effect else "")


def summary(problems: Sequence[Problem]) -> list[str]:
    """Lines for the console: the first errors, how many more there are, and one line for each kind of warning."""
    errors = [problem for problem in problems if problem.is_error]
    lines = [str(problem) for problem in errors[:SHOWN_ERRORS]]
    if len(errors) > SHOWN_ERRORS:
        lines.append(f"... and {len(errors) - SHOWN_ERRORS} more; the report lists them")
    warnings = [problem for problem in problems if not problem.is_error]
    first = {problem.kind: problem for problem in reversed(warnings)}
    counts = Counter(problem.kind for problem in warnings)
    return lines + [f"{kind}: {count}; the first: {first[kind]}" for kind, count in counts.items()]
