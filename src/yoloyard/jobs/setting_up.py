"""What a host gets before a job can start there: this package, an environment, the commit and the data.

Each step can be repeated and goes on from what is there already. Everything lies below ~/.yoloyard of the host.
"""

import hashlib
import json
import logging
import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yoloyard
from yoloyard.common.errors import UserError, last_line
from yoloyard.common.log import bytes_text
from yoloyard.jobs.data_set import DataSet
from yoloyard.jobs.job_folder import JobFolder
from yoloyard.jobs.launched import Launch
from yoloyard.jobs.source import BUNDLE, CHECKOUT, PATCH, Source
from yoloyard.machines.containers.copying import send_image
from yoloyard.machines.containers.gpus import Graphics, gpu_service
from yoloyard.machines.containers.host import Host
from yoloyard.machines.image.build import image_names
from yoloyard.machines.image.versions import TABLE, Tag

log = logging.getLogger(__name__)

LOCKS = ("requirements-torch.txt", "requirements.txt")
MARK = "job-of-yoloyard"  # an empty file in the folders of jobs
CPU_BYTES, CUDA_BYTES = 1.5e9, 9e9  # of an environment; with CUDA it is mostly torch and its libraries
SPARE_BYTES = 0.5e9  # for checkpoints and records, at the least
SAVING_SECONDS = 300  # that a training left over in a container has to save
# How the names of doctor's findings begin that a job without GPUs needn't heed.
OF_GPUS = ("gpu-", "driver-", "nouveau", "cuda-", "container-")

# $1: the environment; $2: Python; $3: the folder of the locks; $4, $5, $6: version, CUDA and index of torch. Its output
# goes to a file, so that it goes on where the connection breaks; the next launch waits for it.
ENVIRONMENT = r"""umask 077
mkdir -p "${1%/*}"
exec 9> "$1.lock"
flock 9
[ -e "$1/whole" ] && "$1/bin/python" -c '' 2> /dev/null && exit
export TMPDIR="$1/tmp" PIP_DISABLE_PIP_VERSION_CHECK=1
install() { "$python" -m pip install --quiet "$@"; }
python=$1/bin/python
rm -rf "$1" && {
    "$2" -m venv "$1" && mkdir "$1/tmp" &&
    install --require-hashes --no-deps -r "$3/requirements-torch.txt" &&
    install ${6:+--extra-index-url "$6"} "torch==$4" &&
    install --require-hashes --no-deps -r "$3/requirements.txt" &&
    "$python" -c 'import sys, torch; has = torch.version.cuda or ""; asked = sys.argv[1]
sys.exit(has != asked and f"the wheel of torch has CUDA {has or None}, the tag has {asked or None}")' "$5" &&
    rm -r "$1/tmp" && : > "$1/whole"
} > "$1.log" 2>&1 9>&- || { tail -n 1 "$1.log" >&2; exit 1; }
"""
# Kilobytes that are free where $1 lies.
FREE = r"""[ -d "$1" ] || set -- "$HOME"
df -Pk "$1" | sed -n 's/.* \([0-9][0-9]*\)  *[0-9]*% .*/\1/p' | tail -n 1
"""
# In a job's folder: data.new lists what data/ is to hold, data.files what was ever sent there.
LIST_DATA = r"""cd "$1" && mkdir -p data && touch data.files && export LC_ALL=C &&
sort -zu data.files data.new > data.all && mv data.all data.files
du -sk data | sed 's/[^0-9].*//'
"""
CLEAR_DATA = r"""cd "$1" && export LC_ALL=C && comm -z -23 data.files data.new > data.old &&
(cd data && xargs -0 -r rm -f --) < data.old && mv data.new data.files && rm data.old
"""


@dataclass(frozen=True)
class Environment:
    """What a job runs in: `python` is the argv there that begins Python with this package."""

    python: Sequence[str]
    engine: str | None  # None: a venv
    venv: PurePosixPath | None
    text: str  # for people

    def scripts(self, job: JobFolder) -> tuple[str, str]:
        """run.sh, which the guard starts, and shell.sh for people."""
        head, keeper = "#!/bin/sh\n", ["-m", "yoloyard.jobs.node", str(job.path)]
        if self.engine is None:
            inside = f"cd {shlex.quote(str(job.path / 'source'))} && export {shlex.quote(self.python[1])}"
            path = f'PATH={shlex.quote(f"{self.venv}/bin")}:"$PATH"'
            return (
                f"{head}exec {shlex.join([*self.python, *keeper])}\n",
                f'{head}{inside} {path} && exec "${{SHELL:-sh}}"\n',
            )
        name = f"yoloyard-{job.name}"
        # What a guard that was killed has left behind saves first.
        clear = f"{self.engine} stop --time {SAVING_SECONDS} {name}; {self.engine} rm --force {name}"
        run = [*self.python[:2], f"--name={name}", "--env=YOLOYARD_ATTEMPT", *self.python[2:], *keeper]
        inside = f"[ -t 0 ] && tty=--tty\nexec {self.engine} exec --interactive $tty {name} bash"
        return f"{head}{{ {clear}; }} > /dev/null 2>&1\nexec {shlex.join(run)}\n", f"{head}{inside}\n"


