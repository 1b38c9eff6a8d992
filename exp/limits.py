"""Limits that several settings share, and those of settings which only a program has: names of folders and files, GPUs.

`exp.settings` says which setting has which limit; `utils.limits` has the kinds of limits.
"""
from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from models.foreign import is_foreign
from utils.errors import shorten
from utils.limits import Number, whole

MOST_SEED = 2**32 - 1  # largest seed that numpy accepts
COUNT, NATURAL = whole(1, 2**31), whole(0, 2**31)
SEED = whole(0, MOST_SEED)
RATE, SHARE = Number(0, 0.999), Number(0, 1, open_low=True)
LARGEST = 1e6  # anything above is a typo and would overflow
NON_NEGATIVE, POSITIVE = Number(0, LARGEST), Number(0, LARGEST, open_low=True)


@dataclass(frozen=True)
class NamePart:
    """A word that becomes part of a folder name; two or three of them and a suffix must stay below 255 bytes."""

    words: str = "part of a folder name, without '/' or control characters and of at most 60 bytes"

    def fits(self, value: object) -> bool:
        return isinstance(value, str) and "/" not in value and value.isprintable() and len(value.encode()) <= 60

    def read(self, text: str) -> str:
        if not self.fits(text):
            raise ValueError(f"{shorten(text)} becomes part of a folder name: leave out '/' and control characters, "
                             "and use at most 60 bytes")
        return text


@dataclass(frozen=True)
class ModelName:
    """The name of a model of this program, or 'module:function'."""

    names: Collection[str]

    def fits(self, value: object) -> bool:
        return isinstance(value, str) and (value in self.names or is_foreign(value))

    def read(self, text: str) -> str:
        if self.fits(text):
            return text
        raise ValueError(f"{text!r} is not {self.words} (the function returns any other model, docs/YOUR_MODEL.md)")

    @property
    def words(self) -> str:
        return f"one of {', '.join(sorted(self.names))}, or module:function"


@dataclass(frozen=True)
class CsvName:
    words: str = "the name of a csv file"

    def fits(self, value: object) -> bool:
        return isinstance(value, str) and value.isprintable() and Path(value).suffix == ".csv"

    def read(self, text: str) -> str:
        if not self.fits(text):
            raise ValueError(f"{text!r} is not the name of a csv file: end it with .csv")
        return text


@dataclass(frozen=True)
class PerCent:
    """'0.5%' -> 0.005"""

    words: str = "a percentage above 0, to 100, such as 0.5%"

    def fits(self, value: object) -> bool:
        return isinstance(value, float) and 0 < value <= 1

    def read(self, text: str) -> float:
        number, sign, rest = text.partition("%")
        try:
            value = float(number) / 100
        except ValueError:
            value = math.nan
        if not sign or rest or not self.fits(value):
            raise ValueError(f"{text!r} is not {self.words}")
        return value


@dataclass(frozen=True)
class DeviceList:
    """'0,1,2' -> (0, 1, 2)"""

    words: str = "distinct GPU numbers"

    def fits(self, value: object) -> bool:
        return isinstance(value, tuple) and all(map(NATURAL.fits, value)) and len(set(value)) == len(value)

    def read(self, text: str) -> tuple[int, ...]:
        devices = tuple(int(NATURAL.read(part)) for part in text.split(","))
        if not self.fits(devices):
            raise ValueError(f"{text!r} names a GPU twice: every process needs its own")
        return devices


@dataclass(frozen=True)
class Paths:
    """One path or several, as one text with commas between them."""

    words: str = "paths with commas between them"
    several: bool = True  # on a command line they may also be separate words

    def fits(self, value: object) -> bool:
        return isinstance(value, str) and value.strip(", ") != "" and "\0" not in value

    def read(self, text: str) -> str:
        if not self.fits(text):
            raise ValueError(f"{text!r} names no file")
        return text
