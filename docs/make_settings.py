"""Writes docs/settings.md from config/settings.py: run `python docs/make_settings.py` after a change there."""

from pathlib import Path

from yoloyard.config.overrides import ALIASES
from yoloyard.config.settings import Setting, TrainConfig, settings_of

PAGE = Path(__file__).with_name("settings.md")

INTRODUCTION = """\
# Settings

<!-- Written by docs/make_settings.py from src/yoloyard/config/settings.py; change it there. -->

Every setting is a flag of `yoloyard train`, a line of the YAML file that `--config` names, and an argument of
`yoloyard.train` in Python; the name is the same everywhere:

```
yoloyard train --data factory/data.yaml --close-mosaic 5 --no-amp
yoloyard train data=factory/data.yaml close_mosaic=5 amp=false
```

- In flags `-` and `_` are the same, and `key=value` does as well. A switch is turned off by `--no-NAME`.
- YOLOv5's spellings are understood too: {aliases}, `--hyp` (`--config`).
- A flag wins over the file of `--config`, and that over the recipe of the model's family.
- What you set is never changed without a line that says so. What you leave out may be chosen to fit the run:
  `optimizer`, `lr0`, `momentum` and `warmup_bias_lr` while you give no `optimizer` (for YOLOv5 nor `lr0`); `nbs`,
  `warmup_epochs`, `close_mosaic` and `ema_ramp` for a small data set; `workers` is 0 on a CPU. The line `recipe ...`
  says the choice; the run folder's `config.yaml` holds all that was used.
- A value outside its range is an error, and so is an unknown name; the message names the nearest one.
"""

HEADINGS = {
    "": "The run",
    "augment": "Augmentation",
    "optimization": "Optimizer and schedule",
    "loss": "Loss",
    "evaluation": "Validation",
}


def table() -> str:
    """The whole page: a heading and a table of settings for each part of the configuration."""
    spellings = ", ".join(f"`--{given.replace('_', '-')}` (`--{name}`)" for given, name in ALIASES.items())
    parts: dict[str, list[str]] = {part: [] for part in HEADINGS}
    for leaf in settings_of(TrainConfig).values():
        if leaf.hidden:
            continue
        parts[leaf.part].append(_row(leaf))
    text = INTRODUCTION.format(aliases=spellings)
    for part, rows in parts.items():
        head = ["", f"## {HEADINGS[part]}", "", "| setting | default | range | meaning |", "| --- | --- | --- | --- |"]
        text += "\n".join([*head, *rows]) + "\n"
    return text


def _row(leaf: Setting) -> str:
    default = f"`{str(leaf.default).lower() if isinstance(leaf.default, bool) else leaf.default}`"
    cells = (f"`{leaf.name}`", "" if leaf.default in (None, "") else default, _range(leaf), leaf.help)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _range(leaf: Setting) -> str:
    if leaf.choices:
        return " or ".join(leaf.choices)
    if leaf.at_least is None:
        return ""
    if leaf.at_most is None:
        return f"from {leaf.at_least:.10g}"
    return f"{leaf.at_least:.10g} to {leaf.at_most:.10g}"


if __name__ == "__main__":
    PAGE.write_text(table(), encoding="utf-8")
