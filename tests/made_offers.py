"""Offers, estimates and catalogs that tests make up."""

from pathlib import Path

from yoloyard.planning.figures import Estimate, Offer
from yoloyard.planning.gpus import find_gpu

HEADER = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone"

GOOGLE = [  # which pays GPUs and hosts apart, in its catalog
    ",L4,1.0,,,x,0.56,0.22,us-east1,us-east1-b",
    "g2-standard-4,,,4.0,16.0,,0.15,0.05,us-east1,us-east1-b",
    "g2-standard-8,,,8.0,32.0,,0.29,0.10,us-east1,us-east1-b",
    ",T4,1.0,,,x,0.35,0.14,us-east1,us-east1-b",
    "n1-highmem-4,,,4.0,26.0,,0.01,0.01,us-east1,us-east1-b",
    "n1-standard-4,,,4.0,15.0,,0.001,0.001,us-east1,us-east1-b",  # with too little memory for SkyPilot
    ",A100,2.0,,,x,5.8,2.0,us-east1,us-east1-b",
    "a2-highgpu-2g,,,24.0,170.0,,1.5,0.4,us-east1,us-east1-b",
]


def offer(gpu: str, price: float | None, provider: str = "aws", spot: bool = False, count: int = 1) -> Offer:
    dated, instance = "2026-11-30", f"{gpu}-{count}"
    return Offer(provider, "us-east-1", instance, find_gpu(gpu).name, count, 8, price, spot, dated)


def estimate(gpu: str, hours: float, count: int = 1, nodes: int = 1, micro_batch: int = 16) -> Estimate:
    return Estimate(
        gpu=find_gpu(gpu),
        count=count,
        nodes=nodes,
        micro_batch=micro_batch,
        recomputed=False,
        peak_bytes=10**10,
        steps=1000,
        images_per_second=100.0,
        hours=hours,
        bound="arithmetic",
        kind="modelled",
    )


def write_catalog(folder: Path, cloud: str, *rows: str, header: str = HEADER) -> None:
    """Write a catalog as SkyPilot has it; `rows` as `header` says."""
    (folder / cloud).mkdir(parents=True, exist_ok=True)
    (folder / cloud / "vms.csv").write_text("\n".join([header, *rows]) + "\n")
