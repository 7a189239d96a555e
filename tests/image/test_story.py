"""The story of a new member: build, `up`, SSH, Jupyter in a browser, TensorBoard, a training stopped in the middle.

The tests stand in the order of the story and share one container; the last one stops it.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support import expected_conditions
from selenium.webdriver.support.ui import WebDriverWait

from containers import OWNER, SCREENSHOTS, Container, attempt, run, say, yoloyard

pytestmark = pytest.mark.image

WORDS = "model=yolo11n data=line/data.yaml imgsz=64 batch=4 device=cpu amp=False"


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--window-size=1400,900",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(flag)
    options.binary_location = "/usr/bin/chromium"
    browser = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    yield browser
    browser.quit()


def shows(browser: webdriver.Chrome, selector: str, seconds: float = 60) -> Any:
    """The first element that fits, once it is there."""
    return WebDriverWait(browser, seconds).until(lambda page: page.find_element(By.CSS_SELECTOR, selector))


def image(browser: webdriver.Chrome, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(SCREENSHOTS / f"{name}.png"))


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_stages_hold_what_they_say_and_no_more(image: str) -> None:
    for name in (f"{image}-runtime", image):
        (facts,) = json.loads(run("podman", "image", "inspect", name))
        say(f"{name}: {facts['Size'] / 1e6:.0f} MB")
        labels = facts["Labels"] or facts["Config"]["Labels"]
        assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
        assert len(labels["org.opencontainers.image.revision"].removesuffix("-dirty")) == 40
        history = sorted(facts["History"], key=lambda layer: layer.get("size", 0), reverse=True)
        assert history
        shown = run("podman", "run", "--rm", "--entrypoint", "cat", name, "/usr/share/yoloyard/sbom.cdx.json")
        bill, _ = json.JSONDecoder().raw_decode(shown, shown.index("{"))  # podman may print a warning, too
        packages = {each["name"] for each in bill["components"]}
        assert {"yoloyard", "torch", "opencv-python-headless"} <= packages
        assert ("jupyterlab" in packages) == (name == image)
        layers = run("podman", "history", "--no-trunc", "--format", "{{.Size}} {{.CreatedBy}}", name)
        say("\n".join(line[:110] for line in layers.splitlines() if not line.startswith("0 ")))
    version = run("podman", "run", "--rm", f"{image}-runtime", "yoloyard", "--version")
    assert version.strip().endswith("0.1.0")
    for program in ("git", "sshd", "jupyter", "gcc"):
        assert attempt("podman", "run", "--rm", f"{image}-runtime", "sh", "-c", f"command -v {program}").returncode
    asked = attempt("podman", "run", "--rm", "-e", "YOLOYARD_JUPYTER=1", f"{image}-runtime")
    assert asked.returncode == 2
    assert "jupyter-lab is not in this image: the runtime stage has TensorBoard alone" in asked.stdout


def test_up_prints_how_to_get_in_and_training_starts_within_five_minutes(container: Container) -> None:
    assert container.jupyter
    assert container.tensorboard
    # The first line of an epoch stands for its steps: four images are one step.
    first = "python -c \"import yoloyard; yoloyard.train(model='yolo11n', data='line/data.yaml', imgsz=64, batch=4, "
    first += "epochs=1, fraction=0.3, device='cpu', amp=False, name='first', tensorboard=False)\""
    yoloyard("shell", "--engine", "podman", "sh", "-c", first, folder=container.folder, seconds=200)
    say(
        f"`up` took {container.seconds:.1f} s; from `up` to the end of a first epoch of one step: "
        f"{time.monotonic() - container.started:.1f} s"
    )
    assert (container.folder / "runs/first/weights/best.safetensors").stat().st_uid == OWNER


def test_up_again_changes_nothing(container: Container) -> None:
    again = yoloyard("up", "--tag", "cpu", "--engine", "podman", folder=container.folder, seconds=200)
    assert container.jupyter in again


def test_ports_are_open_for_this_machine_alone(container: Container) -> None:
    published = run("podman", "ps", "--format", "{{.Names}} {{.Ports}}")
    (line,) = [line for line in published.splitlines() if "factory" in line]
    assert "0.0.0.0" not in line
    assert line.count("127.0.0.1:") == 3


def test_ssh_lets_in_the_key_and_nothing_else(container: Container, tmp_path: Path) -> None:
    inside = container.ssh(
        "id -u; cd /workspace; pwd; python -c 'import torch, yoloyard; print(torch.__version__)'; touch from-ssh"
    )
    assert inside.returncode == 0, inside.stdout
    assert inside.stdout.split()[:2] == [str(OWNER), "/workspace"]
    assert (container.folder / "from-ssh").stat().st_uid == OWNER

    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "wrong")
    for refused in (container.ssh("true", key=tmp_path / "wrong"), container.ssh("true", user="root")):
        assert refused.returncode == 255
        assert "Permission denied (publickey)" in refused.stdout
    flags = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "PubkeyAuthentication=no"]
    wanted = ["-o", "PreferredAuthentications=password,keyboard-interactive", "-o", "NumberOfPasswordPrompts=1"]
    by_password = attempt(
        "ssh", *flags, *wanted, "-p", container.ssh_port, "yard@127.0.0.1", "true", SSH_ASKPASS="/bin/true"
    )
    assert by_password.returncode == 255
    assert "Permission denied (publickey)" in by_password.stdout


def test_jupyter_wants_its_token(container: Container, browser: webdriver.Chrome) -> None:
    page, token = container.jupyter.split("?token=")
    api = page.replace("/lab", "/api/contents")
    assert status(api) == 403
    assert status(f"{api}?token={'0' * len(token)}") == 403
    assert status(f"{api}?token={token}") == 200
    browser.get(page)
    shows(browser, "input[name=password]")
    image(browser, "jupyter-without-token")
    browser.get(container.jupyter)
    shows(browser, ".jp-Launcher, .jp-FileBrowser", 90)
    time.sleep(3)  # the file list, for the image
    image(browser, "jupyter")


def test_a_cell_in_the_browser_trains_an_epoch(container: Container, browser: webdriver.Chrome) -> None:
    source = (
        f"import yoloyard\nresult = yoloyard.train(epochs=1, name='cell', {python_words()})\nprint('cell is', 'done')"
    )
    cell: dict[str, Any] = {
        "cell_type": "code",
        "id": "one",
        "metadata": {},
        "source": source,
        "outputs": [],
        "execution_count": None,
    }
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    file = container.folder / "one.ipynb"
    file.write_text(json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    os.chown(file, OWNER, OWNER)
    browser.get(container.jupyter.replace("/lab?", "/lab/tree/one.ipynb?"))
    editor = (By.CSS_SELECTOR, ".jp-Notebook .jp-Cell .jp-InputArea-editor")
    WebDriverWait(browser, 90).until(expected_conditions.visibility_of_element_located(editor)).click()
    time.sleep(3)  # the kernel is there before the key
    ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
    try:
        WebDriverWait(browser, 120).until(
            lambda page: "cell is done" in page.find_element(By.CSS_SELECTOR, ".jp-Notebook").text
        )
    finally:
        image(browser, "notebook")
    text = shows(browser, ".jp-Notebook").text
    assert "epoch 1/1" in text
    assert (container.folder / "runs/cell/report.html").stat().st_uid == OWNER


def python_words() -> str:
    """WORDS as Python's arguments."""
    pairs = [word.split("=") for word in WORDS.split()]
    return ", ".join(f"{name}={value if value.isdigit() or value == 'False' else repr(value)}" for name, value in pairs)


