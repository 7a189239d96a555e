"""Groups of long tests, each run only if a file that it depends on has changed since it passed.

`python tests/passed.py` runs those groups and says which files have changed; `python tests/passed.py image runs` runs
these two in any case. A group that passes, with no test skipped, notes the digests of its files in
tests/passed/GROUP.sha256, in the form of sha256sum. The notes are committed together with the change.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SKIPPED = 77  # exit status of a program that could not test; as in Automake
NAMED_FILES = 5

EVERYWHERE = ("pyproject.toml", "constraints.txt", "tests/conftest.py", "tests/foreign.py")
ROOMS = ("common", "config", "models", "losses", "cpu", "data", "storage", "demo", "runtimes", "evaluation", "training",
         "commands", "cli")  # fmt: skip
TRAINER = tuple(f"src/yoloyard/{room}/**/*.py" for room in ROOMS)


@dataclass(frozen=True)
class Group:
    """Slow tests below `tests`, or what the program `command` tests; `needs`: glob patterns of files beside them."""

    tests: tuple[str, ...]
    needs: tuple[str, ...]
    command: str | None = None

    def files(self, root: Path) -> dict[str, str]:
        """The files that it depends on, by their paths below `root`, with their SHA-256."""
        patterns = [*EVERYWHERE, *self.needs, *(f"{place}/**/*" if "." not in place else place for place in self.tests)]
        found = {path for pattern in patterns for path in root.glob(pattern)}
        paths = sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)
        return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    def run(self) -> int:
        """Run its tests; their exit status, SKIPPED if one of them was skipped."""
        if self.command:
            return subprocess.run([str(ROOT / self.command), sys.executable], check=False).returncode
        words, environment = ["-m", "slow and not gpu and not image", "--durations", "10", "-rs"], dict(os.environ)
        if len(self.tests) > 1:  # two tests at a time; the few of a single file have all cores
            words += ["--numprocesses", "2"]
            environment["OMP_NUM_THREADS"] = "1"
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            command = [sys.executable, "-m", "pytest", *words, f"--junitxml={report}", *self.tests]
            status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
            if status == 0 and any(
                int(suite.get("skipped", 0)) for suite in ElementTree.parse(report).iter("testsuite")
            ):
                return SKIPPED
            return status


GROUPS = {
    "networks": Group(
        ("tests/models", "tests/losses"),
        ("src/yoloyard/models/**/*.py", "src/yoloyard/losses/**/*.py", "src/yoloyard/cpu/*.py",
         "src/yoloyard/common/*.py", "src/yoloyard/config/*.py", "tests/*.py",
         "tests/data/reference/*"),
    ),
    "runs": Group(
        ("tests/end_to_end", "tests/endurance", "tests/training", "tests/storage", "tests/data_room", "tests/zoo"),
        (*TRAINER, "tests/*.py", "examples/quickstart.ipynb", "Makefile"),
    ),
    "plans": Group(  # skipped where SkyPilot can't be installed
        ("tests/planning",),
        (*TRAINER, "src/yoloyard/planning/*", "tests/*.py", "tests/data/runs_on_a_cpu.json"),
    ),
    "jobs": Group(
        ("tests/jobs",),
        (*TRAINER, "src/yoloyard/jobs/**/*", "src/yoloyard/machines/**/*.py", "src/yoloyard/docker/*", "tests/*.py"),
    ),
    "exports": Group(
        ("tests/runtimes", "tests/export", "tests/serving", "tests/licences"),
        ("src/yoloyard/runtimes/*.py", "src/yoloyard/export/**/*", "src/yoloyard/serving/**/*",
         "src/yoloyard/licences/*.py", "src/yoloyard/models/**/*.py", "src/yoloyard/commands/*.py",
         "src/yoloyard/cli/*.py", "src/yoloyard/config/*.py", "src/yoloyard/storage/*.py", "src/yoloyard/common/*.py",
         "src/yoloyard/data/**/*.py", "src/yoloyard/evaluation/**/*", "tests/*.py"),
    ),
    "hosts": Group(("tests/hosts",), (*TRAINER, "tests/*.py")),  # skipped where there are no network namespaces
    "cloud": Group(  # skipped where there are no namespaces, or SkyPilot can't be installed
        ("tests/cloud",),
        ("src/yoloyard/jobs/**/*", "src/yoloyard/storage/*.py", "src/yoloyard/cli/*.py",
         "src/yoloyard/training/interrupt.py", "src/yoloyard/training/listeners/backup.py",
         "tests/*cloud*.py", "tests/host_*.py", "tests/tiny_network.py"),
    ),
    "browser": Group(  # skipped where there is no Chromium
        ("tests/browser",),
        ("src/yoloyard/commands/*.py", "src/yoloyard/common/run_folder.py", "src/yoloyard/evaluation/report/**/*",
         "src/yoloyard/training/listeners/status.py", "src/yoloyard/training/listeners/last_validation.py",
         "src/yoloyard/serving/*", "tests/commands.py", "tests/tiny_network.py", "tests/tiny_weights.py",
         "tests/tiny_job.py", "tests/screenshots.py"),
    ),
    "rehearsal": Group(
        ("tests/test_gpu_benchmark.py",),
        (*TRAINER, "benchmarks/gpu.py", "benchmarks/gpu_parts/*.py", "tests/*.py",
         "tests/evaluation/device_traffic.py"),
    ),
    "downloads": Group(
        ("tests/machines/test_broken_environments.py",),
        ("src/yoloyard/machines/environment/*.py", "src/yoloyard/machines/doctor/*.py"),
    ),
    # What is trained in a container is trained by other tests too: here, what a container adds, and how it stops.
    "image": Group(
        ("tests/image",),
        ("src/yoloyard/docker/**/*", "src/yoloyard/machines/containers/*.py", "src/yoloyard/machines/image/*.py",
         "src/yoloyard/cli/*.py", "src/yoloyard/__*__.py",
         "src/yoloyard/training/interrupt.py", "tests/containers.py", "examples/quickstart.ipynb", ".dockerignore"),
        command="tests/image/run.sh",
    ),
}  # fmt: skip


def note_of(name: str, root: Path) -> Path:
    """The file with the digests that a group passed with."""
    return root / "tests" / "passed" / f"{name}.sha256"


def changes(name: str, files: dict[str, str], root: Path) -> list[str]:
    """The files that have changed, come or gone since the group passed; all of them if it never did."""
    note = note_of(name, root)
    lines = note.read_text(encoding="utf-8").splitlines() if note.exists() else []
    noted = {path: digest for digest, path in (line.split("  ", 1) for line in lines)}
    return sorted(path for path in noted.keys() | files.keys() if noted.get(path) != files.get(path))


def main(names: Sequence[str], groups: dict[str, Group] = GROUPS, root: Path = ROOT) -> int:
    """Run the groups of these names, or, without names, those whose files have changed; the last bad exit status."""
    worst = 0
    for name in names or groups:
        files = groups[name].files(root)
        changed = changes(name, files, root)
        if not names and not changed:
            print(f"{name}: passed with these {len(files)} files before, so not run", flush=True)
            continue
        more = f" and {len(changed) - NAMED_FILES} more" if len(changed) > NAMED_FILES else ""
        why = f"changed since it passed: {', '.join(changed[:NAMED_FILES])}{more}" if changed else "nothing has changed"
        print(f"{name}: runs; {why}", flush=True)
        status = groups[name].run()
        if status == 0:
            note = note_of(name, root)
            note.parent.mkdir(exist_ok=True)
            note.write_text("".join(f"{digest}  {path}\n" for path, digest in files.items()), encoding="utf-8")
        elif status == SKIPPED:
            print(f"{name}: not noted as passed, since something was skipped", flush=True)
        else:
            print(f"{name}: failed", flush=True)
            worst = status
    return worst


if __name__ == "__main__":
    if unknown := set(sys.argv[1:]) - GROUPS.keys():
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; the groups are {', '.join(GROUPS)}")
    sys.exit(main(sys.argv[1:]))
