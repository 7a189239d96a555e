"""From a job file to a launch: all that decides the run, the same from each clone, and what differs from last time."""

import dataclasses
import hashlib
import json
import logging
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from yoloyard.common.digests import source_sha256
from yoloyard.common.errors import UsageError
from yoloyard.common.files import write_whole
from yoloyard.common.versions import versions
from yoloyard.config.settings import TrainConfig, settings_of
from yoloyard.jobs.data_set import DataSet, find_data
from yoloyard.jobs.job_file import Job, Resources
from yoloyard.jobs.launched import Launch, read_launch, write_launch
from yoloyard.jobs.source import Source, find_source
from yoloyard.machines.containers.host import Host
from yoloyard.machines.image.build import image_names
from yoloyard.machines.image.versions import TABLE, Tag, find_tag
from yoloyard.planning.prices import all_offers, is_usable
from yoloyard.storage.address import is_address

log = logging.getLogger(__name__)

LOCK = ".lock.json"  # after the job file's name without .yaml: the last launch, made to be committed
# What of a launch is no reason for another result.
INCIDENTAL = ("run", "time", "host", "price", "price_source", "data_yaml", "data_source")
SPOT_MARGIN = 1.5  # that the spot hosts of a job may differ in price


@dataclass(frozen=True)
class Prepared:
    """A launch, and what of this machine goes along with it."""

    launch: Launch
    job: Job
    source: Source  # `bundle()` writes the commit, `patch` and `shallow` are files of the host
    data: DataSet  # `folder` and `files` are to be copied, where they are not in an object store
    release: str | None  # the command of release.sh
    differences: tuple[str, ...]  # from the last launch, a line each


def prepare(
    job: Job,
    on: str | None = None,
    clean: bool = False,
    price: float | None = None,
    release: str | None = None,
) -> Prepared:
    """What a launch of `job` consists of; nothing is started or written.

    `run` is the last one, or the job's name: a place that finds that run finished takes `next_run`. Raises UsageError
    or UserError.
    """
    place = on or job.on or job.resources.cloud
    if place is None:
        raise UsageError(f"{job.path} doesn't say where it runs: --on ssh://user@host, --on aws ..., or `on:` in it")
    last = read_lock(job.path)
    settings = dict(job.train)
    base = job.path.absolute().parent
    data = find_data(Path(settings["data"]), job.data, base, settings.get("backup_endpoint"))
    folder = os.path.realpath(data.folder) if data.folder else ""
    locks = [lock_of(path) for path in base.glob("*.y*ml")]
    source = find_source(base, locks, {os.path.join(folder, name) for name in data.files}, clean)
    settings |= {"data": data.setting} | _paths_there(settings, source)
    resources, limits = job.resources, job.limits
    gpus = 0 if resources.gpu == "none" else resources.count
    if gpus > 1 and not {"processes", "device"} & settings.keys():
        settings["processes"] = gpus
    if resources.spot and not job.backup:
        raise UsageError(f"{job.path}: spot hosts are taken away at any time, and all work with them: add `backup:`")
    known = price_of(place, resources) if price is None else (price, "--price")
    if known[0] is None and last and (last.on, last.gpu, last.gpus) == (place, resources.gpu, gpus):
        known = last.price, last.price_source  # what --price has said of this host before
    if limits.max_cost and known[0] is None:
        what = "max_cost needs the price of a host, which no table knows"
        raise UsageError(f"{job.path}: {what}: --price DOLLARS-AN-HOUR")
    # What a place has chosen before for such a host, it takes again.
    chosen = last.image if last and (last.on, last.gpu) == (place, resources.gpu) else ""
    tag = find_tag(job.image or chosen) if job.image or chosen else None
    launch = Launch(
        name=job.name,
        run=last.run if last and last.name == job.name else job.name,
        on=place,
        train=settings,
        commit=source.commit,
        patch=source.patch_digest,
        yoloyard=f"{versions()['yoloyard']}-{source_sha256()[:12]}",
        image=tag.name if tag else "",
        image_digest=image_digest(tag) if tag else None,
        data=data.fingerprint,
        data_yaml=data.yaml,
        data_source=data.source,
        backup=job.backup,
        nodes=resources.nodes,
        gpus=gpus,
        gpu=resources.gpu,
        price=known[0],
        price_source=known[1],
        max_hours=limits.max_hours,
        max_cost=limits.max_cost,
        idle_minutes=limits.idle_minutes,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        host=platform.node(),
    )
    lines: list[str] = []
    if last is not None:  # a commit of the lock alone is none of other files
        commit = launch.commit if source.is_as(last.commit) else last.commit
        lines = differences(dataclasses.replace(last, commit=commit), launch)
    return Prepared(launch, job, source, data, release, tuple(lines))


