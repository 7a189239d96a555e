"""Versions of what decides results."""

import platform
from importlib import metadata

PACKAGES = ("yoloyard", "torch", "numpy", "opencv-python-headless", "safetensors")


def versions(*more: str) -> dict[str, str]:
    """Versions of Python and of the packages that decide results, and of `more` packages."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *more):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found
