"""How much room on the disk a run will need."""

import logging
import shutil

from yoloyard.common.log import bytes_text
from yoloyard.data.loading.image_cache import AllImages
from yoloyard.training.listeners.trackers import PREDICTION_SIDE, PREDICTIONS_SHOWN
from yoloyard.training.setup.setup import Setup

log = logging.getLogger(__name__)

MOMENTS = {"SGD": 1, "AdamW": 2}  # numbers that an optimizer keeps of each parameter; of one unknown here 2
EPOCH_BYTES = 20_000  # TensorBoard's figures of an epoch
PIXEL_BYTES = 0.4  # of a JPEG
REPORT_BYTES = 10_000_000


def needed_bytes(setup: Setup) -> dict[str, int]:
    """The bytes that a run needs at most in its folder, and for decoded images in the cache folder, by what for."""
    config = setup.config
    state = sum(value.numel() * value.element_size() for value in setup.detector.state_dict().values())
    trained = sum(4 * value.numel() for value in setup.detector.parameters() if value.requires_grad)
    moments = MOMENTS.get(config.optimization.optimizer, 2)
    accumulates = config.optimization.nbs >= 1.5 * config.batch  # then gradients may wait for an update
    checkpoint = 2 * state + (moments + accumulates) * trained
    sizes = setup.val_index.sizes[:PREDICTIONS_SHOWN].clip(max=PREDICTION_SIDE)
    drawn = int(PIXEL_BYTES * sizes.prod(axis=1, dtype=int).sum())
    tensorboard = config.epochs * EPOCH_BYTES + config.epochs // config.val_period * drawn
    copies = min(config.keep, config.epochs // config.save_period) if config.save_period else 0
    size = None if config.tile else config.imgsz  # of decoded images
    waiting = 2 if config.backup else 0  # one that is being sent to the backup, and the next one
    return {
        "checkpoints": (3 + copies + waiting) * checkpoint,  # the last, the one before, one that is being written
        "weights": 3 * state,  # the best, the last, and one that is being written
        "TensorBoard": tensorboard if config.tensorboard else 0,
        "the report": REPORT_BYTES,
        "decoded images": AllImages(setup.train_index, size).bytes if config.cache == "disk" else 0,
    }


def tell_space(setup: Setup) -> None:
    """Log what a run needs, and warn where less is free. What it has written before is counted as free."""
    needed = needed_bytes(setup)
    written = sum(path.stat().st_size for path in setup.folder.rglob("*") if path.is_file())
    in_folder, free = sum(needed.values()) - needed["decoded images"], shutil.disk_usage(setup.folder).free + written
    parts = ", ".join(f"{name} {bytes_text(value)}" for name, value in needed.items() if value)
    log.info(f"the run needs up to {bytes_text(sum(needed.values()))} of disk ({parts})")
    if free < in_folder:
        log.warning(
            f"only {bytes_text(free)} are free in {setup.folder}: make room, or keep less "
            "(--save-period 0, --keep 1, --no-tensorboard); a save that does not fit is left out, and training goes on"
        )
