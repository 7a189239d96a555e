"""`python -m yoloyard` is the command `yoloyard`."""

from yoloyard.cli.main import main

main()