def set_up(job: JobFolder, launch: Launch, tag: Tag, graphics: Graphics) -> Environment:
    """Bring package and environment there, and let doctor look at the host. Raises UserError."""
    facts = job.facts()
    if facts.get("kills"):
        remedy = "set KillUserProcesses=no in /etc/systemd/logind.conf and restart systemd-logind"
        raise UserError(f"{job.host} ends all that you run when you log out: {remedy}")
    package = send_package(job, launch.yoloyard)
    environment = find_environment(job, facts, launch, tag, graphics, package)
    log.info(f"{job.host} runs it in {environment.text}")
    if environment.venv:
        make_venv(job, environment.venv, facts.get("python"), tag, package)
    examine(job, environment, graphics.driver is not None)
    return environment


def send_package(job: JobFolder, version: str) -> PurePosixPath:
    """Bring this package there: its folder for PYTHONPATH. `version` has a digest of its content."""
    place = job.root / "packages" / version
    if job.run("looking for the package", '[ ! -e "$1/yoloyard" ] || echo there', place):
        return place
    part = f"{place}.{os.getpid()}.part"
    job.run("making a folder for the package", 'umask 077; mkdir -p "$1/yoloyard"', part)
    source = f"{Path(yoloyard.__file__).parent}/"
    to = job.there(PurePosixPath(part, "yoloyard"))
    job.rsync("sending the package", "-rt", "--exclude=__pycache__", source, f"{to}/")
    job.run("naming the package", 'mv -T "$1" "$2" 2> /dev/null || rm -r "$1"; [ -e "$2/yoloyard" ]', part, place)
    return place


def find_environment(
    job: JobFolder,
    facts: Mapping[str, Sequence[str]],
    launch: Launch,
    tag: Tag,
    graphics: Graphics,
    package: PurePosixPath,
) -> Environment:
    """The image of `tag` where an engine there has it or gets it, else a venv of the same locks, there or not.

    `facts`: of the host, by `JobFolder.facts`.
    """
    (engine, *_), (user, *_), home, root = facts.get("engine", [""]), facts["user"], job.home, job.root
    if engine and (reference := _image(job.host, engine, tag, launch)):
        try:
            given = {} if graphics.driver is None else gpu_service(job.host, engine, None)
        except UserError as error:
            log.warning(f"{error}. So the job gets a venv")
        else:
            gpus = [f"--device={name}" for name in given.get("devices", [])] or ["--gpus=all"] * bool(given)
            keep = ["--userns=keep-id"] if engine == "podman" and not user.startswith("0:") else []
            keys = [f"--volume={home}/{name}:{home}/{name}:ro" for name in facts.get("credentials", [])]
            python = [engine, "run", "--rm", f"--user={user}", *keep, *gpus, "--shm-size=8gb", "--network=host", *keys]
            python += ["--no-healthcheck", "--security-opt=label=disable", f"--volume={root}:{root}"]
            python += [f"--workdir={job.path}", f"--env=HOME={home}", f"--env=XDG_CACHE_HOME={root}/cache"]
            python += [f"--env=PYTHONPATH={package}", "--entrypoint=tini", reference, "--", "python3"]
            return Environment(python, engine, None, f"the image {reference}")
    venv = root / "venvs" / venv_name(tag)
    variables = ["env", f"PYTHONPATH={package}", f"{venv}/bin/python"]
    return Environment(variables, None, venv, f"a venv of the tag {tag.name}")


def venv_name(tag: Tag) -> str:
    """What a venv of a tag is called, below ~/.yoloyard/venvs: with a digest of what it is made of."""
    digest = hashlib.sha256("\n".join([tag.torch, tag.cuda, tag.index]).encode())
    for name in LOCKS:
        digest.update((TABLE.parent / name).read_bytes())
    return f"{tag.name}-{digest.hexdigest()[:12]}"


def _image(host: Host, engine: str, tag: Tag, launch: Launch) -> str:
    """The image of `tag` that `engine` on `host` has by now; empty if there is none."""
    reference = image_names(tag, "runtime")[0]
    if launch.image_digest and launch.image_digest.startswith("sha256:"):
        reference = f"{reference.rpartition(':')[0]}@{launch.image_digest}"
    if host.run([engine, "image", "inspect", reference]).returncode == 0:
        return reference
    if os.environ.get("YOLOYARD_IMAGE"):
        log.info(f"pulling {reference}")
        if host.call([engine, "pull", reference]) == 0:
            return reference
    elif send_image(reference, host, engine):
        return reference
    log.info(f"{engine} on {host} has no image {reference}, nor has this machine: the job gets a venv")
    return ""


