"""The data of a job: what is copied, how a training finds it on a host, and by what it is told again."""

import shutil
from pathlib import Path

import pytest
import yaml

from yoloyard.common.errors import UsageError
from yoloyard.data.formats.convert import convert
from yoloyard.data.formats.data_yaml import read_data_yaml
from yoloyard.data.formats.sources import find_sources
from yoloyard.demo.write import write_demo
from yoloyard.jobs import data_set
from yoloyard.jobs.data_set import DataSet, find_data


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLOYARD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "demo"
    write_demo(folder, train=3, val=2, size=64)
    return folder


def find(path: Path, data: object = None) -> DataSet:
    return find_data(path, str(data) if data else None, path.parent)


def on_host(found: DataSet, host: Path) -> Path:
    """Bring the set to a host, as a place does; the data.yaml that the training gets."""
    (host / "source").mkdir(parents=True)
    assert found.folder is not None
    for name in found.files:
        (host / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found.folder / name, host / "data" / name)
    if found.yaml:
        (host / "data.yaml").write_text(found.yaml, encoding="utf-8")
    return host / "source" / found.setting


def images_at(path: Path) -> tuple[list[str], tuple[str, ...]]:
    """The images with labels, and the class names, that a training finds."""
    spec = read_data_yaml(path)
    images = [image for split in ("train", "val") for image in find_sources(spec, split).images]
    return [image.path.name for image in images if image.labels.exists()], spec.names


def test_a_set_beside_its_data_yaml_is_found_on_the_host(demo: Path, tmp_path: Path) -> None:
    found = find(demo / "data.yaml")
    assert found.folder == demo
    assert len(found.files) == 10  # images and labels, not what else lies there
    assert images_at(on_host(found, tmp_path / "host")) == images_at(demo / "data.yaml")


@pytest.mark.parametrize("kind", ["absolute path", "relative path", "absolute entries", "list", "coco"])
def test_a_data_yaml_elsewhere_is_written_for_the_host(kind: str, demo: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load((demo / "data.yaml").read_text())
    shutil.copytree(demo, tmp_path / "disk" / "set")
    folder = tmp_path / "disk" / "set"
    repository = tmp_path / "repository"
    repository.mkdir()
    if kind == "absolute path":
        tree["path"] = str(folder)
    elif kind == "relative path":
        tree["path"] = "../disk/set"
    elif kind == "absolute entries":
        tree |= {split: str(folder / "images" / split) for split in ("train", "val")}
    elif kind == "list":
        for split in ("train", "val"):
            names = sorted(path.name for path in (folder / "images" / split).iterdir())
            (folder / f"{split}.txt").write_text("".join(f"images/{split}/{name}\n" for name in names))
        tree |= {"path": str(folder), "train": "train.txt", "val": ["val.txt"]}
    else:
        folder = tmp_path / "disk" / "coco"
        convert(read_data_yaml(demo / "data.yaml"), folder, "coco")
        tree = yaml.safe_load((folder / "data.yaml").read_text()) | {"path": str(folder)}
    (repository / "data.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True))
    found = find(repository / "data.yaml")
    there = on_host(found, tmp_path / "host")
    shutil.rmtree(tmp_path / "disk")
    if kind == "coco":
        spec = read_data_yaml(there)
        assert [len(find_sources(spec, split).split_files[0].file_names) for split in ("train", "val")] == [3, 2]
    else:
        assert len(images_at(there)[0]) == 5


def test_class_names_stay_texts(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(f"path: {demo}\ntrain: images/train\nval: images/val\nnames: [007, no, 划痕]\n")
    there = on_host(find(tmp_path / "data.yaml"), tmp_path / "host")
    assert read_data_yaml(there).names == ("007", "no", "划痕")


def test_the_fingerprint_is_that_of_the_contents(demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, tmp_path / "copy")
    first, copy = find(demo / "data.yaml"), tmp_path / "copy"
    (copy / "notes.md").write_text("no part of the set")
    assert find(copy / "data.yaml").fingerprint == first.fingerprint
    label = next((copy / "labels" / "train").iterdir())
    label.write_text(label.read_text().replace("0.", "0.1", 1))
    assert find(copy / "data.yaml").fingerprint != first.fingerprint


def test_files_that_did_not_change_are_not_read_again(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = find(demo / "data.yaml")
    monkeypatch.setattr(data_set, "file_sha256", lambda path: pytest.fail(f"{path} is read again"))
    assert find(demo / "data.yaml") == first


def test_a_split_for_tests_that_is_not_here_stays_out(demo: Path, tmp_path: Path, said: list[str]) -> None:
    text = (demo / "data.yaml").read_text()
    (tmp_path / "data.yaml").write_text(f"path: {demo}\ntest: images/nowhere\n{text}")
    assert "test" not in yaml.safe_load(find(tmp_path / "data.yaml").yaml or "")
    assert said == [f"{tmp_path}/data.yaml: what it names for test is not here and stays out"]


def test_data_that_lie_elsewhere_than_the_job_says_are_refused(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.yaml leads to .*, which is not in data: "):
        find(demo / "data.yaml", tmp_path)
    with pytest.raises(UsageError, match="data: there is no folder"):
        find(demo / "data.yaml", tmp_path / "nowhere")


def test_a_set_in_an_object_store_needs_no_copy_here(demo: Path, tmp_path: Path) -> None:
    prefix = demo.as_uri()
    there = find_data(tmp_path / "data.yaml", prefix, tmp_path)
    assert (there.setting, there.yaml, there.source, there.folder) == ("../data/data.yaml", None, prefix, None)
    (tmp_path / "own.yaml").write_text("path: data\ntrain: images/train\nval: images/val\nnames: [a]\n")
    own = find_data(tmp_path / "own.yaml", prefix, tmp_path)
    assert own.setting == "../data.yaml"
    assert yaml.safe_load(own.yaml or "")["train"] == ["images/train"]
    with pytest.raises(UsageError, match=r"there is no file .*x/other.yaml here, and no x/other.yaml in file://"):
        find_data(tmp_path / "x" / "other.yaml", prefix, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds nothing"):
        find_data(tmp_path / "data.yaml", (tmp_path / "empty").as_uri(), tmp_path)


def test_the_fingerprint_of_stored_data_changes_with_an_object(demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, tmp_path / "store")
    first = find_data(tmp_path / "data.yaml", (tmp_path / "store").as_uri(), tmp_path)
    assert find_data(tmp_path / "data.yaml", (tmp_path / "store").as_uri(), tmp_path) == first
    (tmp_path / "store" / "labels" / "new.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    assert find_data(tmp_path / "data.yaml", (tmp_path / "store").as_uri(), tmp_path).fingerprint != first.fingerprint
