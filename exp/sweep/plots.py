"""Pictures of a sweep; colours and saving as in exp.report.plots. Markers differ too, for greyscale print."""
from pathlib import Path

import numpy as np
import pandas as pd

from exp.report.plots import BLACK, BLUE, GREEN, ORANGE, RED, SKY, save_figure, subplots
from exp.report.results import DRAFT, TARGET

STYLES = [(BLUE, "o"), (RED, "v"), (GREEN, "D"), (SKY, "P"), ("#999999", "X"), (ORANGE, "<"), ("#CC79A7", "*")]
REFERENCES = {TARGET: (BLACK, "s", "-"), DRAFT: (ORANGE, "^", "--")}  # colour, marker, line
ERROR = "MSE (standardised)"


def describe_cell(cell) -> str:
    """The parameters of a sweep's row that have a value, as 'simplified, mean, sigma 0.25, bias 1, K 3'."""
    numbers = [f"{'K' if name == 'k' else name} {cell[name]:g}" for name in ("sigma", "bias", "tol", "k")
               if pd.notna(cell[name])]
    return ", ".join([str(cell["rule"]), *([cell["emit"]] if pd.notna(cell["emit"]) else []), *numbers])


def _families(cells: pd.DataFrame):
    """Cells by rule, emission and the parameter that decides acceptance most: (label, their rows)."""
    for (rule, emit, sigma, tol), rows in cells.groupby(["rule", "emit", "sigma", "tol"], dropna=False):
        threshold = [f"{name} {value:g}" for name, value in (("sigma", sigma), ("tol", tol)) if pd.notna(value)]
        yield ", ".join([rule, emit, *threshold]), rows


def acceptance_figure(path: Path, cells: pd.DataFrame, references: pd.DataFrame, title: str) -> None:
    """Acceptance against error, one marker per family; lines: each model alone."""
    figure, axis = subplots(figsize=(8, 5))
    for i, (label, rows) in enumerate(_families(cells)):
        colour, marker = STYLES[i % len(STYLES)]
        axis.scatter(rows["acceptance_pct"], rows["mse"], s=26 + 16 * rows["k"], color=colour, marker=marker,
                     alpha=0.75, edgecolor="white", lw=0.5, label=label)
    for reference in references.to_dict("records"):
        colour, _, line = REFERENCES[reference["rule"]]
        axis.axhline(reference["mse"], color=colour, lw=1.4, ls=line, zorder=0,
                     label=f"{reference['rule']}: MSE {reference['mse']:.4f}")
    axis.set(xlabel="accepted of the proposals judged (%), larger marker: larger K", ylabel=ERROR, xlim=(-4, 104))
    axis.grid(alpha=0.25)
    _finish(figure, axis, path, title)


def heatmap_figure(path: Path, cells: pd.DataFrame, title: str) -> None:
    """Sigma x bias, one column of panels per K: acceptance above, error below. cells: of one rule and emission."""
    ks = sorted(cells["k"].unique())
    figure, axes = subplots(2, len(ks), figsize=(1.6 + 2.7 * len(ks), 5.6), squeeze=False, layout="constrained")
    for line, (column, name, places) in enumerate((("acceptance_pct", "accepted (%)", 0), ("mse", ERROR, 4))):
        low, high = cells[column].min(), cells[column].max()
        for axis, k in zip(axes[line], ks):
            grid = cells[cells["k"] == k].pivot(index="sigma", columns="bias", values=column)
            image = axis.imshow(grid, cmap="cividis", vmin=low, vmax=high, aspect="auto", origin="lower")
            for (i, j), value in np.ndenumerate(grid.to_numpy()):
                dark = value < (low + high) / 2
                axis.text(j, i, f"{value:.{places}f}", ha="center", va="center", fontsize=7,
                          color="white" if dark else "black")
            axis.set_xticks(range(len(grid.columns)), [f"{value:g}" for value in grid.columns])
            axis.set_yticks(range(len(grid.index)), [f"{value:g}" for value in grid.index])
            axis.set_title(f"K = {k:g}", fontsize=10)
            axis.label_outer()
        axes[line, 0].set_ylabel("sigma (standardised)")
        figure.colorbar(image, ax=list(axes[line]), label=name, shrink=0.9)
    figure.supxlabel("bias (factor on the acceptance ratio)", fontsize=10)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def pareto_figure(path: Path, cells: pd.DataFrame, references: pd.DataFrame, front: pd.DataFrame, title: str) -> None:
    """Time against error, lower left is better; front: the cells that no cell beats in both, fastest first."""
    figure, axis = subplots(figsize=(8, 5))
    for i, (label, rows) in enumerate(_families(cells)):
        colour, marker = STYLES[i % len(STYLES)]
        axis.scatter(rows["ms_per_forecast"], rows["mse"], s=40, color=colour, marker=marker, alpha=0.75,
                     edgecolor="white", lw=0.5, label=label)
    for reference in references.to_dict("records"):
        colour, marker, _ = REFERENCES[reference["rule"]]
        axis.scatter(reference["ms_per_forecast"], reference["mse"], s=130, color=colour, marker=marker, zorder=4,
                     edgecolor=BLACK, label=reference["rule"])
    axis.step(front["ms_per_forecast"], front["mse"], where="post", color=BLACK, lw=1, ls=":", zorder=1,
              label="Pareto front of the cells")
    for number, cell in enumerate(front.to_dict("records"), 1):
        axis.annotate(str(number), (cell["ms_per_forecast"], cell["mse"]), xytext=(7, 7), fontsize=9,
                      textcoords="offset points", fontweight="bold", zorder=5,
                      bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.8})
        axis.plot([], [], " ", label=f"{number}  {describe_cell(cell)}")
    axis.set(xlabel="time per forecast (ms)", ylabel=ERROR)
    axis.set_xlim(left=0)
    axis.grid(alpha=0.25)
    _finish(figure, axis, path, title)


def _finish(figure, axis, path: Path, title: str) -> None:
    axis.set_title(title, fontsize=10, loc="left")
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False, labelspacing=0.8,
                markerscale=0.8)
    figure.tight_layout()
    save_figure(figure, path)
