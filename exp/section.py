"""What the sections of the settings share: checked fields, and conditions that several of them name."""
from __future__ import annotations

from dataclasses import Field, fields
from typing import Any

from utils.limits import check

ONE_WAY = {"compare": "applies to a single method, --compare runs all of them"}
TEST_WINDOWS = {"do_predict": "applies to test windows, --do_predict forecasts beyond the last row (and always plots "
                              "the forecast)"}
SPECULATION = ("use_speculative", "compare")
OWN_HEADS = {"spec_draft=head": "is about a draft, but --spec_draft head takes proposals from the target's own heads"}


def fields_of(section: type) -> dict[str, Field[Any]]:
    return {own.name: own for own in fields(section)}


class Section:
    """Checks the limits of its fields. Raises UserError, which names the parameter."""

    def __post_init__(self) -> None:
        check(fields_of(type(self)), vars(self))
