"""`python -m yoloyard` is the command `yoloyard`."""

from yoloyard.cli import main

main()
