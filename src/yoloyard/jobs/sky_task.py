"""A launch as a task of SkyPilot 0.14: its YAML, and the folder that SkyPilot copies to each host.

All that a host needs but the data travels in this folder, straight from this machine (or from SkyPilot's controller) to
the host, so no bucket is made for it. Nothing of SkyPilot is imported here.
"""

import hashlib
import os
import re
import shlex
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import yoloyard
from yoloyard.common.errors import UsageError
from yoloyard.jobs.launched import FILE, Launch, write_launch
from yoloyard.jobs.prepare import Prepared
from yoloyard.jobs.setting_up import ENVIRONMENT, venv_name
from yoloyard.jobs.source import BUNDLE, CHECKOUT, PATCH
from yoloyard.machines.image.build import image_names
from yoloyard.machines.image.versions import CPU, Tag, best_tag, code_for, find_tag, number, tags
from yoloyard.planning.choose import ONE_HOST
from yoloyard.planning.gpus import find_gpu
from yoloyard.storage.address import ENDPOINTS

FOLDER = "~/yoloyard-job"  # on each host
PREFIX = "yoloyard-"  # of a job's name at SkyPilot, and so of the names of its hosts
LABEL = "yoloyard"
# Where hosts can be found again: the first four keep labels, the others the name that SkyPilot gives them.
WITH_ROLES = ("aws", "gcp", "azure")  # a host gets a role in place of this machine's credentials
CLOUDS = (*WITH_ROLES, "kubernetes", "lambda", "runpod")
INTERRUPTED = 128 + signal.SIGTERM  # the keeper's exit status when the host is taken away: SkyPilot finds another one
HOOK_SECONDS = 600  # that SkyPilot waits for a save and its upload before it takes a host away
RELEASE_MINUTES = 15  # after the end, if SkyPilot has not taken the host back by then

SET_UP = """set -eu
cd {folder}
as_root=$(command -v sudo) || :
command -v git > /dev/null || {{ $as_root apt-get update -q && $as_root apt-get install -q -y git; }}
sh checkout.sh {commit}
"""
# SkyPilot's hosts have uv, which finds Python or brings it.
VENV = """PATH="$HOME/.local/bin:$PATH"
uv python find '>=3.11,<3.14' > /dev/null 2>&1 || uv python install --quiet {python}
sh environment.sh {venv} "$(uv python find '>=3.11,<3.14')" package/yoloyard/docker {torch} {cuda} {index}
"""
RUN = """#!/bin/sh
export PYTHONPATH="$HOME/yoloyard-job/package${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONUNBUFFERED=1
exec {python} -m yoloyard.jobs.node "$HOME/yoloyard-job"
"""
# SkyPilot shows what a job prints, and the guard writes it into a file.
RUN_GUARD = """cd {folder}
touch log.txt
tail -n +1 -f log.txt &
if [ -e spot.sh ]; then sh spot.sh & fi
sh guard.sh
code=$?
sleep 1
kill $(jobs -p)
exit $code
"""
# AWS, Google and Azure say half a minute and more before that they take a spot host back; SkyPilot doesn't listen.
SPOT = """command -v curl > /dev/null || exit 0
get() { curl --silent --fail --max-time 2 --noproxy '*' "$@"; }
at=http://169.254.169.254
while sleep 5; do
    token=$(get -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' $at/latest/api/token) &&
        get -H "X-aws-ec2-metadata-token: $token" $at/latest/meta-data/spot/instance-action && break
    [ "$(get -H 'Metadata-Flavor: Google' $at/computeMetadata/v1/instance/preempted)" = TRUE ] && break
    get -H 'Metadata: true' "$at/metadata/scheduledevents?api-version=2020-07-01" | grep '"Preempt"' && break
done
echo "the cloud takes this host back: the job saves, and goes on elsewhere"
kill -TERM "$(cat guard.pid)"
"""
# SkyPilot takes the host back itself. This is for the case that it can't: it was stopped, or its computer is off.
RELEASE = """#!/bin/sh
sudo -n shutdown -h +{minutes} || shutdown -h +{minutes} || echo "this host can't switch itself off: SkyPilot has to"
"""
# SkyPilot runs this before it takes a host away: on request, and in pods of Kubernetes that are preempted.
HOOK = """pid=$(cat {folder}/guard.pid) && kill -TERM "$pid" || exit 0
while kill -0 "$pid" 2> /dev/null; do sleep 1; done
"""


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such."""


_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, "|" if "\n" in text else None)
)


def sky_name(launch: Launch) -> str:
    """What a job is called at SkyPilot and in labels: `yoloyard-NAME-DIGEST`.

    The digest tells jobs of one name apart, whose backups differ: those of colleagues, or of another project.
    """
    digest = hashlib.sha256(f"{launch.name} {launch.backup}".encode()).hexdigest()[:6]
    return f"{PREFIX}{re.sub('[^a-z0-9-]', '-', launch.name.lower())}-{digest}"


def clouds_of(launch: Launch) -> list[str]:
    """The clouds that `on` names: one, or several with commas. Raises UsageError for one that can't be swept."""
    clouds = [cloud.strip().lower() for cloud in launch.on.split(",")]
    for cloud in clouds:
        if cloud not in CLOUDS:
            why = "hosts there can't be tagged and found again by `yoloyard jobs sweep`"
            raise UsageError(f"--on {cloud}: {why}; name one of {', '.join(CLOUDS)}, or ssh://user@host")
    return clouds


