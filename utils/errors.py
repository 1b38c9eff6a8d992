"""The one kind of error meant for users: a single line that says what is wrong, where, and what to do."""
from __future__ import annotations


def shorten(value: object, most: int = 40) -> str:
    """repr(value), truncated to keep error messages readable."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def one_line(text: str) -> str:
    """The text with line breaks and whatever else cannot be printed escaped; names in files may hold them."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class UserError(Exception):
    """Raised for bad input: one line. It has parameters in backticks, which a program may replace with its flags."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class NotFinite(UserError):
    """A model's output overflowed, or is not a number.

    who, what: the model and its output in words; patch: the first bad one after the context, from 0, and its P steps;
    place: which window. A program that knows better than the decoder where a window comes from replaces `place`.
    window: its row in the batch that was decoded.
    """

    def __init__(self, who: str, what: str, window: int, patch: int, patch_len: int):
        super().__init__(who, what, window, patch, patch_len)
        self.who, self.what, self.window, self.patch, self.patch_len = who, what, window, patch, patch_len
        self.place = f"window {window} of its batch (counted from 0)"

    def __str__(self) -> str:
        first = self.patch * self.patch_len + 1
        steps = f"steps {first} to {first + self.patch_len - 1}"
        return (f"{self.who}, patch {self.patch + 1} of the forecast ({steps}), {self.place}: {self.what}; compute "
                "without mixed precision (`amp`), or train it again")
