"""SkyPilot in tests: it lives in `.venv-cloud`, an environment of its own that also sees this one's packages."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".venv-cloud"
PYTHON = FOLDER / "bin/python"
INSTALLED = FOLDER / "installed"

needs_skypilot = pytest.mark.skipif(
    not INSTALLED.exists(), reason="SkyPilot is not installed: `make .venv-cloud/installed` could not, or has not run"
)


def in_cloud_environment(home: Path, *argv: object, **variables: str) -> str:
    """What a Python command prints where SkyPilot, yoloyard and moto can be imported. Its HOME is `home`.

    No other variable of this process reaches it but PATH, so no credentials do. Raises CalledProcessError.
    """
    environment = {"HOME": str(home), "PATH": f"{FOLDER / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
                   "SKYPILOT_DISABLE_USAGE_COLLECTION": "1", "OMP_NUM_THREADS": "1", **variables}  # fmt: skip
    done = subprocess.run([str(PYTHON), *map(str, argv)], check=True, capture_output=True, text=True, env=environment)
    return done.stdout
