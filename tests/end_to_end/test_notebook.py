"""Training in a real notebook: bars, one clean line for an error, and a stop in the middle that is gone on from."""

import sys
from pathlib import Path
from typing import Any

import pytest

from commands import TINY_NETWORK

pytest.importorskip("ipykernel")
pytest.importorskip("ipywidgets")
nbclient: Any = pytest.importorskip("nbclient")
nbformat: Any = pytest.importorskip("nbformat")

pytestmark = pytest.mark.slow

WORDS = f'model="{TINY_NETWORK}", data="line/data.yaml", imgsz=64, batch=4, amp=False, tensorboard=False, device="cpu"'

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


class Notebook:
    """Cells run one after the other in one kernel of this interpreter."""

    def __init__(self) -> None:
        self.node = nbformat.v4.new_notebook()
        self.client = nbclient.NotebookClient(self.node, timeout=1200, allow_errors=True)
        self.client.create_kernel_manager()
        # The kernel of this interpreter, whatever is installed under the name of python3.
        self.client.km.kernel_spec.argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        self.client.start_new_kernel()
        self.client.start_new_kernel_client()

    def run(self, source: str) -> list[Any]:
        """The outputs of a new cell."""
        self.node.cells.append(nbformat.v4.new_code_cell(source))
        return list(self.client.execute_cell(self.node.cells[-1], len(self.node.cells) - 1).outputs)

    def close(self) -> None:
        """End the kernel."""
        nbclient.util.run_sync(self.client.km.shutdown_kernel)(now=True)


def text_of(outputs: list[Any]) -> str:
    """All that is written in the outputs of a cell."""
    return "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)


@pytest.fixture
def notebook(data: Path) -> Any:
    notebook = Notebook()
    yield notebook
    notebook.close()


def test_a_notebook_trains_with_bars_predicts_and_shows_errors_in_a_line(notebook: Notebook) -> None:
    outputs = notebook.run(f"import yoloyard\nresult = yoloyard.train(epochs=2, {WORDS})")
    text = text_of(outputs)
    assert "epoch 1/2" in text
    assert "epoch 2/2" in text
    assert "Traceback" not in text
    widgets = [output for output in outputs if "application/vnd.jupyter.widget-view+json" in output.get("data", {})]
    assert len(widgets) == 5  # training and validation of two epochs, and the validation of the best weights

    outputs = notebook.run('len(yoloyard.load(result.weights, conf=0.00001)("line/images/val/0000.jpg")) > 0')
    assert text_of(outputs) == "True"

    (output,) = notebook.run(f"yoloyard.train(epoch=2, {WORDS})")
    assert output["output_type"] == "error"
    assert output["traceback"] == ["unknown setting 'epoch'; did you mean 'epochs'?"]


def test_interrupting_the_kernel_saves_and_the_next_cell_goes_on(notebook: Notebook) -> None:
    outputs = notebook.run(
        "import os, signal, yoloyard\n"
        "def at(event):\n"
        "    if type(event).__name__ == 'EpochEnded' and event.epoch == 2:\n"
        "        os.killpg(0, signal.SIGINT)  # as the kernel's manager does\n"
        f"yoloyard.train(epochs=500, on_event=at, {WORDS})"
    )
    assert outputs[-1]["output_type"] == "error"
    assert outputs[-1]["traceback"] == [
        "stopped; everything is saved. Go on with: yoloyard train --resume runs/line",
    ]
    outputs = notebook.run('yoloyard.train(resume="runs/line", epochs=4).best_epoch > 0')
    text = text_of(outputs)
    assert "going on in epoch 3 of 4" in text
    assert "epoch 4/4" in text
    assert text.endswith("True")


def test_the_quickstart_runs_from_top_to_bottom(notebook: Notebook) -> None:
    cells = [cell.source for cell in nbformat.read(EXAMPLE, as_version=4).cells if cell.cell_type == "code"]
    assert sum("epochs=12" in cell for cell in cells) == 1
    for cell in [cell.replace("epochs=12", "epochs=1") for cell in cells]:  # what twelve reach, test_slow.py looks at
        outputs = notebook.run(cell)
        assert "error" not in {output["output_type"] for output in outputs}
    assert "image/png" in outputs[-1]["data"]
