"""How processes and devices share the work of a step (`--strategy`): a file each."""

import logging

from yoloyard.common.device import Precision, choose_devices
from yoloyard.config.settings import TrainConfig
from yoloyard.models.detector import Detector
from yoloyard.training.distributed.collectives import Team
from yoloyard.training.strategies.alone import Strategy
from yoloyard.training.strategies.ddp import Ddp
from yoloyard.training.strategies.placement import Placement, ends_of, kept_bytes

log = logging.getLogger(__name__)


def check_strategy(config: TrainConfig, model: Detector) -> None:
    """Raise UsageError if the strategy of `config` can't train `model`."""
    if config.strategy == "placement":
        ends_of(list(kept_bytes(model).values()), len(choose_devices(config.device)))
    if config.strategy == "fsdp" and config.processes > 1:
        from yoloyard.training.strategies.fsdp import check_shardable  # whose import takes half a second

        check_shardable(model)
    if config.strategy == "pipeline" and config.processes > 1:
        from yoloyard.training.strategies.pipeline import check_cuttable

        check_cuttable(config, model)


def build_strategy(
    config: TrainConfig, model: Detector, team: Team, precision: Precision, may_leave_out: bool
) -> Strategy:
    """The strategy of `config` for a `model` that lies on its device.

    `may_leave_out`: a forward may leave out parameters.
    """
    if config.strategy == "placement":
        return Placement(model, choose_devices(config.device))
    if team.size == 1:
        if config.strategy == "fsdp":
            log.info("--strategy fsdp: there is nothing to shard in one process; it trains as without")
        return Strategy(model)
    if config.strategy == "pipeline":
        from yoloyard.training.strategies.pipeline import Pipeline

        return Pipeline(config, model, team, precision)
    if config.strategy == "fsdp":
        from yoloyard.training.strategies.fsdp import Fsdp

        return Fsdp(model, team, precision, config.cpu_offload)
    return Ddp(model, team, may_leave_out, config.compress_gradients)
