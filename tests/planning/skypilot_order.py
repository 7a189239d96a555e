"""In the environment of SkyPilot: the order in which its optimizer takes hosts. Argument: a JSON file of questions.

A question is `hours` by names of GPUs, `count`, `nodes`, `spot`. The answers, in the file with the suffix .answers, are
`orders` of hosts with the cheapest first (cloud, instance, region, cost), and prices of `google`, on demand and spot.
"""

import json
import sys
from pathlib import Path

from sky import Dag, Resources, Task, check, global_user_state
from sky.catalog import gcp_catalog
from sky.clouds import CloudCapability
from sky.optimizer import Optimizer

CLOUDS = ["AWS", "Lambda", "RunPod"]


def order(hours: dict[str, float], count: int, nodes: int, spot: bool) -> list[tuple[str, str, str, float]]:
    with Dag() as dag:
        task = Task(run="true", num_nodes=nodes)
    task.set_resources({Resources(accelerators={gpu: count}, use_spot=spot) for gpu in hours})
    task.set_time_estimator(lambda resources: round(3600 * hours[next(iter(resources.accelerators))]))
    Optimizer._add_dummy_source_sink_nodes(dag)  # as its `optimize` does, which keeps the cheapest alone
    source, sink = (each for each in dag.tasks if each is not task)
    costs = Optimizer._estimate_nodes_cost_or_time([source, task, sink], minimize_cost=True, quiet=True)[0][task]
    hosts = sorted(costs.items(), key=lambda item: item[1])
    return [(str(each.cloud).lower(), each.instance_type, each.region, cost) for each, cost in hosts]


if __name__ == "__main__":
    global_user_state.set_allowed_clouds(check._get_workspace_allowed_clouds("default"), "default")
    global_user_state.set_enabled_clouds(CLOUDS, CloudCapability.COMPUTE, "default")
    answers = [order(**question) for question in json.loads(Path(sys.argv[1]).read_text())]
    of_google = gcp_catalog.list_accelerators(gpus_only=True, all_regions=True)
    google = [(each.instance_type, each.price, each.spot_price) for rows in of_google.values() for each in rows]
    Path(sys.argv[1]).with_suffix(".answers").write_text(json.dumps({"orders": answers, "google": google}))
