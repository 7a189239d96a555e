"""Files that several tests of runtimes read."""

from pathlib import Path

import pytest

from exported_files import WRITERS, document


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of each format by its suffix, which takes images of any shape."""
    folder = tmp_path_factory.mktemp("files")
    return {suffix: write(folder / f"best{suffix}", document()) for suffix, write in WRITERS.items()}
