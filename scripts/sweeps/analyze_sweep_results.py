"""Analyses a sweep: tables on the terminal, pictures as PNG.

    python scripts/sweeps/analyze_sweep_results.py test_results/sweep_etth1.csv

analyze_sweep_results.ipynb uses the same functions.
"""
import argparse
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works when started by its path, from anywhere

if __name__ == "__main__":
    os.environ["MPLBACKEND"] = "agg"  # as in exp.program, but before the imports; a notebook keeps its own

from exp.flags import Parser, reader  # noqa: E402
from exp.limits import COUNT  # noqa: E402
from exp.program import exit_code  # noqa: E402
from exp.report.results import DRAFT, TARGET, format_table  # noqa: E402
from exp.sweep.plots import ERRORS, errors_figure, heatmap_figure  # noqa: E402
from exp.sweep.table import COLUMNS, PARAMETERS, read_table  # noqa: E402
from utils.errors import UserError  # noqa: E402

NUMBERS = [name for name in COLUMNS if name not in ("rule", "emit")]
SHOWN = {"rule": "rule", "emit": "emit", "sigma": "sigma", "bias": "bias", "tol": "tol", "k": "K", "mse": "MSE",
         "mse_pct": "MSE %", "mae": "MAE", "mae_pct": "MAE %", "acceptance_pct": "accepted %",
         "target_passes": "target passes", "draft_passes": "draft passes", "ms_per_forecast": "ms per forecast"}
SENSITIVITY = {"rule": "rule", "emit": "emit", "parameter": "parameter", "values": "values",
               "acceptance_pct": "accepted, points", "mse": "MSE", "mae": "MAE", "target_passes": "target passes",
               "ms_per_forecast": "ms"}
PRICES = {"target_passes": "target passes", "ms_per_forecast": "time"}


def load_sweep(path: Path) -> tuple[dict[str, str], pd.DataFrame, pd.DataFrame]:
    """(settings, cells, references) of a sweep's csv; references: target alone and draft alone.

    Columns mse_pct and mae_pct are added: by how many per cent the error is above that of the target alone (empty where
    the table has no row of it).
    """
    settings, rows = read_table(path)
    table = pd.DataFrame(rows, columns=COLUMNS).replace("", np.nan)
    try:
        table[NUMBERS] = table[NUMBERS].apply(pd.to_numeric)
    except ValueError as error:
        raise UserError(f"{path}: {error}: a number was expected; restore the file, or sweep again") from None
    target = table[table["rule"] == TARGET]
    for name in ERRORS:
        own = target[name].iloc[0] if len(target) else np.nan
        table[f"{name}_pct"] = 100 * (table[name] / own - 1) if own > 0 else np.nan
    reference = table["rule"].isin((TARGET, DRAFT))
    if reference.all():
        raise UserError(f"{path} holds no cell yet: let the sweep run longer")
    return settings, table[~reference].reset_index(drop=True), table[reference].reset_index(drop=True)


def top_by_acceptance(cells: pd.DataFrame, n: int = 5) -> pd.DataFrame:
    """Highest acceptance; ties are broken by lower error, then by shorter time."""
    return cells.sort_values(["acceptance_pct", "mse", "ms_per_forecast"], ascending=[False, True, True]).head(n)


def top_by_error(cells: pd.DataFrame, error: str = "mse", n: int = 5) -> pd.DataFrame:
    """Lowest error, 'mse' or 'mae'; ties are broken by shorter time."""
    return cells.sort_values([error, "ms_per_forecast"]).head(n)


def balanced(cells: pd.DataFrame, at_least: float = 70.0, n: int = 5) -> pd.DataFrame:
    """Lowest MSE among the cells that accept at least `at_least` percent."""
    return top_by_error(cells[cells["acceptance_pct"] >= at_least], "mse", n)


def top_by_cost(cells: pd.DataFrame, cost: str = "target_passes", at_most: float = 1.0, n: int = 5) -> pd.DataFrame:
    """Lowest cost, 'target_passes' or 'ms_per_forecast', among the cells whose MSE and MAE are at most `at_most` per
    cent above those of the target alone; ties are broken by lower MSE."""
    good = (cells[[f"{error}_pct" for error in ERRORS]] <= at_most).all(axis=1)
    return cells[good].sort_values([cost, "mse"]).head(n)


def pareto_front(rows: pd.DataFrame, cost: str = "ms_per_forecast", error: str = "mse") -> pd.DataFrame:
    """The rows that no other row beats in both cost and error, cheapest first."""
    ordered = rows.dropna(subset=[cost, error]).sort_values([cost, error])
    best_before = ordered[error].cummin().shift(fill_value=np.inf)
    return ordered[ordered[error] < best_before]


