"""What can be wrong with a data set: one line for a person, with the file and, where there is one, the line."""

from collections.abc import Sequence
from dataclasses import dataclass

# Kind: is it an error (else a warning), and how the table calls it.
KINDS = {
    "split unusable": True,  # no folder, no images, none that can be used, or not a single box
    "image missing": True,
    "image unreadable": True,
    "image too small": True,
    "image size differs": True,  # from the size that its labels were made for
    "image incomplete": True,  # one of its several files is missing, damaged or unlike the first
    "channels differ": True,  # from those that the data.yaml says
    "label unreadable": True,
    "label malformed": True,
    "label outside the image": True,
    "box without area": True,
    "class unknown": True,
    "label of two images": True,  # of a.jpg and a.png
    "duplicate across splits": True,  # the same bytes, or the same image in another size, quality or mirrored
    "bits differ": False,  # between images of a split
    "colours made grey": False,
    "label twice": False,
    "label with score": False,
    "label with keypoints": False,  # as it seems: nothing says so
    "label without image": False,
    "image without label": False,
    "passed over": False,  # files and folders that a search for images leaves out
}

SHOWN_ERRORS = 5  # of a kind


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


def summary(split: str, problems: Sequence[Problem], shown: int = SHOWN_ERRORS) -> list[str]:
    """Lines for the console: of each kind how many there are, and the first `shown` errors, or the first warning."""
    lines = []
    for kind, is_error in KINDS.items():
        mine = [problem for problem in problems if problem.kind == kind]
        most = shown if is_error else 1
        lines += [f"{split}: {kind}, {len(mine)} {'time' if len(mine) == 1 else 'times'}:"] if mine else []
        lines += [f"  {problem}" for problem in mine[:most]]
        lines += [f"  ... and {len(mine) - most} more; the report lists them"] if len(mine) > most else []
    return lines
