"""What a cheaper GPU would have given: a job's run, planned elsewhere and corrected by how long it really took."""

import dataclasses
import json
import logging
from typing import Any

from yoloyard.common.errors import UserError
from yoloyard.common.files import write_soon
from yoloyard.common.run_folder import RunFolder

log = logging.getLogger(__name__)

FILE = "job.json"  # in the folder of a job's run


def add_cheaper(run: RunFolder) -> None:
    """Write `cheaper` into job.json of a finished run that had a price; where that can't be known, a line says why."""
    try:
        job = json.loads((run.folder / FILE).read_text(encoding="utf-8"))
        if run.state != "finished" or not job["price"] or job["gpu"] is None:
            return
        environment = json.loads((run.folder / "environment.json").read_text(encoding="utf-8"))
        found = _cheapest(run, job, environment)
    except FileNotFoundError:  # it was no job
        return
    except (UserError, OSError, KeyError, TypeError, ValueError) as error:
        log.info(f"what a cheaper GPU would have given is not known: {error}")
        return
    write_soon(run.folder / FILE, json.dumps(job | {"cheaper": found}, indent=1).encode())


def _cheapest(run: RunFolder, job: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any] | None:
    """The offer of as many other GPUs, on demand, on which the run would have cost least; None: none is cheaper.

    All is modelled: hours on the other GPU are planned, times what the run took over what was planned for it. Offers
    with doubtful prices are left out, and GPUs that can't hold the batch as it was. Raises UserError, KeyError.
    """
    from yoloyard.planning.calibrate import step_of_run
    from yoloyard.planning.choose import Demands, ranked
    from yoloyard.planning.figures import Estimate, Gpu, Precision
    from yoloyard.planning.gpus import find_gpu, gpus
    from yoloyard.planning.hours import Images, estimate
    from yoloyard.planning.prices import all_offers

    demands = Demands(count=job["gpus"], nodes=job["nodes"], spot=False)
    offers = [offer for offer in all_offers(None)[0] if demands.allow(offer) and not offer.doubts]
    if not offers:
        raise UserError("there are no prices of other offers here: yoloyard plan says how to get them")
    images = Images(**environment["samples"])
    precision: Precision = "float32" if environment["precision"].startswith("float32") else "amp"
    config, cost = step_of_run(run, precision, images.channels)

    def on(gpu: Gpu, cores: int) -> Estimate:
        found = estimate(cost, config, images, gpu, job["gpus"], job["nodes"], cores or 8 * job["gpus"])
        return found if cost.peak_bytes < gpu.memory else dataclasses.replace(found, micro_batch=0)

    own = find_gpu(job["gpu"])
    factor = run.seconds / 3600 / on(own, int(environment["machine"]["cpus"]["usable"])).hours
    paid = job["price"] * job["nodes"] * run.seconds / 3600
    best = ranked((each for each in offers if each.gpu != own.name), lambda offer: on(gpus()[offer.gpu], offer.cores))
    if not best or best[0].cost is None or best[0].cost * factor >= paid:
        return None
    offer, hours = best[0].offer, best[0].estimate.hours * factor
    facts = {name: getattr(offer, name) for name in ("gpu", "provider", "region", "price", "dated")}
    return facts | {"kind": "modelled", "hours": hours, "cost": best[0].cost * factor, "instead_of": paid}
