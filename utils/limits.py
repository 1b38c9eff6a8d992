"""Limits of settings: described in words, checked, and read from text."""
from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import Field, dataclass, field
from typing import Any, Protocol

from .errors import UserError, shorten


class Limit(Protocol):
    @property
    def words(self) -> str:
        """'a whole number from 1 to 8': completes 'must be ...'."""

    def fits(self, value: object) -> bool: ...

    def read(self, text: str) -> Any:
        """Parses `text`. Raises ValueError with the reason if it is invalid."""


@dataclass(frozen=True)
class Number:
    """A finite number from `low` (excluded with open_low) to `high`; an integer if whole."""

    low: float
    high: float
    whole: bool = False
    open_low: bool = False

    @property
    def words(self) -> str:
        start = f"above {self.low:.12g}, to" if self.open_low else f"from {self.low:.12g} to"
        return f"{'a whole number' if self.whole else 'a number'} {start} {self.high:.12g}"

    def fits(self, value: object) -> bool:
        # type(value), not isinstance: bool is a subclass of int
        if type(value) is not int and (self.whole or type(value) is not float):
            return False
        above = value > self.low if self.open_low else value >= self.low
        return bool(above and value <= self.high and abs(value) < math.inf)

    def read(self, text: str) -> int | float:
        try:
            value: int | float = int(text) if self.whole else float(text)
        except ValueError:
            raise ValueError(f"{text!r} is not {'a whole number' if self.whole else 'a number'}") from None
        if not self.fits(value):
            bounds = f"{'above' if self.open_low else 'at least'} {self.low:.12g}"
            raise ValueError(f"{text} is out of range: must be {bounds}"
                             + (f" and at most {self.high:.12g}" if math.isfinite(self.high) else ""))
        return value


def whole(low: int, high: int) -> Number:
    return Number(low, high, whole=True)


@dataclass(frozen=True)
class OneOf:
    names: Collection[str]

    @property
    def words(self) -> str:
        return f"one of {', '.join(sorted(self.names))}"

    def fits(self, value: object) -> bool:
        return isinstance(value, str) and value in self.names

    def read(self, text: str) -> str:
        if text not in self.names:
            raise ValueError(f"{text!r} is not {self.words}")
        return text


@dataclass(frozen=True)
class Switch:
    words: str = "true or false"

    def fits(self, value: object) -> bool:
        return isinstance(value, bool)

    def read(self, text: str) -> bool:
        raise ValueError("a switch takes no value")


@dataclass(frozen=True)
class Text:
    words: str = "text"

    def fits(self, value: object) -> bool:
        return isinstance(value, str)

    def read(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class OrWord:
    """Another limit, or one fixed word."""

    limit: Limit
    word: str

    @property
    def words(self) -> str:
        return f"{self.limit.words}, or '{self.word}'"

    def fits(self, value: object) -> bool:
        return value == self.word or self.limit.fits(value)

    def read(self, text: str) -> Any:
        return text if text == self.word else self.limit.read(text)


@dataclass(frozen=True)
class OrNone:
    """Another limit, or None (not given)."""

    limit: Limit

    @property
    def words(self) -> str:
        return f"{self.limit.words}, or None"

    def fits(self, value: object) -> bool:
        return value is None or self.limit.fits(value)

    def read(self, text: str) -> Any:
        return self.limit.read(text)


def limited(default: Any, limit: Limit, help: str = "", **metadata: Any) -> Any:
    """A dataclass field whose limit `check` enforces; help and metadata are for programs that display it."""
    held: Mapping[str, Any] = {"limit": limit, "help": help} | metadata
    return field(default=default, metadata=held)


def check(fields: Mapping[str, Field[Any]], values: Mapping[str, Any], file: object = None) -> None:
    """Raises UserError for the first of `values` outside the limit of its field; fields without a limit pass.

    file: settings file that the values come from, named in the error.
    """
    for name, value in values.items():
        limit = fields[name].metadata.get("limit") if name in fields else None
        if limit is None or limit.fits(value):
            continue
        if file is None:
            raise UserError(f"`{name}` is {shorten(value)}, but must be {limit.words}")
        raise UserError(f"{file}: {name} is {shorten(value)}, but must be {limit.words}: correct it, or delete the "
                        "file and give the settings")
