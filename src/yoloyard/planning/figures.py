"""What the parts of a plan hand to each other. Each figure is measured, traced or modelled."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["measured", "traced", "modelled"]
Precision = Literal["float32", "amp"]


@dataclass(frozen=True)
class StepCost:
    """One training step of one device with `images` images, traced from the network without the device."""

    images: int  # of the micro-batch
    precision: Precision
    recomputed: bool  # --checkpoint-activations
    parameters: int
    flops: float  # forward and backward; a multiplication with its addition counts as two
    bytes_moved: float  # read and written by all operators
    operators: int  # that a device is asked for, one after the other
    weights_bytes: int
    gradients_bytes: int  # also what an all-reduce exchanges
    optimizer_bytes: int
    average_bytes: int
    activations_bytes: int  # saved for the backward pass
    peak_bytes: int  # all of these and what operators need beside, at the worst moment of the step
    held_bytes: int  # of the peak, what is there before the step begins: weights, average, optimizer, batch


@dataclass(frozen=True)
class Gpu:
    """A row of gpus.toml, or a processor (`gpus.cpu_device`), which has no capability."""

    name: str
    memory: float  # bytes
    bandwidth: float  # bytes a second
    flops: dict[str, float]  # dense, a second, by float32, tf32, float16, bfloat16
    capability: str  # compute capability: "8.6"; "" for a processor
    link: float = 32e9  # bytes a second to another GPU of the same host, in one direction


@dataclass(frozen=True)
class Estimate:
    """How a job runs on `count` GPUs of each of `nodes` hosts."""

    gpu: Gpu
    count: int
    nodes: int
    micro_batch: int  # the largest that fits; 0: none does
    recomputed: bool  # whether it needs --checkpoint-activations
    peak_bytes: int  # of a step with what is used of it
    steps: int
    images_per_second: float
    hours: float  # of the whole run, with validation
    bound: str  # what limits it: arithmetic, memory, launches, loader, exchange
    kind: Kind  # modelled, or measured where a calibration of this GPU corrects it


@dataclass(frozen=True)
class Offer:
    """Hosts that somebody rents out, by the hour."""

    provider: str
    region: str
    instance: str
    gpu: str  # a name of gpus.toml
    count: int  # GPUs of a host
    cores: int
    price: float | None  # dollars an hour of one host; None: unknown
    spot: bool
    dated: str | None  # of the price, ISO 8601
    doubts: tuple[str, ...] = ()  # what is odd about the price
