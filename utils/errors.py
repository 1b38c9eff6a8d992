"""The one kind of error meant for users: a single line that says what is wrong, where, and what to do."""
from __future__ import annotations


def shorten(value: object, most: int = 40) -> str:
    """repr(value), truncated to keep error messages readable."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


class UserError(Exception):
    """Raised for bad input. The text has parameters in backticks, which a program may replace with its flags."""
