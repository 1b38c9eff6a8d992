"""The one kind of error a user is meant to see: one line with what is wrong, where, and what to do."""
from __future__ import annotations


def shorten(value: object, most: int = 40) -> str:
    """repr(value), cut where it would make the line of an error unreadable."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


class UserError(Exception):
    """Raised for bad input. Its text has parameters in backticks, which a program may replace by its flags."""
