"""The one kind of error a user is meant to see: a line that says what, where and what to do. Exit code 2."""


def shorten(value, most: int = 40) -> str:
    """repr(value), cut where it would make the line of an error unreadable."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


class UserError(Exception):
    """Raised for bad input; `run.py` prints the message without a traceback and exits with code 2."""
