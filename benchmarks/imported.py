"""Are imported weights as good as the originals? Both predict the same images; one evaluator scores both.

    python benchmarks/imported.py --data trees/data.yaml --work runs/benchmark-trees/yolov5n

The weights and the predictions of the reference are those that trees.py left in its work folder. Exits with 1 if a
figure differs by more than 0.002.
"""

import argparse
import json
import sys
from pathlib import Path

from trees import KINDS, REFERENCES, predict_ours, score

LIMIT = 0.002


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare imported weights with the originals.")
    parser.add_argument("--data", type=Path, required=True, help="data.yaml written by examples/trees/prepare.py")
    parser.add_argument("--work", type=Path, required=True, help="work folder of trees.py, with reference runs in it")
    arguments = parser.parse_args()
    largest = 0.0
    print("| run | weights | figure | original | imported |\n| --- | --- | --- | --- | --- |")
    for done in sorted(arguments.work.glob("*/scored.json")):
        run = json.loads(done.read_text(encoding="utf-8"))
        reference = REFERENCES[run["model"]]
        if run["side"] != reference.side:
            continue
        for kind in KINDS:
            weights = done.parent / "run" / "weights" / f"{kind}.pt"
            predictions = done.parent / f"imported-{kind}.json"
            predict_ours(arguments.data, weights, reference.iou, run["imgsz"], predictions)
            found = score(arguments.data, predictions)
            for name in ("map50", "map50_95"):
                largest = max(largest, abs(run[kind][name] - found[name]))
                title = f"{run['model']}, seed {run['seed']}"
                print(f"| {title} | {kind}.pt | {name} | {run[kind][name]:.4f} | {found[name]:.4f} |")
    print(f"\nlargest difference: {largest:.4f}")
    sys.exit(1 if largest > LIMIT else 0)


if __name__ == "__main__":
    main()
