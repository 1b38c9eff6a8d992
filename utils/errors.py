"""The one kind of error a user is meant to see: a line that says what, where and what to do. Exit code 2."""


class UserError(Exception):
    """Raised for bad input; `run.py` prints the message without a traceback and exits with code 2."""
