"""What can be wrong with a data set: one line for a person, with the file and, where there is one, the line."""

from __future__ import annotations

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
    "copy in another split": True,  # the same bytes, or the same picture in another size, quality or mirrored
    "label twice": False,
    "label without image": False,
    "image without label": False,
}


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
