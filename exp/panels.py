"""The settings of forecasts of a panel: a long table of many series, each continued from its own last row."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_provider.panel_holes import WAYS
from exp.limits import COUNT
from exp.section import Section
from utils.errors import UserError
from utils.limits import OneOf, OrNone, Text, limited

PREDICTING = ("do_predict",)
OUTPUTS = (".csv", ".parquet")


@dataclass(frozen=True)
class PanelSettings(Section):
    """Columns of the table, what is done about series that cannot be forecast as they are, output and backtest."""

    id_col: str | None = limited(None, OrNone(Text()), "column of a long table that names the series (default: "
                                 "unique_id or item_id)", needs=PREDICTING, free=True)
    time_col: str | None = limited(None, OrNone(Text()), "column of a long table with the times (default: ds or "
                                   "timestamp)", needs=PREDICTING, free=True)
    target_col: str | None = limited(None, OrNone(Text()), "column of a long table with the values (default: y or "
                                     "target)", needs=PREDICTING, free=True)
    missing: str = limited("error", OneOf(WAYS), "missing values and rows of a long table: an error; or filled in on a "
                           "line, with the last value, or with that of a season before", needs=PREDICTING, free=True)
    on_bad: str = limited("error", OneOf(("error", "skip")), "series of a long table that are too short, constant or "
                          "irregular: an error, or left out and listed in skipped.csv", needs=PREDICTING, free=True)
    out: str | None = limited(None, OrNone(Text()), "file for the forecasts of a long table, csv or parquet by its "
                              "ending (default: in the results folder, of the kind of the input)", needs=PREDICTING,
                              free=True)
    backtest: int | None = limited(None, OrNone(COUNT), "score this many forecasts of every series of a long table, "
                                   "made from before its end, beside seasonal-naive", needs=PREDICTING, free=True,
                                   not_with={
        "out": "writes scores to the results folder, not forecasts", "pictures": "draws no pictures",
        "resume": "is made in one go", "workers": "runs in one process", "ray_address": "runs in one process"})
    step: int | None = limited(None, OrNone(COUNT), "steps between the origins of a backtest (default: the horizon)",
                               needs=("backtest",), free=True)
    workers: int | None = limited(None, OrNone(COUNT), "forecast a long table by this many processes, of which each "
                                  "loads the models once; by Ray (default: by this one; with --ray_address one for "
                                  "each GPU, or each machine)", needs=PREDICTING, free=True)
    ray_address: str | None = limited(None, OrNone(Text()), "forecast a long table on the Ray cluster at this address, "
                                      "or 'auto', whose machines see the same folders", needs=PREDICTING, free=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is not None and Path(self.out).suffix.lower() not in OUTPUTS:
            raise UserError(f"`out` {self.out}: unknown kind of file: end its name with {' or '.join(OUTPUTS)}")

    def given(self) -> list[str]:
        """Names of the settings that differ from their defaults."""
        return [name for name, value in vars(self).items() if value != vars(PanelSettings())[name]]
