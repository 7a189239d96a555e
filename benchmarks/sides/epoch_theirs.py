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
    values = {"True": True, "False": False}
    model.train(**{name: int(word) if word.isdigit() else values.get(word, word) for name, word in words.items()})


if __name__ == "__main__":
    main()
