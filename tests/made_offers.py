"""Offers, estimates and catalogs that tests make up."""

from pathlib import Path

from yoloyard.planning.figures import Estimate, Offer
from yoloyard.planning.gpus import find_gpu

HEADER = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone"


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
