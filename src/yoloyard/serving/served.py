"""A model as the server has it: what computes a batch of images, or of tensors, and answers with the same bits."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from starlette.exceptions import HTTPException

from yoloyard.commands.model import Model
from yoloyard.commands.predict import json_rows
from yoloyard.common.errors import UsageError, UserError
from yoloyard.common.structures import Detections, ImageTransform
from yoloyard.common.tiles import tile_boxes
from yoloyard.data.pixels.decode import decode_image
from yoloyard.runtimes.metadata import BOXES, DETECTIONS, SCORES
from yoloyard.runtimes.network import Network
from yoloyard.runtimes.runtime import Runtime
from yoloyard.serving.limits import IMAGE_TILES
from yoloyard.serving.metrics import Metrics

SENT = Path("that was sent")  # an image's name in the messages of the decoder

Boxed = tuple[np.ndarray, ImageTransform]


class Served:
    """A model with its name; all computing is done in the calling thread and in `decoders`."""

    def __init__(
        self,
        name: str,
        file: str,
        max_batch: int,
        metrics: Metrics,
        decoders: ThreadPoolExecutor,
        suppression: str | None = None,
    ) -> None:
        self.name, self.model = name, Model(file, suppression=suppression)
        if files := self.model.pixels.files:
            line = f"{file} takes images of {len(files)} files each, and a request has one"
            raise UserError(f"{line}: use yoloyard.load, or predict")
        self.platform = f"yoloyard_{Path(file).suffix[1:]}"
        self.max_batch = min(max_batch, self.model.network.max_batch or max_batch)
        self._metrics, self._decoders = metrics, decoders
        network = self.model.network
        self.computes_at_once = network.device.type != "cpu" and not isinstance(network, Network)
        self._same_bits: dict[Any, bool] = {}  # by shape of an image and number of them
        blank = np.zeros((64, 64, self.model.pixels.channels), self.model.pixels.dtype)
        self.detect_boxed([self._boxed(blank)])  # the first one is slow

    @property
    def output_shapes(self) -> dict[str, list[int]]:
        """The names of the network's outputs, and their shapes; -1: any number."""
        if self.model.metadata.get("file", {}).get("outputs") == "nms":
            return {DETECTIONS: [-1, -1, 6]}
        return {BOXES: [-1, -1, 4], SCORES: [-1, -1, len(self.model.names)]}

    def inputs_of(self, height: int, width: int) -> int:
        """How many inputs of the network an image of this size is cut into. Raises HTTPException for too many."""
        inputs = len(tile_boxes(height, width, self.model.tile)) if self.model.tile else 1
        if inputs > IMAGE_TILES:
            raise HTTPException(413, f"the image would be cut into {inputs} tiles; {IMAGE_TILES} is the most")
        return inputs

    def predict(self, images: Sequence[bytes]) -> list[Any]:
        """The answer to each image file, or what is wrong with it."""
        prepared = list(self._decoders.map(self._prepare, images))
        found = iter(self.detect_boxed([each for each in prepared if not isinstance(each, HTTPException)]))
        return [each if isinstance(each, HTTPException) else self._answer(each[1], next(found)) for each in prepared]

    def detect_boxed(self, boxed: Sequence[Boxed]) -> list[Detections]:
        """Detections of each image that `_boxed` gave, with the bits that it has alone.

        On a CPU one image after the other: a batch takes more memory and no less time. Elsewhere an exported file may
        round otherwise in a batch: the first one of each shape and number of images is computed both ways, and only
        where all bits are equal are such batches computed at once. torch rounds the sigmoid of a score by how many
        scores there are, so its weights files never do.
        """
        if self.model.tile:
            return [self.model.find(image) for image, _ in boxed]
        shapes = {image.shape for image, _ in boxed}
        if len(boxed) < 2 or len(shapes) > 1 or not self.computes_at_once:
            return [self.model.detect([each])[0] for each in boxed]
        kind = (*shapes, len(boxed))
        if kind not in self._same_bits:
            self._same_bits[kind] = has_same_bits(self.model.network, [image for image, _ in boxed])
        return self.model.detect(boxed) if self._same_bits[kind] else [self.model.detect([each])[0] for each in boxed]

    def infer(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The network's outputs, float32, for images float32 (B, channels, H, W)."""
        outputs = self.model.network.outputs(torch.tensor(images))
        return {name: output.float().cpu().numpy() for name, output in outputs.items()}

    def _prepare(self, data: bytes) -> Boxed | HTTPException:
        try:
            return self._boxed(decode_image(SENT, data=data, pixels=self.model.pixels))
        except UserError as error:
            return HTTPException(400, str(error))

    def _boxed(self, image: np.ndarray) -> Boxed:
        """An image as `detect_boxed` takes it: letterboxed; whole where the model cuts it into tiles."""
        if self.model.tile:
            height, width = image.shape[:2]
            return image, ImageTransform(height, width, 1, 1, 0, 0)
        return self.model.letterboxed(image)

    def _answer(self, transform: ImageTransform, found: Detections) -> dict[str, Any]:
        rows = json_rows(found, self.model.names)
        self._metrics.count_scores(self.name, rows)
        size = {"width": transform.original_width, "height": transform.original_height}
        return {"model": self.name, **size, "detections": rows}


@torch.inference_mode()
def has_same_bits(network: Runtime, images: Sequence[np.ndarray]) -> bool:
    """Whether `network` gives for images (H, W, channels) in one batch what it gives for each of them alone."""
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(network.device)
    multi_label = not network.suppression  # as `detect` takes them
    owners, *together = network.candidates(batch, 0.0, multi_label)
    for number in range(len(images)):
        _, *alone = network.candidates(batch[number : number + 1], 0.0, multi_label)
        mine = owners == number
        if not all(torch.equal(one[mine], other) for one, other in zip(together, alone, strict=True)):
            return False
    return True


def named_files(arguments: Sequence[str]) -> dict[str, str]:
    """The file of each model by its name: of `NAME=FILE`, else its stem. Raises UsageError for a name that won't do."""
    files: dict[str, str] = {}
    for argument in arguments:
        name, equals, file = argument.partition("=")
        if not equals or "/" in name or Path(argument).exists():
            name, file = Path(argument).stem, argument
        if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
            raise UsageError(f"{name!r} can't be a model's name in an address: say NAME={file}, of letters and digits")
        if name in files:
            raise UsageError(f"two files are named {name}: {files[name]} and {file}; name one of them, NAME={file}")
        files[name] = file
    return files
