"""The command `yoloyard`, also as `python -m yoloyard`."""

import sys


def run() -> None:
    """Run the command line; Ctrl-C ends it with a line and 130 from its first import on."""
    try:
        from yoloyard.cli.main import main
    except KeyboardInterrupt:
        sys.stderr.write("yoloyard: stopped\n")
        sys.exit(130)
    main()


if __name__ == "__main__":
    run()
