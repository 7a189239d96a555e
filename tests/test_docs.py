"""What the pages say is in step with the code."""

import importlib.util
import re
from pathlib import Path

import torch

from yoloyard.cli.arguments import normal_arguments
from yoloyard.cli.main import app
from yoloyard.config.settings import TrainConfig, settings_of
from yoloyard.models import registry
from yoloyard.models.weights import transfer

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "README.zh-CN.md")


def test_the_table_of_settings_is_that_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("make_settings", ROOT / "docs" / "make_settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == module.table()


def test_every_command_of_the_readmes_is_understood() -> None:
    """Each line `yoloyard ...` parses; none is run."""
    for page in PAGES:
        lines = re.findall(
            r"^(?:\S+/)?yoloyard (.+?)(?:\s+#.*)?$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE
        )
        assert len(lines) > 10
        for line in lines:
            words = [word.strip("\"'") for word in line.split()]
            app.parse_args(normal_arguments(words), exit_on_error=False, print_error=False)


def test_both_readmes_have_the_same_parts_and_commands() -> None:
    english, chinese = ((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    assert english.count("\n## ") == chinese.count("\n## ")
    code = [re.findall(r"```\w*\n(.*?)```", page, re.DOTALL) for page in (english, chinese)]
    commands = [[re.sub(r"\s*#.*", "", block) for block in blocks] for blocks in code]
    assert commands[0] == commands[1]


def test_the_networks_of_the_docs_take_all_of_yolo11s_weights_and_train(tmp_path: Path) -> None:
    networks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "custom-model.md").read_text("utf-8"), re.DOTALL)
    assert len(networks) == 2
    official = registry.build("yolo11n", num_classes=80)
    for network in networks:
        assert len([line for line in network.splitlines() if line.strip()]) < 40
        (tmp_path / "my_model.py").write_text(network)
        detector = registry.build(f"{tmp_path / 'my_model.py'}:build", num_classes=3)
        report = transfer(detector, official.state_dict())
        assert {name.split(".")[1] for name in report.fresh} == {"attention", "class_branches"}
        assert all(".2." in name for name in report.fresh if "class_branches" in name)
        sum(level.square().mean() for level in detector(torch.rand(2, 3, 64, 64))).backward()
        assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *ROOT.glob("*/*/*.md"),
        ROOT / "benchmarks/README.md",
    ]:
        if ".venv" in page.parts or "node_modules" in page.parts:
            continue
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page}: {target}"


def test_every_setting_has_a_help_text() -> None:
    assert all(word.help for word in settings_of(TrainConfig).values())