def sensitivity(cells: pd.DataFrame) -> pd.DataFrame:
    """Effect of each parameter on acceptance, error and time: one row per rule, emission and parameter.

    Effect: the mean over all cells with one value of the parameter, the largest of these means minus the smallest.
    Valid for a complete grid; after an interrupted sweep, cells with one value differ in other parameters too.
    """
    measures, rows = list(SENSITIVITY)[4:], []
    for (rule, emit), family in cells.groupby(["rule", "emit"]):
        for name in PARAMETERS[2:]:
            means = family.groupby(name)[measures].mean()
            if len(means) > 1:
                values = ", ".join(f"{value:g}" for value in means.index)
                rows.append({"rule": rule, "emit": emit, "parameter": name, "values": values}
                            | (means.max() - means.min()).to_dict())
    return pd.DataFrame(rows, columns=list(SENSITIVITY))


def verdict(cells: pd.DataFrame, references: pd.DataFrame) -> list[str]:
    """Sentences on how many cells beat the target alone, and whether the draft alone beats them all."""
    lines = []
    for reference in references.to_dict("records"):
        faster = cells["ms_per_forecast"] < reference["ms_per_forecast"]
        lower = {error: cells[error] < reference[error] for error in ERRORS}
        lines.append(f"{reference['rule']}: MSE {reference['mse']:.4f}, MAE {reference['mae']:.4f}, "
                     f"{reference['ms_per_forecast']:.2f} ms. Of {len(cells)} cells {faster.sum()} are faster, "
                     f"{lower['mse'].sum()} have a lower MSE, {lower['mae'].sum()} a lower MAE, "
                     f"{(faster & lower['mse'] & lower['mae']).sum()} all three.")
        if reference["rule"] == DRAFT and not (faster | lower["mse"] | lower["mae"]).any():
            lines.append("The draft by itself is faster and no less accurate than every cell: speculation pays here "
                         "only where the target's own forecast is wanted.")
    return lines


def title_of(settings: dict[str, str]) -> str:
    return (f"{settings['data']}, horizon {settings['horizon']}, {settings['windows']} windows, batch "
            f"{settings['batch_size']}, {settings['device']}, threads {settings['threads']}")


def report(settings: dict, cells: pd.DataFrame, references: pd.DataFrame, top: int = 5) -> str:
    """All tables as text."""
    parts = {f"Top {top} by acceptance": top_by_acceptance(cells, top)}
    parts |= {f"Top {top} by {name}": top_by_error(cells, error, top) for error, name in ERRORS.items()}
    parts["Balanced: accepted >= 70 %, lowest MSE"] = balanced(cells, n=top)
    for cost, name in PRICES.items():
        parts[f"Top {top} by {name}, of the cells with MSE and MAE at most 1 % above the target's"] = \
            top_by_cost(cells, cost, n=top)
    parts |= {f"Pareto front of the cells, {name} and {ERRORS[error]}": pareto_front(cells, cost, error)
              for cost, name in PRICES.items() for error in ERRORS}
    lines = [title_of(settings), *([f"gap: {settings['gap']}"] if "gap" in settings else []),
             *verdict(cells, references)]
    lines += [f"\n{name}\n{_text(rows, SHOWN) if len(rows) else 'no such cell'}" for name, rows in parts.items()]
    lines.append("\nSensitivity: largest minus smallest mean over the values of one parameter")
    lines.append(_text(sensitivity(cells), SENSITIVITY))
    return "\n".join(lines)


def _text(rows: pd.DataFrame, columns: dict[str, str]) -> str:
    plain = rows.astype(object).where(rows.notna(), None).to_dict("records")
    for row in plain:
        row |= {name: f"{row[name]:g}" for name in PARAMETERS[2:] if row.get(name) is not None}
    return format_table(plain, columns)


def draw(folder: Path, settings: dict, cells: pd.DataFrame, references: pd.DataFrame) -> list[Path]:
    """Errors against each of COSTS, and heatmaps_<rule>_<emit>.png where both sigma and bias were swept."""
    title, paths = title_of(settings), []
    for cost, name in {"target_passes": "passes", "ms_per_forecast": "time", "acceptance_pct": "acceptance"}.items():
        paths.append(folder / f"errors_by_{name}.png")
        errors_figure(paths[-1], cells, references, cost, title)
    for (rule, emit), family in cells.dropna(subset=["sigma", "bias"]).groupby(["rule", "emit"]):
        if family["sigma"].nunique() > 1 and family["bias"].nunique() > 1:
            paths.append(folder / f"heatmaps_{rule}_{emit}.png")
            heatmap_figure(paths[-1], family, f"{rule}, emission {emit}: {title}")
    return paths


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input (one line on stderr), 130 or 143 interrupted (see exp.program)."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="csv of a sweep")
    parser.add_argument("--out", type=Path, default=None, help="folder of the pictures (default: TABLE without .csv)")
    parser.add_argument("--top", type=reader(COUNT), default=5, help="rows per list (default: %(default)s)")

    def work():
        own = parser.parse_args(argv)
        settings, cells, references = load_sweep(own.table)
        print(report(settings, cells, references, own.top))
        folder = own.out or own.table.with_suffix("")
        print("\n" + "\n".join(f"picture: {path}" for path in draw(folder, settings, cells, references)))
    return exit_code(work, "--top", "the pictures so far are kept")


if __name__ == "__main__":
    sys.exit(main())
