"""Writes the lock files beside it: every package of the images but torch's own, with the hashes of all its wheels.

    pip install uv && python docker/lock.py

Three files, one a layer of the Dockerfile: what torch needs, what yoloyard needs, what the devel stage has besides.
torch itself and its nvidia-* and triton packages are not there, since they are what one tag differs from another by.
The locks hold for Python 3.11 to 3.13 and agree with constraints.txt.
"""

import subprocess
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]

# What torch's wheels ask for besides nvidia-* and triton, and what builds yoloyard.
TORCH = ["filelock", "fsspec", "jinja2", "networkx", "setuptools>=77,<82", "sympy", "typing-extensions"]
DEVEL = ["ipykernel", "ipywidgets", "jupyterlab", "ninja"]


def lock(name: str, wanted: list[str], *finished: str) -> None:
    """Resolves `wanted` to one version each; those that `finished` locks have are not repeated."""
    constraints = [f"--constraint={ROOT / 'constraints.txt'}", *(f"--constraint={HERE / file}" for file in finished)]
    lines = [line for file in finished for line in (HERE / file).read_text().splitlines()]
    former = {line.split("==")[0] for line in lines if "==" in line}
    command = ["uv", "pip", "compile", "-", "--universal", "--python-version=3.11", "--generate-hashes", "--no-header"]
    command += ["--no-annotate", "--quiet", *constraints]
    command += [f"--no-emit-package={package}" for package in sorted(former)]
    done = subprocess.run(command, input="\n".join(wanted), stdout=subprocess.PIPE, text=True, check=True)
    head = "# Written by lock.py. torch and its nvidia-* and triton packages are not here: they depend on the tag.\n"
    (HERE / name).write_text(head + done.stdout)


def main() -> None:
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    own = project["dependencies"] + extras["tensorboard"] + extras["backup"]
    lock("requirements-torch.txt", TORCH)
    lock("requirements.txt", [line for line in own if not line.startswith("torch")], "requirements-torch.txt")
    lock("requirements-devel.txt", DEVEL, "requirements-torch.txt", "requirements.txt")


if __name__ == "__main__":
    main()
