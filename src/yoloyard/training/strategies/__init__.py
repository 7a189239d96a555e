"""How processes and devices share the work of a step (`--strategy`): a line in STRATEGIES and a file each."""

from yoloyard.common.device import Precision
from yoloyard.config.settings import TrainConfig
from yoloyard.models.detector import Detector
from yoloyard.training.distributed.collectives import Team
from yoloyard.training.strategies.alone import Strategy
from yoloyard.training.strategies.ddp import Ddp
from yoloyard.training.strategies.pipeline import Pipeline

STRATEGIES: dict[str, type[Strategy]] = {"ddp": Ddp, "pipeline": Pipeline}


def build_strategy(
    config: TrainConfig, model: Detector, team: Team, precision: Precision, may_leave_out: bool
) -> Strategy:
    """The strategy of `config` for a `model` that lies on its device.

    `may_leave_out`: a forward may leave out parameters.
    """
    if team.size == 1:
        return Strategy(model)
    if config.strategy == "pipeline":
        return Pipeline(config, model, team, precision)
    return Ddp(model, team, may_leave_out)
