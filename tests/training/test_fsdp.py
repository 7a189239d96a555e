"""`--strategy fsdp`: sharded weights train as whole ones do, and what can't be sharded is refused."""

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from test_processes import freeze_normalisation
from torch import Tensor, nn

from commands import TINY_NETWORK
from exhausted import limit
from on_device import ADAMW, SGD, Training, everything, some_batch
from processes import join_team, run_together
from tiny_network import Tiny
from yoloyard.common.device import Precision
from yoloyard.common.errors import UsageError, UserError
from yoloyard.config.settings import OptimizerConfig, TrainConfig
from yoloyard.demo.write import write_demo
from yoloyard.models import registry
from yoloyard.training.begin import Run, begin
from yoloyard.training.distributed.collectives import Team
from yoloyard.training.engine.compilation import compile_network
from yoloyard.training.engine.engine import Engine
from yoloyard.training.interrupt import InterruptRequest
from yoloyard.training.listeners.events import Listeners
from yoloyard.training.saving import save_for_good
from yoloyard.training.setup.settings import check_new, resumed
from yoloyard.training.setup.setup import Setup, build, new_run
from yoloyard.training.setup.starting_point import set_training_mode
from yoloyard.training.state.checkpoint import read_header, restore
from yoloyard.training.strategies.fsdp import Fsdp, check_shardable
from yoloyard.training.trainer import train_epoch
from yoloyard.training.validation import validate

CPU = torch.device("cpu")
FLOAT32 = Precision("cpu", torch.float32)
EPOCHS, BATCHES = 4, 5  # of an epoch
SAVED_AFTER = 2  # batches of the first epoch, in the middle of an update of three


class Case(NamedTuple):
    """A run that several numbers of processes make. `tolerance`: as a part of the longest way of a tensor's numbers.

    With `hosts` the processes stand for two hosts. Without `frozen` BatchNorm has the statistics of each process.
    """

    words: dict[str, Any]
    precision: str = "float32"
    tolerance: float = 1e-5
    hosts: bool = False
    frozen: bool = True


SGD_CASE = {"model": TINY_NETWORK, "optimizer": "SGD", "lr0": 0.02, "nbs": 12, "freeze": "1"}
ADAMW_CASE = {"model": TINY_NETWORK, "optimizer": "AdamW", "lr0": 0.002, "nbs": 4}
CASES = (
    Case(SGD_CASE),
    Case(ADAMW_CASE | {"amp": True}, "bfloat16", tolerance=0.1),
    Case(ADAMW_CASE | {"cpu_offload": True, "checkpoint_activations": True}),
    Case(SGD_CASE | {"model": "yolo11n"}, tolerance=1e-3),  # some of its weights hardly move
    Case(SGD_CASE | {"optimizer": "MuSGD", "lr0": 0.005}, tolerance=0.1),  # which rounds to bfloat16
)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 training images, half of them without an object: the last batch of an epoch takes two from its start."""
    data = write_demo(tmp_path_factory.mktemp("fsdp") / "line", seed=3, train=18, val=5, size=96)
    for labels in sorted((data.parent / "labels" / "train").iterdir())[::2]:
        labels.write_text("")
    return data


def run_of(case: Case, team: Team, data: str, project: str, interrupt: InterruptRequest) -> Run:
    """The new run of a case, in each of its processes."""
    words: dict[str, Any] = {
        "data": data, "imgsz": 64, "batch": 4, "epochs": EPOCHS, "amp": False, "device": "cpu", "warmup_bias_lr": 0.0,
        "warmup_epochs": 0.2, "ema_ramp": 10, "tensorboard": False, "strategy": "fsdp", "project": project,
    }  # fmt: skip
    setup: Setup | None = None
    with team.on_rank_0() as is_rank_0:
        if is_rank_0:
            setup = new_run(words | case.words, CPU, case.precision, team.size)
            setup.keep()
    shared = team.broadcast((setup.spec, setup.folder) if setup else None)
    return begun(setup or build(*shared, CPU), team, interrupt, case.frozen)


def begun(setup: Setup, team: Team, interrupt: InterruptRequest, frozen: bool = True) -> Run:
    if frozen:
        freeze_normalisation(setup.detector, setup.val_index)
    return begin(setup, Listeners(), team, interrupt)


def state_of(engine: Engine) -> dict[str, np.ndarray]:
    """Weights, averages and the optimizer's values, all whole."""
    engine.settle()
    parts = {name: part for name, part in engine.state_dict().items() if name in ("model", "ema", "optimizer")}
    tensors = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    return {
        name: engine.strategy.whole(value).float().numpy().copy()
        for name, value in tensors.items()
        if isinstance(value, Tensor) and "num_batches" not in name
    }


