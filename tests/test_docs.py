"""What the pages say is in step with the code."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from yoloyard.cli.arguments import normal_arguments
from yoloyard.cli.main import app
from yoloyard.config.settings import TrainConfig, settings_of
from yoloyard.data.audit.problems import KINDS
from yoloyard.data.formats.yolo_txt import parse_yolo
from yoloyard.models import registry
from yoloyard.models.weights import transfer

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh-CN.md")
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("examples/*/*.md"), ROOT / "benchmarks/README.md"]
)


def test_the_table_of_settings_is_that_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("make_settings", ROOT / "docs" / "make_settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == module.table()


def test_the_table_of_problems_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "data-check.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z, ]+) \| (error|warning) \|", page, re.MULTILINE)
    listed = {kind: verdict == "error" for kinds, verdict in rows for kind in kinds.split(", ")}
    assert listed == KINDS


def test_the_effect_of_the_example_in_json_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
    kind, what, effect = re.findall(r'"(?:kind|what|effect)": "(.*)"', page[page.index('"is_error"') :])[:3]
    labels = parse_yolo(Path("0004.txt"), b"9 0.5 0.5 0.1 0.1", num_classes=5, size=(480, 640))
    assert [(each.kind, each.what, each.effect) for each in labels.problems] == [(kind, what, effect)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_the_pages_is_understood(page: Path) -> None:
    """Each line `yoloyard ...` in a block of code parses; none is run."""
    code = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    blocks = "\n".join(block for language, block in code if not language)
    lines = re.findall(r"^(?:\S+/)?yoloyard (.+?)(?:\s+#.*)?$", blocks.replace("\\\n", " "), re.MULTILINE)
    assert len(lines) > 6 or page.parent != ROOT or page.name not in READMES
    for line in lines:
        argv = [word.strip("\"'") for word in re.split(" && | > ", line)[0].split() if word not in ("...", "--debug")]
        app.parse_args(normal_arguments(argv, app), exit_on_error=False, print_error=False)


def test_both_readmes_have_the_same_parts_and_commands() -> None:
    english, chinese = ((ROOT / page).read_text(encoding="utf-8") for page in READMES)
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_the_pages_lead_to_a_file_and_a_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{target}#{anchor}"


@pytest.mark.parametrize("page", ["design.md", "choices.md", "new-family.md"])
def test_files_that_the_pages_name_exist(page: str) -> None:
    files = [path.as_posix() for part in ("src", "tests", "benchmarks") for path in (ROOT / part).rglob("*")]
    for name in re.findall(r"`([\w/.]+\.(?:py|j2|toml))`", (ROOT / "docs" / page).read_text(encoding="utf-8")):
        if not re.search("NEW|COMMAND|export|my_|test_", name):
            assert any(file.endswith(f"/{name}") for file in files), name


def test_every_page_is_in_the_navigation_of_the_site_once() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r": (\S+\.md)$", text[text.index("\nnav:") :], re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_every_setting_has_a_help_text() -> None:
    assert all(word.help for word in settings_of(TrainConfig).values())
