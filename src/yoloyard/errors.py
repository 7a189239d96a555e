"""Errors that are meant for the person at the keyboard: one clear line, no traceback."""


class UserError(Exception):
    """Something went wrong that the user can put right. The command line prints the message and exits with 1."""

    exit_code = 1


class UsageError(UserError):
    """The command, a flag or a config value is wrong. The command line prints the message and exits with 2."""

    exit_code = 2
