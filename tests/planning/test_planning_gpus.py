"""The table of GPUs makes sense, GPUs are found by all their names, and processors are modelled from what they are."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from yoloyard.common.cores import processor
from yoloyard.common.errors import UsageError
from yoloyard.machines.image.versions import code_for, tags
from yoloyard.planning.gpus import cpu_device, find_gpu, gpus, own_devices, table
from yoloyard.planning.hours import is_cpu

# float16 over float32 of a generation, both dense; those with sparsity would be twice as many
TIMES_FLOAT32 = {
    "6.0": 2, "7.0": 8, "7.5": 8, "8.0": 16, "8.6": 4, "8.9": 4, "9.0": 14.8, "10.0": 30, "10.3": 30, "12.0": 4,
}  # fmt: skip
HALVED = ("RTX2080Ti", "RTX30", "RTX40", "RTX50", "A10G", "L20", "L40")  # GeForce adds in float32 half as fast
OTHERS = {"L40S": 4, "H20": 3.4, "H100-NVL": 13.9}
ROWS = table()["gpus"].items()


@pytest.mark.parametrize("name", gpus())
def test_a_gpu_has_plausible_and_dense_figures(name: str) -> None:
    gpu = gpus()[name]
    assert 10 * 2**30 <= gpu.memory <= 288 * 2**30
    assert gpu.memory % 2**20 == 0
    assert 200e9 <= gpu.bandwidth <= 8e12
    assert 16e9 <= gpu.link <= 900e9
    ratio = gpu.flops["float16"] / gpu.flops["float32"]
    is_halved = name.startswith(HALVED) and not name.endswith("-Ada")
    times = TIMES_FLOAT32[gpu.capability] / (2 if is_halved else 1)
    assert ratio == pytest.approx(OTHERS.get(name, times), rel=0.05)
    has_bfloat16 = float(gpu.capability) >= 8
    assert ("bfloat16" in gpu.flops, "tf32" in gpu.flops) == (has_bfloat16, has_bfloat16)
    if has_bfloat16:
        assert gpu.flops["bfloat16"] == gpu.flops["float16"]
        assert gpu.flops["tf32"] == pytest.approx(gpu.flops["float16"] / 2, rel=0.02)
    assert 20 < gpu.flops["float16"] / gpu.bandwidth < 500  # a power of ten, or bits for bytes, would show


@pytest.mark.parametrize(("name", "row"), ROWS, ids=[name for name, _ in ROWS])
def test_each_figure_has_a_source_and_each_gpu_an_image(name: str, row: dict[str, object]) -> None:
    sources = table()["sources"]
    assert isinstance(row["source"], list)
    assert len(row["source"]) == 2
    assert {*row["source"]} <= sources.keys()
    assert any(code_for(str(row["capability"]), tag.architectures) for tag in tags().values())


def test_no_source_is_left_over() -> None:
    used = {key for _, row in ROWS for key in row["source"]}
    assert used | {"capability"} == table()["sources"].keys()


def test_no_name_stands_for_two_gpus() -> None:
    names = [each for name, row in ROWS for each in (name, *row["names"])]
    assert [find_gpu(each).name for each in names] == [name for name, row in ROWS for _ in (name, *row["names"])]


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("A100-80GB", "A100-80GB"),
        ("RTX4090", "RTX4090"),
        ("rtx 4090", "RTX4090"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("H100-SXM", "H100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-32GB", "V100-32GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB-PCIe"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX4070Ti-Super"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX6000-Ada"),
        ("NVIDIA RTX A6000", "RTXA6000"),
        ("Quadro RTX 6000", "RTX6000"),
        ("RTX3090-Ti", "RTX3090-Ti"),
        ("NVIDIA B300 SXM6 AC", "B300"),
    ],
)
def test_users_clouds_and_torch_call_a_gpu_differently(said: str, name: str) -> None:
    assert find_gpu(said).name == name


@pytest.mark.parametrize("said", ["RTX4O90", "GeForce RTX 4090 Laptop GPU", "RTX 4090 24G"])
def test_an_unknown_name_is_refused_and_names_the_nearest(said: str) -> None:
    with pytest.raises(UsageError, match=f"unknown GPU '{said}'; did you mean 'RTX4090'"):
        find_gpu(said)


def test_a_processor_is_modelled_from_frequency_and_instructions() -> None:
    def flops(name: str, megahertz: float, *instructions: str) -> dict[str, float]:
        facts = {"name": name, "megahertz": megahertz, "instructions": list(instructions)}
        return cpu_device(facts, 2, 8e9).flops

    assert flops("AMD EPYC 7763", 2500, "fma", "avx2") == {"float32": 160e9}
    zen4, xeon = ("fma", "avx2", "avx512f", "avx512_bf16"), ("fma", "avx2", "avx512f", "avx512_bf16", "amx_bf16")
    assert flops("AMD EPYC 9554", 2500, *zen4) == {"float32": 160e9, "bfloat16": 320e9}
    assert flops("Intel(R) Xeon(R) Platinum 8480", 2500, *xeon) == {"float32": 320e9, "bfloat16": 5120e9}
    assert flops("Neoverse-V1", 0, "asimd", "bf16") == {"float32": 80e9, "bfloat16": 160e9}


def test_a_processors_name_tells_its_instructions_and_threads() -> None:
    facts = {"name": "AMD EPYC", "megahertz": 2596.0, "instructions": ["fma", "avx2", "avx512f", "avx512_bf16"]}
    assert cpu_device(facts, 1, 8e9).name == "CPU AMD EPYC (avx512_bf16), 1 thread"
    assert cpu_device(facts, 2, 8e9).name == "CPU AMD EPYC (avx512_bf16), 2 threads"


def test_the_system_says_what_the_processor_is(tmp_path: Path) -> None:
    cores = "".join(
        f"processor\t: {number}\nmodel name\t: Xeon\ncpu MHz\t\t: {1000 + number}.5\nflags\t\t: fpu avx2 fma\n\n"
        for number in range(2)
    )
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(cores)
    assert processor(tmp_path) == {"name": "Xeon", "megahertz": 1000.5, "instructions": ["fma", "avx2"]}
    (tmp_path / "sys/devices/system/cpu/cpu0/cpufreq").mkdir(parents=True)
    (tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").write_text("3500000\n")
    assert processor(tmp_path)["megahertz"] == 3500.0


def test_this_host_has_its_gpus_and_its_processor(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    cards = [("NVIDIA GeForce RTX 4060 Ti", 8e9), ("NVIDIA GeForce RTX 4060 Ti", 8e9), ("NVIDIA Titan", 12e9)]
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(cards))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda number: SimpleNamespace(**card(*cards[number])))
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    gpu, cpu = own_devices()
    assert (gpu.name, gpu.memory) == ("RTX4060Ti-16GB", 8e9)  # the card's own memory, less than the table's
    assert (is_cpu(gpu), is_cpu(cpu)) == (False, True)
    assert cpu.memory > 2**30
    assert cpu.name.endswith(", 1 thread")  # which the user chose
    assert said == ["this host's NVIDIA Titan is not in the table of GPUs: the plan leaves it out"]


def card(name: str, total_memory: float) -> dict[str, object]:
    """What torch says of a GPU."""
    return {"name": name, "total_memory": total_memory}