def make_venv(
    job: JobFolder, venv: PurePosixPath, python: Sequence[str] | None, tag: Tag, package: PurePosixPath
) -> None:
    """Make the environment there if it isn't whole. Raises UserError with the last line of pip."""
    whole = '[ ! -e "$1/whole" ] || "$1/bin/python" -c "print(1)" 2> /dev/null; :'
    if job.run("looking for the environment", whole, venv):
        return
    if not python:
        remedy = "install it (Debian, Ubuntu: sudo apt install python3 python3-venv), or Docker"
        raise UserError(f"{job.host} has no Python 3.11 to 3.13 with its module venv: {remedy}")
    check_room(job, CUDA_BYTES if tag.cuda else CPU_BYTES)
    log.info(f"making {venv} with {python[0]}: it takes minutes, and goes on there if the connection breaks")
    locks = package / "yoloyard" / "docker"
    job.run(f"making {venv}", ENVIRONMENT, venv, python[0], locks, tag.torch, tag.cuda, tag.index)


def check_room(job: JobFolder, needed: float) -> None:
    """Raises UserError if the disk of ~/.yoloyard there has less free than `needed` bytes and something to spare."""
    free = 1024 * int(job.run("looking at the disk", FREE, job.root))
    if free < needed + SPARE_BYTES:
        what = f"{job.host} has {bytes_text(free)} free in {job.root}, the job needs {bytes_text(needed + SPARE_BYTES)}"
        raise UserError(f"{what}: make room there, or make {job.root} a link to a folder on a larger disk")


def examine(job: JobFolder, environment: Environment, needs_gpus: bool) -> None:
    """Let doctor look at the host, from inside the environment. Raises UserError for problems; warnings are said."""
    argv = [*environment.python, "-m", "yoloyard", "doctor", "--json", "--folder", str(job.path)]
    done = job.host.run([*argv, *([] if needs_gpus else ["--quick"])])
    try:
        findings = json.loads(done.stdout)["findings"]
    except (ValueError, LookupError) as error:
        raise UserError(f"doctor can't run on {job.host} in {environment.text}: {last_line(done.stderr)}") from error
    problems, warnings = list[str](), list[str]()
    taken = [each["verdict"] for each in findings if each["check"] == "gpu-taken"]
    for each in findings:
        line = f"{each['title']}: {each['evidence']}" + (f" -> {each['remedy']}" if each["remedy"] else "")
        left_out = each["check"].startswith(OF_GPUS) if not needs_gpus else each["check"] == "container-toolkit"
        is_free_elsewhere = each["check"] == "gpu-taken" and any(verdict != "problem" for verdict in taken)
        if each["verdict"] == "problem" and not left_out:
            (warnings if is_free_elsewhere else problems).append(line)
        elif each["verdict"] == "warning" and not left_out:
            warnings.append(line)
    for line in warnings:
        log.warning(f"{job.host}: {line}")
    if problems:
        raise UserError(f"{job.host} is not fit for the job, and no data was sent. {'; '.join(problems)}")


def send_source(job: JobFolder, source: Source) -> None:
    """Bring the commit with the patch into source/; of its history, what is not there yet. Raises UserError."""
    script = 'git -C "$1/source" rev-parse --verify --quiet HEAD; :'
    old = job.run("looking for the source", script, job.path).strip() or None
    with tempfile.TemporaryDirectory(prefix="yoloyard-") as scratch:
        files = {PATCH: source.patch, "source.shallow": source.shallow}
        for name, content in files.items():
            Path(scratch, name).write_bytes(content or b"")
        if old != source.commit:
            source.bundle(Path(scratch, BUNDLE), old)
        size = sum(path.stat().st_size for path in Path(scratch).iterdir())
        log.info(f"sending the commit {source.commit[:12]}, {bytes_text(size)}")
        job.rsync("sending the commit", "-rt", "--partial-dir=.partial", f"{scratch}/", f"{job.there(job.path)}/")
    job.run("checking the commit out", f'cd "$1" && shift && {{\n{CHECKOUT}\n}}', job.path, source.commit)


def send_data(job: JobFolder, data: DataSet) -> None:
    """Bring the files of the data set into data/ there, what has changed alone; what was sent once and is no part of it
    any more goes. Raises UserError; called again, it goes on."""
    if data.folder is None:
        return
    with tempfile.TemporaryDirectory(prefix="yoloyard-") as scratch:
        listed = Path(scratch, "data.new")
        listed.write_bytes(b"".join(name + b"\0" for name in sorted(map(os.fsencode, data.files))))
        job.rsync("sending the list of the data", "-t", listed, f"{job.there(job.path)}/")
        there = 1024 * int(job.run("looking at the data", LIST_DATA, job.path) or 0)
        check_room(job, max(0, data.bytes - there))
        log.info(f"sending {len(data.files):,} files of {data.folder}, {bytes_text(data.bytes)}; what is there stays")
        options = ["-tL", "--partial-dir=.rsync-partial", "--from0", f"--files-from={listed}"]
        job.rsync("sending the data", *options, f"{data.folder}/", f"{job.there(job.path)}/data/", is_shown=True)
    job.run("clearing the data", CLEAR_DATA, job.path)