def test_tensorboard_shows_the_runs(container: Container, browser: webdriver.Chrome) -> None:
    def has_tags(_: Any) -> bool:
        with urllib.request.urlopen(f"{container.tensorboard}/data/plugin/scalars/tags", timeout=20) as answer:
            tags = json.load(answer)
        return any("val/map50" in names for names in tags.values())

    WebDriverWait(browser, 60).until(has_tags)  # it looks for new files every few seconds
    browser.get(container.tensorboard)
    WebDriverWait(browser, 60).until(lambda page: "val" in page.find_element(By.TAG_NAME, "body").text)
    time.sleep(5)  # the curves, for the image
    image(browser, "tensorboard")


def test_the_quickstart_runs_from_top_to_bottom(container: Container) -> None:
    notebook = container.folder / "quickstart.ipynb"
    text = notebook.read_text()
    assert "epochs=12" in text
    notebook.write_text(text.replace("epochs=12", "epochs=1"))  # what twelve reach, test_slow.py looks at
    command = "jupyter nbconvert --to notebook --execute --output done.ipynb quickstart.ipynb"
    yoloyard("shell", "--engine", "podman", "sh", "-c", command, folder=container.folder, seconds=900)
    done = json.loads((container.folder / "done.ipynb").read_text())
    outputs = [output for cell in done["cells"] for output in cell.get("outputs", [])]
    assert "error" not in {output["output_type"] for output in outputs}
    assert "image/png" in outputs[-1]["data"]


def test_a_service_that_dies_is_started_again(container: Container) -> None:
    first = container.ssh("pgrep --oldest tensorboard").stdout.split()
    assert len(first) == 1
    assert container.ssh("pkill -KILL --oldest tensorboard").returncode == 0
    deadline = time.monotonic() + 60
    while (again := container.ssh("pgrep --oldest tensorboard").stdout.split()) in ([], first):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert len(again) == 1


def test_stopping_the_container_lets_a_training_save(container: Container) -> None:
    started = container.ssh(
        f"tmux new-session -d -s long -c /workspace 'yoloyard train {WORDS} epochs=5000 name=long > long.log 2>&1'"
    )
    assert started.returncode == 0, started.stdout
    log = container.folder / "long.log"
    deadline = time.monotonic() + 120
    while not (log.exists() and "epoch 2/5000" in log.read_text()):
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.5)

    began = time.monotonic()
    yoloyard("down", "--engine", "podman", folder=container.folder, seconds=180)
    say(f"`down` took {time.monotonic() - began:.1f} s with a training under way")
    assert "everything is saved" in log.read_text()
    last = container.folder / "runs/long/checkpoints/last"
    assert {path.stat().st_uid for path in [last, *last.iterdir()]} == {OWNER}
    epoch = len((container.folder / "runs/long/metrics.jsonl").read_text().splitlines())
    names = subprocess.run(["podman", "ps", "--format", "{{.Names}}"], capture_output=True, text=True, check=True)
    assert "factory" not in names.stdout

    yoloyard("up", "--tag", "cpu", "--engine", "podman", folder=container.folder, seconds=200)
    resume = ("yoloyard", "train", "--resume", "runs/long", "--epochs", epoch + 2)
    gone_on = yoloyard("shell", "--engine", "podman", *resume, folder=container.folder, seconds=200)
    assert f"going on in epoch {epoch + 1}" in gone_on
