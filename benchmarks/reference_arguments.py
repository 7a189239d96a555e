"""The flags that trees.py hands to the script of either reference; standard library only."""

import argparse
from pathlib import Path


def argument_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, help="name of the network, such as yolo11n")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--imgsz", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--conf", type=float, required=True, help="predictions: the lowest score")
    parser.add_argument("--iou", type=float, required=True, help="predictions: the overlap that suppression allows")
    parser.add_argument("--max-det", type=int, required=True, help="predictions: the most of an image")
    return parser
