"""The cells of a sweep: two references, and every distinct combination of the values that have a meaning for a rule."""
from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from exp.report.results import DRAFT, TARGET
from exp.speculation import LAW_FIELDS, SpecSettings, parameters_of
from utils.acceptance import Parareal
from utils.errors import UserError

COLUMNS = ("rule", "emit", "sigma", "bias", "tol", "k")
NUMBERS = COLUMNS[2:]
MEASURED = ("sigma", "tol")  # of the grid 'gap', see `gaps`
POINTS = 6  # values of each of them
ALL = "all"  # K: every remaining patch
EMISSIONS = {"simplified": ["mean", "sample"], "exact": ["sample"], "coupling": ["sample"], "tolerance": ["mean"],
             "parareal": ["mean"]}
# A column is a list of values, or one for each rule. Those of MEASURED in 'gap' only stand for as many, to count with.
Column = Sequence | Mapping[str, Sequence]
STAND_IN = [float(value) for value in range(1, POINTS + 1)]
GRIDS: dict[str, dict[str, Column]] = {
    "gap": {"rule": list(EMISSIONS), "emit": EMISSIONS, "sigma": STAND_IN, "bias": [1.0], "tol": STAND_IN,
            "k": [1, 3, ALL]},
    "published": {"rule": ["simplified"], "emit": ["mean"], "sigma": [0.1, 0.25, 0.5, 1.0],
                  "bias": [1.0, 2.0, 5.0, 10.0], "tol": [0.1, 0.2, 0.3, 0.5], "k": [1, 2, 3, 4, 5]}}


@dataclass(frozen=True)
class Cell:
    """Parameters of one row of the table; None if a parameter does not apply.

    rule: one of utils.acceptance, or TARGET / DRAFT for one model alone.
    """

    rule: str
    emit: str | None = None
    sigma: float | None = None
    bias: float | None = None
    tol: float | None = None
    k: int | None = None


def make_cells(spec: SpecSettings, shared: set[str], grid: Mapping[str, Column], given: set[str],
               patches: int) -> list[Cell]:
    """The two references, then every distinct combination of the parameters that the rule uses.

    spec: settings shared by all cells (rule and emission are replaced by the cell's); shared: its fields that the user
    set; grid: column -> values, or rule -> values; given: columns that the user set; patches: of a forecast. The last
    patch is the target's own, so K counts at most the others: a larger K and ALL become that number.
    Raises UserError if something that the user set applies to none of the rules.
    """
    cells, used, most = [Cell(TARGET), Cell(DRAFT)], {"rule"}, patches - 1
    for rule in grid["rule"]:
        refusal, own = _refusal(spec, shared, rule), replace(spec, rule=rule, emit=None)
        if refusal is not None:
            raise refusal
        axes = {name: _values(grid[name], rule) if _has_meaning(own, name) else [] for name in NUMBERS}
        axes["k"] = [most if k == ALL else min(k, most) for k in axes["k"]]
        asked = _values(grid["emit"], rule)
        emits = [emit for emit in asked if "emit" in parameters_of(rule) or emit == own.emission]
        used |= {name for name, values in (axes | {"emit": emits}).items() if values}
        cells += [Cell(rule, emit, *numbers) for emit in emits or [own.emission]
                  for numbers in itertools.product(*(values or [None] for values in axes.values()))]
    for name in sorted(given - used):
        values, rules = (",".join(map(str, grid[column])) for column in (name, "rule"))
        raise UserError(f"--{name} {values} does not apply to --rule {rules}: leave it out, or add a rule that uses "
                        "it")
    return list(dict.fromkeys(cells))


def _values(column: Column, rule: str) -> list:
    return list(column.get(rule, []) if isinstance(column, Mapping) else column)


def _has_meaning(spec: SpecSettings, name: str) -> bool:
    """True if the parameter has an effect; a calibrated law estimates its own sigma, parareal draws no paths here."""
    if spec.rule == Parareal.name:
        return name == "tol"
    if name == "k":
        return True
    return name in parameters_of(spec.rule) and not (name == "sigma" and spec.sigma_mode == "calibrated")


def _refusal(spec: SpecSettings, shared: set[str], rule: str) -> UserError | None:
    """Why the rule cannot be used with the shared settings; None if it can."""
    own = replace(spec, rule=rule, emit=None)
    try:
        own.refuse_contradictions(shared)
        own.refuse_simplified_calibrated()
        if rule == Parareal.name and shared & LAW_FIELDS:
            raise UserError(f"`{min(shared & LAW_FIELDS)}` has no effect with `rule` parareal, which draws no paths in "
                            "a sweep: leave one of them out")
    except UserError as refusal:
        return refusal
    return None


def columns_of(grid: str, asked: Mapping[str, Sequence], shared: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a grid of GRIDS, with the user's in the place of some.

    asked: the user's columns; shared: fields of SpecSettings that the user set for all cells. A grid's own rules are
    reduced to those that `shared` applies to. Raises UserError if there is none.
    """
    columns: dict[str, Any] = {**GRIDS[grid], **asked}
    if "rule" not in asked:
        spec = SpecSettings(**shared)
        refusals = {rule: _refusal(spec, set(shared), rule) for rule in columns["rule"]}
        columns["rule"] = [rule for rule, refusal in refusals.items() if refusal is None]
        for refusal in refusals.values():
            if refusal is not None and not columns["rule"]:
                raise refusal
    return columns


def to_measure(columns: Mapping[str, Column], cells: Sequence[Cell]) -> list[str]:
    """The columns whose values are still to be measured, and that some cell uses."""
    return [name for name in MEASURED if columns[name] is STAND_IN
            and any(getattr(cell, name) is not None for cell in cells)]
