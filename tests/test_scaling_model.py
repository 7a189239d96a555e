"""benchmarks/scaling_model.py: what the model of many GPUs says follows from its formulas."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from scaling_model import NVLINK_BYTES_PER_SECOND, Work, buckets, exchange_seconds, rows, step_seconds, work_of

from commands import TINY_NETWORK
from yoloyard.models import registry

WORK = Work(parameters=50_000_000, flops=2e11, kept_bytes=8e8, operations=900)
NETWORK = 25e9 / 8


def test_one_gpu_exchanges_nothing_and_more_gpus_do_less_each() -> None:
    assert step_seconds(WORK, 16, 1, NETWORK) == WORK.seconds(16)
    seconds = [step_seconds(WORK, 16, gpus, NETWORK) for gpus in (1, 8, 64, 512)]
    assert seconds == sorted(set(seconds))
    assert step_seconds(WORK, 16, 64, NETWORK, gradient_bytes=2) < seconds[2]
    assert step_seconds(WORK, 16, 64, 16 * NETWORK) < seconds[2]


def test_a_ring_of_n_sends_2_times_n_minus_1_of_n_parts_of_the_bytes() -> None:
    size = 1e9
    more = exchange_seconds(2 * size, 8, NETWORK) - exchange_seconds(size, 8, NETWORK)  # without latency
    assert more == pytest.approx(2 * 7 / 8 * size / NVLINK_BYTES_PER_SECOND)
    between = exchange_seconds(2 * size, 64, NETWORK) - exchange_seconds(size, 64, NETWORK) - more
    assert between == pytest.approx(2 * 7 / 8 * size / NETWORK)
    assert sum(buckets(4 * WORK.parameters)) == 4 * WORK.parameters


def test_a_small_share_costs_no_less_than_its_launches() -> None:
    assert WORK.seconds(1) < WORK.seconds(16) == WORK.seconds(8) * 2
    assert Work(1, 1.0, 1.0, operations=900).seconds(1) == Work(1, 1.0, 1.0, operations=900).seconds(2) > 0


def test_what_a_network_asks_for_is_traced_and_a_batch_above_the_nominal_one_is_marked() -> None:
    work = work_of(TINY_NETWORK, 64)
    assert work.parameters == sum(map(torch.numel, registry.build(TINY_NETWORK, num_classes=80).parameters()))
    assert min(work.flops, work.kept_bytes, work.operations) > 0
    assert [row[2] for row in rows(work)] == ["16", "128 *", "1024 *", "8192 *", "64", "64", "64", "64"]