def task_of(prepared: Prepared, folder: Path, secrets: Sequence[str] = ()) -> dict[str, Any]:
    """The task, as SkyPilot's YAML has it; `folder` is what `stage` fills, `secrets` the names of variables.

    Raises UsageError where something is missing that SkyPilot can't choose.
    """
    launch, wanted = prepared.launch, prepared.job.resources
    clouds = clouds_of(launch)
    if launch.gpu is None:
        raise UsageError("resources: gpu is missing: `yoloyard plan` recommends one; `gpu: none` is a CPU")
    if launch.nodes > 1 and ONE_HOST.issuperset(clouds):
        raise UsageError(
            f"resources: nodes: SkyPilot starts no job of several hosts on {launch.on}: name another cloud"
        )
    if prepared.release:
        raise UsageError("--release is for hosts by ssh: those of clouds are taken back by SkyPilot")
    if wanted.region and len(clouds) > 1:
        raise UsageError(f"resources: region {wanted.region} is of one cloud, and --on names {len(clouds)}")
    name = sky_name(launch)
    hosts: dict[str, Any] = {
        **({"cloud": clouds[0]} if len(clouds) == 1 else {}),
        **({"region": wanted.region} if wanted.region else {}),
        **({"accelerators": f"{launch.gpu}:{launch.gpus}"} if launch.gpus else {}),
        "use_spot": wanted.spot,
        **({"disk_size": wanted.disk} if wanted.disk else {}),
        **({"image_id": f"docker:{image}"} if (image := _image(launch)) else {}),
        # A limit counts at this price, so no host that costs more is taken.
        **({"max_hourly_cost": launch.price} if launch.max_cost and launch.price else {}),
        "labels": {LABEL: name},
        "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [INTERRUPTED]},
        **({"any_of": [{"cloud": cloud} for cloud in clouds]} if len(clouds) > 1 else {}),
    }
    hook = {"run": HOOK.format(folder=FOLDER), "events": ["stop", "down", "preemption"], "timeout": HOOK_SECONDS}
    return {
        "name": name,
        "num_nodes": launch.nodes,
        "resources": hosts,
        "file_mounts": {FOLDER: str(folder)},
        **({"secrets": dict.fromkeys(secrets)} if secrets else {}),
        "setup": f"cd {FOLDER}\nsh set-up.sh\n",
        "run": RUN_GUARD.format(folder=FOLDER),
        "config": {"hooks": [hook]},
        "api_server_access": False,
    }


