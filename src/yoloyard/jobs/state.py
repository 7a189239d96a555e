"""What is known of a job at one moment, wherever it runs: from its launch, its keeper's record and its run's files."""

from collections.abc import Mapping, Sequence
from typing import Any

from yoloyard.common.log import time_text
from yoloyard.common.run_folder import RunFolder
from yoloyard.jobs.launched import Launch

OVER = ("finished", "failed", "stopped", "limit")


def document(
    launch: Launch, keeper: Mapping[str, Any], run: RunFolder | None, log: Sequence[str], is_there: bool
) -> dict[str, Any]:
    """The document of `yoloyard jobs status --json`. `keeper`: of keeper.json; `is_there`: its guard or host still is.

    `log` are the last lines, which the document has where the job failed.
    """
    state, reason = keeper.get("state") or "starting", keeper.get("reason") or ""
    if state not in (*OVER, "interrupted") and not is_there:
        state, reason = "interrupted", f"its guard is gone (it was {state}); yoloyard launch goes on with it"
    seconds, cost = keeper.get("seconds") or 0, keeper.get("cost")
    return {
        "name": launch.name,
        "run": launch.run,
        "on": launch.on,
        "state": state,
        "reason": reason,
        "epoch": run.epoch if run else 0,
        "epochs": run.epochs if run else 0,
        "best": run.best if run else None,
        "seconds_left": run.seconds_left if run else None,
        "hours": seconds / 3600,
        "cost": cost,
        "max_hours": launch.max_hours,
        "max_cost": launch.max_cost,
        "idle_minutes": launch.idle_minutes,
        "price": launch.price,
        "attempts": keeper.get("attempts") or 0,
        "updated": keeper.get("updated"),
        "launched": launch.time,
        "log": list(log) if state in ("failed", "interrupted") else [],
    }


def texts(status: Mapping[str, Any]) -> dict[str, str]:
    """What a table of jobs says of one; what there is nothing to say of is empty."""
    best, hours, cost = status["best"], status["hours"], status["cost"]
    spent = f"{hours:.2f} h" + (f" of {status['max_hours']:g} h" if status["max_hours"] else "")
    paid = "" if cost is None else f"${cost:.2f}" + (f" of ${status['max_cost']:g}" if status["max_cost"] else "")
    return {
        "run": status["run"],
        "on": status["on"],
        "state": status["state"],
        "epoch": f"{status['epoch']:.{1 if status['state'] == 'running' else 0}f}/{status['epochs']}",
        "best (epoch)": f"{best['value']:.4f} ({best['epoch']})" if best else "",
        "time": spent,
        "left at most": time_text(status["seconds_left"]) if status["seconds_left"] else "",
        "cost": paid,
    }