def train_cases(cases: tuple[Case, ...], data: str, folder: str) -> list[dict[str, Any]]:
    """20 steps and a validation of each case; what there is then."""
    os.environ["YOLOYARD_CACHE"] = f"{folder}/cache"
    team, found = join_team(CPU), []
    for case in cases:
        os.environ["LOCAL_WORLD_SIZE"] = str(team.size // 2 if case.hosts else team.size)
        with InterruptRequest() as interrupt:
            run = run_of(case, team, data, f"{folder}/runs", interrupt)
            before = state_of(run.engine)
            samples = []
            for epoch in range(EPOCHS):
                samples += [batch.images.numpy() for batch in run.train_loader.epoch(epoch)]
                train_epoch(run)
                run.progress.epoch, run.progress.position = epoch + 1, 0
            validation = validate(run, run.engine.averaged())
        held = sum(value.numel() for value in run.engine.strategy.here([*run.engine.parameters]))
        figures = [value for name, value in vars(validation.metrics).items() if isinstance(value, float)]
        boxes = {image: boxes.boxes.numpy() for image, boxes in validation.detections.items()}
        numbers = {"losses": run.engine.means(), "figures": figures, "held": held}
        found.append({"samples": samples, "before": before, "after": state_of(run.engine), "boxes": boxes} | numbers)
    team.leave()
    return found


def check_samples(alone: dict[str, Any], together: Sequence[dict[str, Any]]) -> None:
    for step in range(EPOCHS * BATCHES):
        shares = np.concatenate([result["samples"][step] for result in together])
        assert np.array_equal(shares, alone["samples"][step])


def check_alike(case: Case, alone: dict[str, Any], together: Sequence[dict[str, Any]]) -> None:
    """After 20 steps the same weights, averages and optimizer's values, and the same figures, up to rounding."""
    way = {name: np.abs(value - alone["before"].get(name, 0)).max() for name, value in alone["after"].items()}
    assert np.median([each for name, each in way.items() if name.startswith("model.") and each]) > 1e-4
    for result in together:
        assert result["after"].keys() == alone["after"].keys()
        for name, value in alone["after"].items():
            difference = np.abs(result["after"][name] - value).max(initial=0)
            assert difference <= case.tolerance * way[name] + 1e-7, (case, name)
        assert result["losses"][0] == pytest.approx(alone["losses"][0], rel=case.tolerance)


@pytest.mark.slow
def test_two_and_four_processes_train_as_one(line: Path, tmp_path: Path) -> None:
    folders = lambda count: (str(line), str(tmp_path / str(count)))  # noqa: E731
    held = lambda results: [result["held"] for result in results]  # noqa: E731  # numbers of all weights, by rank
    alone = run_together(1, train_cases, CASES, *folders(1))[0]
    ddp, fsdp = (Case(SGD_CASE | {"strategy": name}, frozen=False) for name in ("ddp", "fsdp"))
    *results, by_ddp, by_fsdp = zip(*run_together(2, train_cases, (*CASES, ddp, fsdp), *folders(2)), strict=True)
    check_alike(ddp, by_ddp[0], [*by_fsdp])  # with the statistics of each process
    for case, expected, together in zip(CASES, alone, results, strict=True):
        check_samples(expected, together)
        check_alike(case, expected, together)
        assert held(together) == pytest.approx([expected["held"] / 2] * 2, rel=0.02)
    in_a_row, on_hosts = CASES[0], [case._replace(hosts=True) for case in CASES[:2]]  # which hold all weights each
    of_four = zip(*run_together(4, train_cases, (in_a_row, *on_hosts), *folders(4)), strict=True)
    for case, number, together in zip((in_a_row, *on_hosts), (0, 0, 1), of_four, strict=True):
        check_samples(alone[number], together)
        check_alike(case, alone[number], together)
        shares = 2 if case.hosts else 4
        assert held(together) == pytest.approx([alone[number]["held"] / shares] * 4, rel=0.02)


SAVERS = {1: ("ddp",), 2: ("ddp", "fsdp")}  # strategies by the number of processes
RESUMERS = {1: ("ddp",), 4: ("ddp", "fsdp")}


def steps(run: Run, count: int) -> dict[str, Any]:
    """Train on so many batches of the epoch; the images that this process has seen, and all losses."""
    set_training_mode(run.engine.model)
    images, losses = [], []
    batches = run.train_loader.epoch(run.progress.epoch, run.progress.position, run.epochs)
    for batch in itertools.islice(batches, count):
        losses.append(run.engine.step(batch).losses.numpy())
        images.append(batch.image_ids)
        run.progress.position += run.setup.config.batch
    return {"images": images, "losses": np.stack(losses)}


def train_and_save(strategies: tuple[str, ...], data: str, folder: str) -> list[dict[str, Any]]:
    """With each strategy: save after two batches, in the middle of an update, and go on to the end of the epoch."""
    os.environ["YOLOYARD_CACHE"] = f"{folder}/cache"
    team, found = join_team(CPU), []
    for strategy in strategies:
        with InterruptRequest() as interrupt:
            run = run_of(Case(ADAMW_CASE | {"nbs": 12, "strategy": strategy}), team, data, folder, interrupt)
            before = steps(run, SAVED_AFTER)
            save_for_good(run)
            after = steps(run, BATCHES - SAVED_AFTER)
        kept = {"folder": str(run.setup.folder), "before": before, "after": after, "state": state_of(run.engine)}
        found.append(kept)
    team.leave()
    return found


def resume_all(folders: list[str], strategies: tuple[str, ...], cache: str) -> list[list[dict[str, Any]]]:
    """What each strategy makes of the rest of the epoch, for each run folder."""
    os.environ["YOLOYARD_CACHE"] = cache
    team = join_team(CPU)
    return [[resume(Path(folder), strategy, team) for strategy in strategies] for folder in folders]


def resume(folder: Path, strategy: str, team: Team) -> dict[str, Any]:
    header = read_header(folder / "checkpoints" / "last")
    spec = resumed(header.spec, {"strategy": strategy}, team.size, folder, 0)
    with InterruptRequest() as interrupt:
        run = begun(build(spec, folder, CPU), team, interrupt)
        restore(header, run.engine, run.progress, team.rank)
        after = steps(run, BATCHES - SAVED_AFTER)
    return {"after": after, "state": state_of(run.engine)}


@pytest.mark.slow
def test_what_one_strategy_saves_another_resumes_in_the_middle_of_an_update(line: Path, tmp_path: Path) -> None:
    saved = {
        count: run_together(count, train_and_save, strategies, str(line), str(tmp_path / f"{count}"))
        for count, strategies in SAVERS.items()
    }
    expected = saved[1][0][0]
    folders = [kept["folder"] for ranks in saved.values() for kept in ranks[0]]
    assert len(folders) == 3
    for count, strategies in RESUMERS.items():
        ranks = run_together(count, resume_all, folders, strategies, str(tmp_path / "1" / "cache"))
        for number in range(len(folders)):
            for found in zip(*(rank[number] for rank in ranks), strict=True):
                shares = zip(*(each["after"]["images"] for each in found), strict=True)
                batches = expected["before"]["images"] + [[*itertools.chain(*each)] for each in shares]
                assert batches == expected["before"]["images"] + expected["after"]["images"]
                seen = [*itertools.chain(*batches)]
                assert sorted(seen[:18]) == [*range(18)]  # the last batch takes two from the epoch's start
                for each in found:
                    assert np.allclose(each["after"]["losses"], expected["after"]["losses"], rtol=1e-5, atol=1e-6)
                    for name, value in expected["state"].items():
                        assert np.abs(each["state"][name] - value).max(initial=0) <= 1e-6, name


@pytest.fixture
def group_of_one() -> Iterator[None]:
    """A process that is all processes of its group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded(model: str = "tiny", precision: Precision = FLOAT32, optimization: OptimizerConfig = SGD) -> Training:
    """As `Training`, with shards."""
    training = Training(CPU, precision.dtype, model, optimization)
    own, strategy = training.engine, Fsdp(training.detector, Team(), precision)
    training.engine = Engine(training.detector, own.criterion, own.gains, precision, own.config, 10**6, strategy)
    return training


def test_where_the_memory_is_too_small_a_line_says_what_to_do(group_of_one: None) -> None:
    training = sharded()
    limit(training.detector.get_submodule("fine"), 0)
    with pytest.raises(UserError, match=r"too little memory; --strategy fsdp allows no parts: lower --batch"):
        training.step(some_batch())


def test_parts_that_another_strategy_has_come_to_are_not_taken_over(group_of_one: None) -> None:
    before, training = Training(CPU, model="tiny"), sharded()
    before.engine.micro_batch = 1
    training.engine.load_state_dict(before.engine.state_dict())
    assert training.engine.agree_on_micro_batch() == 0
    training.step(some_batch())


@pytest.mark.parametrize("precision", [FLOAT32, Precision("cpu", torch.float32, "accelerator")], ids=["cpu", "scaler"])
@pytest.mark.parametrize("optimization", [SGD, ADAMW], ids=["SGD", "AdamW"])
def test_a_bad_step_leaves_no_trace(group_of_one: None, precision: Precision, optimization: OptimizerConfig) -> None:
    training = sharded(precision=precision, optimization=optimization)
    training.step(some_batch(seed=1))
    before = {name: training.engine.strategy.whole(value) for name, value in everything(training.engine).items()}
    scale = training.engine.scaler.get_scale()
    limit_of_float = training.detector.get_submodule("fine").register_forward_hook(lambda *words: words[2] * torch.inf)
    report = training.step(some_batch(seed=2))
    limit_of_float.remove()
    assert report.found_inf == 1
    assert training.engine.scaler.get_scale() == scale / (2 if training.engine.scaler.is_enabled() else 1)
    for name, value in everything(training.engine).items():
        assert torch.equal(training.engine.strategy.whole(value), before[name]), name
    assert training.step(some_batch(seed=1)).found_inf == 0


@pytest.mark.slow
def test_blocks_are_compiled_one_by_one(group_of_one: None) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    plain, training = sharded("yolo11n"), sharded("yolo11n")
    strategy = training.engine.strategy
    options: dict[str, Any] = {"backend": backend, "pieces": strategy.pieces}
    strategy.network = compile_network(strategy.network, training.detector, (2, 3, 64, 64), FLOAT32, **options)
    assert len(graphs) == len(strategy.pieces) == 18
    for seed in range(2):
        expected, found = plain.step(some_batch(seed=seed)), training.step(some_batch(seed=seed))
        assert torch.allclose(found.losses, expected.losses, rtol=1e-5)
        assert torch.allclose(found.gradient_norm, expected.gradient_norm, rtol=1e-4)
    assert len(graphs) == 18


class Sharing(Tiny):
    """Two of its blocks have one weight."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.fine.conv.weight = nn.Parameter(torch.rand(8, 8, 5, 5))
        self.coarse.conv.weight = self.fine.conv.weight


def test_blocks_that_share_a_parameter_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"share parameters \(fine.conv.weight = coarse.conv.weight\); use --strategy"):
        check_shardable(Sharing(3))
    for model in ("yolo11n", "yolo12n", "yolov13n", "yolov5n", "yolov8n"):
        with torch.device("meta"):
            check_shardable(registry.build(model, num_classes=3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "fspd"}, "unknown strategy for --strategy 'fspd'; did you mean 'fsdp'?"),
        ({"strategy": "fsdp", "sync_bn": True}, "--strategy fsdp does not go with --sync-bn"),
        ({"cpu_offload": True}, "--cpu-offload is for --strategy fsdp, not ddp: say --no-cpu-offload"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_read(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        check_new(TrainConfig(data="missing.yaml", **settings), {}, torch.device("cuda"), 2)