def text_of(task: dict[str, Any]) -> str:
    """The text of a task; it holds no secret."""
    return yaml.dump(task, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def stage(prepared: Prepared, folder: Path) -> None:
    """Fill the local `folder` with all that goes to each host, in place of what a former launch left there.

    It must stay until the job is over: a host that replaces a lost one gets the same.
    """
    launch, source = prepared.launch, prepared.source
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    package = Path(yoloyard.__file__).parent
    shutil.copytree(package, folder / "package" / "yoloyard", ignore=shutil.ignore_patterns("__pycache__"))
    source.bundle(folder / BUNDLE)
    texts = {**scripts(prepared), "data.yaml": launch.data_yaml or ""}
    files = {name: text.encode() for name, text in texts.items()} | {
        "source.shallow": source.shallow, PATCH: source.patch}  # fmt: skip
    for name, content in files.items():
        if content:
            (folder / name).write_bytes(content)
    shutil.copy(package / "jobs" / "node" / "guard.sh", folder)
    write_launch(folder / FILE, launch)


def scripts(prepared: Prepared) -> dict[str, str]:
    """The shell scripts of a host, by name, but for guard.sh: what sets it up, what runs there, what releases it."""
    launch = prepared.launch
    set_up = SET_UP.format(folder=FOLDER, commit=launch.commit)
    python = "/opt/yoloyard/bin/python"  # of the image
    if _image(launch) is None:
        tag = tag_of(launch)
        venv = f'"$HOME/.yoloyard/venvs/{venv_name(tag)}"'
        torch, cuda, index = map(shlex.quote, (tag.torch, tag.cuda, tag.index))
        set_up += VENV.format(venv=venv, python=tag.python, torch=torch, cuda=cuda, index=index)
        python = f"{venv}/bin/python"
    found = {
        "checkout.sh": CHECKOUT,
        "environment.sh": ENVIRONMENT,
        "set-up.sh": set_up,
        "run.sh": RUN.format(python=python),
        "release.sh": RELEASE.format(minutes=RELEASE_MINUTES),
    }
    if prepared.job.resources.spot and set(clouds_of(launch)) & {*WITH_ROLES}:
        found["spot.sh"] = SPOT
    return found


def tag_of(launch: Launch) -> Tag:
    """The tag that the job names, else the newest for its GPU and the oldest driver, since no host is known yet."""
    if launch.image:
        return find_tag(launch.image)
    if not launch.gpus or launch.gpu is None:
        return find_tag(CPU)
    capability = find_gpu(launch.gpu).capability
    drivers = [tag.driver for tag in tags().values() if code_for(capability, tag.architectures) == "binary"]
    return best_tag(min(drivers, key=number, default="0"), [capability])


def _image(launch: Launch) -> str | None:
    """The image in a registry, by its digest; None where it is in none, and a venv is made of the same locks."""
    if not (launch.image and (launch.image_digest or "").startswith("sha256:")):
        return None
    name = image_names(find_tag(launch.image), "runtime")[0]
    return f"{name.rpartition(':')[0]}@{launch.image_digest}"


def credentials(launch: Launch) -> tuple[dict[str, str], dict[str, str]]:
    """The variables by which a host reaches backup and data: plain ones, and secret ones.

    In its own cloud a host has a role, and nothing secret goes along. Raises UsageError if a secret is missing here.
    """
    clouds = clouds_of(launch)
    addresses = {str(each).partition("://")[0]: each for each in (launch.backup, launch.data_source)}
    plain, secret = dict[str, str](), _set(("YOLOYARD_NOTIFY",))
    if "file" in addresses:
        raise UsageError(f"{addresses['file']} is a folder here: a host in a cloud needs s3://, gs:// or az://")
    if "s3" in addresses:
        plain |= _set((*ENDPOINTS, "AWS_REGION", "AWS_DEFAULT_REGION"))
        if clouds != ["aws"] or _set(ENDPOINTS) or launch.train.get("backup_endpoint"):
            secret |= _aws_keys()
    if "gs" in addresses and clouds != ["gcp"]:
        secret |= _google_key()
    if "az" in addresses:
        plain |= _set(("AZURE_STORAGE_ACCOUNT_NAME",))
        secret |= (keys := _set(("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_KEY")))
        if not keys and clouds != ["azure"]:
            raise UsageError("az://: set AZURE_STORAGE_ACCOUNT_KEY, which hosts outside of Azure need")
    if launch.train.get("wandb"):
        secret |= (keys := _set(("WANDB_API_KEY",)))
        if not keys:
            raise UsageError("train.wandb: set WANDB_API_KEY, so that the host can report to Weights & Biases")
    return plain, secret


def _set(names: Sequence[str]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def _aws_keys() -> dict[str, str]:
    """The keys that this machine itself uses, from where the tools of AWS look for them."""
    import boto3

    found = boto3.Session().get_credentials()
    keys = found and found.get_frozen_credentials()
    if not keys or keys.token:
        what = "expire in hours, before the job ends" if keys else "are not found here"
        raise UsageError(
            f"s3://: the credentials {what}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of a user who may use "
            "this prefix alone"
        )
    return {"AWS_ACCESS_KEY_ID": keys.access_key, "AWS_SECRET_ACCESS_KEY": keys.secret_key}


def _google_key() -> dict[str, str]:
    path = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    text = Path(path).read_text(encoding="utf-8") if path and Path(path).is_file() else ""
    if '"private_key"' not in text:
        what = "set GOOGLE_APPLICATION_CREDENTIALS to the file with the key of a service account"
        raise UsageError(f"gs://: {what}, by which hosts outside of Google Cloud reach it")
    return {"GOOGLE_SERVICE_ACCOUNT_KEY": text}
