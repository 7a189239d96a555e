"""Files that several tests of runtimes read."""

import pytest

from exported_files import Files


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Files that are not changed by any test."""
    return Files(tmp_path_factory.mktemp("files"))
