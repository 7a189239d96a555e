"""Is this machine fit to train? Facts come from `machines.environment`. Each file here judges one subject."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "problem", "skipped"]


@dataclass(frozen=True)
class Finding:
    """`problem`: training fails or computes wrongly. `warning`: it works, but slowly or not for long.

    `skipped`: could not be looked at here; `evidence` says why.
    """

    check: str  # a stable name in lower case with dashes: "driver-too-old"
    title: str  # what was looked at, for people: "NVIDIA driver and CUDA runtime"
    verdict: Verdict
    evidence: str  # what was seen, with numbers: "driver 535.183.01 serves CUDA 12.2; torch was built for 13.0"
    remedy: str = ""  # the one command, tag or step that fixes it; empty where nothing is to be done
