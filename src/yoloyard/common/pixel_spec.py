"""How the files of a data set become images: channels, bits, window, and files that belong together."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np


@dataclass(frozen=True)
class PixelSpec:
    """What the network's images are made of; a weights file keeps it under the key `pixels`.

    Images are arrays (H, W, channels), of 3 channels RGB. With 8 bits they are uint8; with 16 bits uint16, and values
    of whatever depth the camera has are stretched over 0..65535, so that 255 and 65535 mean the same brightness.
    """

    channels: int = 3
    bits: int = 8  # of the pixels in memory: 8 or 16
    # The values that become darkest and brightest: those of the files, or, where `percent`, percentiles of each image.
    window: tuple[float, float] | None = None
    percent: bool = False
    # Several files make one image, a channel each: what stands for the first one's in the names of the others'.
    files: tuple[str, ...] = ()

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """The type of the pixels."""
        return np.uint8 if self.bits == 8 else np.uint16

    @property
    def largest(self) -> int:
        """The brightest value: 255 or 65535."""
        return 2**self.bits - 1

    @property
    def text(self) -> str:
        """For users, such as `1 channel of 16 bits, window 0 to 4095`."""
        text = "RGB" if self.has_colours else "1 channel" if self.channels == 1 else f"{self.channels} channels"
        text += f" of {self.bits} bits" + (f", a channel from each of {', '.join(self.files)}" if self.files else "")
        sign = "%" if self.percent else ""
        return text + (", window {:g}{sign} to {:g}{sign}".format(*self.window, sign=sign) if self.window else "")

    @property
    def has_colours(self) -> bool:
        """Are the channels red, green and blue, and not three lights?"""
        return self.channels == 3 and not self.files

    @property
    def takes_colours(self) -> bool:
        """Can colours be made into such an image? Of one channel they become grey."""
        return self.channels == 1 or self.has_colours

    def image_bytes(self, height: Any, width: Any) -> Any:
        """Bytes of an image of so many pixels, or of several, by arrays of heights and of widths."""
        return height * width * self.channels * self.bits // 8

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Self:
        """That of a weights file with this metadata; files without one were made for 8 bits."""
        kept = {"channels": metadata.get("channels", 3), **metadata.get("pixels", {})}
        window = kept.get("window")
        kept |= {"window": window and tuple(window), "files": tuple(kept.get("files", ()))}
        return cls(**kept)


EIGHT_BITS = PixelSpec()  # colours of 8 bits, which most images have
