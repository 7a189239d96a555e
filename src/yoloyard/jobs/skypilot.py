"""What is asked of SkyPilot 0.14, the engine for clouds. It is imported inside functions: not all have it."""

import contextlib
import importlib.util
import io
import logging
import re
from collections.abc import Iterator
from typing import Any

from yoloyard.common.errors import UsageError, UserError, printable
from yoloyard.jobs.sky_task import LABEL, PREFIX, WITH_ROLES

log = logging.getLogger(__name__)

OTHERS = ("kubernetes", "nebius", "oci", "vast")  # whose keys SkyPilot would bring to each host, too
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # colours of a terminal
CANCEL_SECONDS = 1800  # that SkyPilot may take to end a job and take its hosts back


def is_installed() -> bool:
    """Is SkyPilot here?"""
    return importlib.util.find_spec("sky") is not None


def load() -> Any:
    """SkyPilot. Raises UsageError if it is not installed."""
    if not is_installed():
        raise UsageError("clouds need SkyPilot, which is not installed: pip install 'yoloyard[cloud]'")
    import sky
    import sky.jobs

    if not sky.__version__.startswith("0.14."):
        raise UsageError(f"this is SkyPilot {sky.__version__}, and 0.14 is needed: pip install 'yoloyard[cloud]'")
    return sky


@contextlib.contextmanager
def said(what: str) -> Iterator[None]:
    """Within the context, SkyPilot's errors become a UserError in one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {plain(str(error))}") from error


def plain(text: str) -> str:
    """What SkyPilot says, in one line and without colours."""
    return printable(" ".join(ESCAPES.sub("", text).split()))


class Log(io.TextIOBase):
    """Passes SkyPilot's lines on."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line := plain(line):
                log.info(f"SkyPilot: {line}")
        return len(text)


@contextlib.contextmanager
def configured(sky: Any, clouds: list[str]) -> Iterator[None]:
    """Within the context, requests carry settings of ours, where the user's config.yaml has none.

    No bucket for files; a controller that removes itself, unless it has jobs of somebody else, whose records would go;
    no credentials of this machine on hosts of clouds with roles.
    """
    ours: dict[tuple[str, ...], Any] = {("jobs", "force_disable_cloud_bucket"): True}
    if all(str(row["job_name"]).startswith(PREFIX) for row in records(sky)):
        ours[("jobs", "controller", "resources", "autostop")] = {"idle_minutes": 10, "down": True}
        ours[("jobs", "controller", "resources", "labels")] = {LABEL: "controller"}
    ours |= {(cloud, "remote_identity"): "SERVICE_ACCOUNT" for cloud in WITH_ROLES if cloud in clouds}
    ours |= {(cloud, "remote_identity"): "NO_UPLOAD" for cloud in (*WITH_ROLES, *OTHERS) if cloud not in clouds}
    config: dict[str, Any] = {}
    for keys, value in ours.items():
        if sky.skypilot_config.get_nested(keys, None) is None:
            place = config
            for key in keys[:-1]:
                place = place.setdefault(key, {})
            place[keys[-1]] = value
    with sky.skypilot_config.override_skypilot_config(config):
        yield


def watcher_text() -> str:
    """What looks after the job, and what that costs."""
    if is_installed():
        from sky.server.common import get_server_url, is_api_server_local
        from sky.skypilot_config import get_nested

        if not is_api_server_local():
            return f"the API server {get_server_url()} looks after the job"
        if get_nested(("jobs", "controller", "consolidation_mode"), False):
            return "this machine looks after the job; while it is off, no lost host is replaced"
    return "SkyPilot's controller looks after the job, a host (0.1 to 0.3 $ an hour) for all jobs: docs/cloud.md"


def check_clouds(sky: Any, clouds: list[str]) -> None:
    """Raises UserError with SkyPilot's reasons if it has no access to one of the clouds."""
    from sky.client import sdk  # `sky.check` is a module

    text = io.StringIO()
    with said("SkyPilot can't check the clouds"):
        enabled = sky.stream_and_get(sdk.check(infra_list=tuple(clouds), verbose=False), output_stream=text)
    able = {cloud.lower() for found in enabled.values() for cloud, what in dict(found).items() if "compute" in what}
    if missing := [cloud for cloud in clouds if cloud not in able]:
        why = plain(text.getvalue()).rpartition("for SkyPilot.")[2].partition("\N{PARTY POPPER}")[0].strip()
        raise UserError(f"SkyPilot has no access to {', '.join(missing)}: {why or '`sky check` says why'}")


def records(sky: Any, must_know: bool = False) -> list[dict[str, Any]]:
    """SkyPilot's records of all jobs, the newest first.

    A controller that does not answer has none to show; if we `must_know` them all, its error is raised.
    """
    from sky.exceptions import ClusterNotUpError
    from sky.utils.status_lib import ClusterStatus

    try:
        found = sky.get(sky.jobs.queue_v2(refresh=False, all_users=True, fields=None))[0]
    except ClusterNotUpError as error:
        if must_know and error.cluster_status not in (None, ClusterStatus.STOPPED):  # else it has no job that lives
            raise
        return []
    rows = [{**each.model_dump(), "status": each.status.value, "is_over": each.status.is_terminal()} for each in found]
    return sorted(rows, key=lambda row: -row["job_id"])


def active_job(sky: Any, name: str) -> dict[str, Any] | None:
    """SkyPilot's record of the job called `name`, if that is not over."""
    with said("SkyPilot can't list its jobs"):
        return next((row for row in records(sky) if row["job_name"] == name and not row["is_over"]), None)


def cancel(sky: Any, name: str) -> None:
    """Let SkyPilot end the job called `name`, and wait until it says that the hosts are gone."""
    if job := active_job(sky, name):
        sky.get(sky.jobs.cancel(job_ids=[job["job_id"]]))
        sky.get(sky.jobs.wait(job_id=job["job_id"], timeout=CANCEL_SECONDS, poll_interval=5))
