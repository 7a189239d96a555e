"""The reference's training with a given number of threads, which its command line has no word for.

epoch_theirs.py THREADS WORD=VALUE ...      the words are those of its command line
"""

import sys

import torch
from ultralytics import YOLO


def main() -> None:
    threads, words = int(sys.argv[1]), dict(word.split("=", 1) for word in sys.argv[2:])
    model = YOLO(words.pop("model"))
    # The reference chooses its own count when it selects the device, so it is told again and again.
    for event in ("on_pretrain_routine_end", "on_train_start", "on_train_epoch_start", "on_val_start"):
        model.add_callback(event, lambda _: torch.set_num_threads(threads))
    numbers = {name: int(value) if value.isdigit() else value for name, value in words.items()}
    model.train(**{name: {"True": True, "False": False}.get(value, value) for name, value in numbers.items()})


if __name__ == "__main__":
    main()