def price_of(place: str, resources: Resources) -> tuple[float | None, str | None]:
    """Dollars an hour of such a host in these clouds, and where that is from; None where it is unknown.

    On demand that of the cheapest. A spot host is replaced by others, elsewhere: the dearest one that costs no more
    than SPOT_MARGIN times the cheapest, so that with `max_cost` there are others, and no cost is counted too low.
    """
    wanted = resources.gpu, resources.count, resources.spot
    if place.startswith("ssh://"):
        return None, None
    offers = [
        each
        for each in all_offers(None)[0]
        if each.provider in place.split(",")
        and (each.gpu, each.count, each.spot) == wanted
        and resources.region in (None, each.region)
        and is_usable(each)
    ]
    if not offers:
        return None, None
    offers.sort(key=lambda each: each.price or 0)
    most = (offers[0].price or 0) * (SPOT_MARGIN if resources.spot else 1)
    best = [each for each in offers if (each.price or 0) <= most][-1 if resources.spot else 0]
    doubts = "".join(f"; {doubt}" for doubt in best.doubts)
    return best.price, f"{best.provider} {best.instance} in {best.region}, {best.dated}{doubts}"


def next_run(launch: Launch, run: str) -> str:
    """The name of the run after `run`: NAME-2, NAME-3 ..."""
    number = re.fullmatch(rf"{re.escape(launch.name)}-(\d+)", run)
    return f"{launch.name}-{int(number[1]) + 1 if number else 2}"


def lock_of(job_file: Path) -> Path:
    """The lock beside a job file."""
    return job_file.absolute().with_name(job_file.stem + LOCK)


def read_lock(job_file: Path) -> Launch | None:
    """The last launch of a job file, None if there was none. Raises UsageError if its lock is damaged."""
    try:
        return read_launch(lock_of(job_file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        remedy = "git checkout brings it back, or remove it"
        raise UsageError(f"{lock_of(job_file)} can't be read ({error}): {remedy}") from error


def note_of(name: str) -> Path:
    """Where this machine notes the last launch of a job: ~/.local/state/yoloyard/jobs/NAME.json."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(state, "yoloyard", "jobs", f"{name}.json")


def notes() -> list[Launch]:
    """The last launch of each job that was launched from this machine, by name."""
    return [read_launch(path) for path in sorted(note_of("").parent.glob("*.json"))]


def keep_note(launch: Launch) -> None:
    """Note a launch on this machine."""
    note = note_of(launch.name)
    write_whole(note, lambda path: write_launch(path, launch))


def keep(launch: Launch, job_file: Path) -> None:
    """Note a launch on this machine, and in the job file's lock."""
    keep_note(launch)
    write_whole(lock_of(job_file), lambda path: write_launch(path, launch))


def differences(last: Launch, now: Launch) -> list[str]:
    """What a launch has otherwise than the last one, a line each: `image: torch2.8-cu128 -> torch2.9-cu130`."""
    before, after = map(_flat, (last, now))
    lines = []
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if name not in INCIDENTAL and old != new:
            lines.append(f"{name}: {_short(old)} -> {_short(new)}")
    return lines


def image_digest(tag: Tag) -> str:
    """Of the image of a tag in the registry that $YOLOYARD_IMAGE names, else of what images and venvs are made of."""
    name = image_names(tag, "runtime")[0]
    if os.environ.get("YOLOYARD_IMAGE"):
        asked = ["docker", "buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}", name]
        for argv in (asked, ["skopeo", "inspect", "--format", "{{.Digest}}", f"docker://{name}"]):
            done = Host().run(argv)
            if done.returncode == 0 and done.stdout.startswith("sha256:"):
                return done.stdout.strip()
        log.info(f"the digest of {name} is not known here: neither docker buildx nor skopeo tells it")
    digest = hashlib.sha256(json.dumps([tag.torch, tag.cuda, tag.python, tag.index]).encode())
    for file in ("Dockerfile", "entrypoint.py", "requirements-torch.txt", "requirements.txt"):
        digest.update((TABLE.parent / file).read_bytes())
    return f"locks:{digest.hexdigest()}"


def _paths_there(settings: Mapping[str, Any], source: Source) -> dict[str, str]:
    """The settings that name files, as paths from the checkout. Raises UsageError for a file that doesn't go along."""
    there = {}
    for name, leaf in settings_of(TrainConfig).items():
        value = settings.get(name)
        if not leaf.is_path or name in ("data", "project") or not isinstance(value, str) or is_address(value):
            continue
        file, colon, rest = value.partition(":")
        path = Path(file)
        if not path.is_absolute():  # a name of the registry: the job file makes paths absolute
            continue
        if not path.exists():
            raise UsageError(f"train.{name}: there is no file {path}")
        if not source.has(path):
            raise UsageError(
                f"train.{name}: {path} is no part of the repository {source.top}, so the host doesn't get it: commit "
                "it (git add -f), or name its address in an object store"
            )
        there[name] = os.path.relpath(os.path.realpath(path), os.path.realpath(source.top)) + colon + rest
    return there


def _flat(launch: Launch) -> dict[str, Any]:
    values = dataclasses.asdict(launch)
    return values | {f"train.{name}": value for name, value in values.pop("train").items()}


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return f"{text[:19]}..." if re.fullmatch(r"(sha256:|locks:)?[0-9a-f]{40,}", text) else text
